"""What the recorded table says beside the replays: how sure a look is, and what decides.

    python -m tests.benchmarks.table_facts

Array names carry their shape: F forget sets, N configurations, S seeds, K options.
"""

from __future__ import annotations

import numpy as np

from tests.benchmarks.replay import Recorded
from tests.benchmarks.signal_table import TABLE

OPTIONS = (
    "method.gamma",
    "method.lambda",
    "method.n_ctx",
    "method.instapg_layer",
    "train.lr",
)
DECISIVE = ("method.lambda", "method.n_ctx")
DRAWS = 4000


def correlations(looks_FNS: np.ndarray, truth_FN: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of one seed's look with the mean test H, and of all seeds' mean look, by forget set."""
    one = [
        np.mean([np.corrcoef(look_N, truth_N)[0, 1] for look_N in looks_NS.T])
        for looks_NS, truth_N in zip(looks_FNS, truth_FN, strict=True)
    ]
    means_FN = looks_FNS.mean(axis=2)
    every = [np.corrcoef(*pair)[0, 1] for pair in zip(means_FN, truth_FN, strict=True)]
    return np.array(one), np.array(every)


def least_regret(test_FNS: np.ndarray, n_known: int, rng: np.random.Generator) -> float:
    """Regret in points of one who knows the true means of so many, the best recorded being luck."""
    regrets = []
    for test_NS in test_FNS:
        n, n_seeds = test_NS.shape
        noise = test_NS.var(axis=1, ddof=1).mean() / n_seeds
        between = max(test_NS.mean(axis=1).var(ddof=1) - noise, 0.0)
        for _ in range(DRAWS):
            true_N = rng.normal(0, between**0.5, n)
            seen_N = true_N + rng.normal(0, noise**0.5, n)
            known = rng.permutation(n)[:n_known]
            regrets.append(seen_N.max() - seen_N[known[true_N[known].argmax()]])
    return float(100 * np.mean(regrets))


def explained(values_NK: np.ndarray, h_N: np.ndarray) -> float:
    """Share of the variance of H that a quadratic model of some options explains."""
    z_NK = (values_NK - values_NK.mean(axis=0)) / values_NK.std(axis=0)
    n, k = z_NK.shape
    products = [z_NK[:, i] * z_NK[:, j] for i in range(k) for j in range(i, k)]
    terms = np.column_stack([np.ones(n), z_NK, *products])
    rest_N = h_N - terms @ np.linalg.lstsq(terms, h_N, rcond=None)[0]
    return float(1 - rest_N.var() / h_N.var())


def main() -> None:
    """Prints them."""
    table = Recorded(TABLE)
    test_FNS = table.h["test"][..., -1]
    n = test_FNS.shape[1]
    for name in ("val", "quick"):
        one, every = correlations(table.h[name][..., -1], table.truth)
        print(f"{name}: one seed {np.round(one, 2)}, all seeds {np.round(every, 2)}")
    rng = np.random.default_rng(0)
    print(f"least regret: of {n} {least_regret(test_FNS, n, rng):.1f}", end=", ")
    print(f"of ten {least_regret(test_FNS, 10, rng):.1f}")
    # All but the layer are drawn on a logarithmic scale.
    scales = {name: float if name.endswith("layer") else np.log for name in OPTIONS}
    h_N = table.truth.mean(axis=0)
    for options in (OPTIONS, DECISIVE):
        values = [[scales[name](each[name]) for name in options] for each in table.params]
        print(f"explained by {', '.join(options)}: {100 * explained(np.array(values), h_N):.0f} %")


if __name__ == "__main__":
    main()
