"""A linear probe: what a classifier of one layer reads out of features.

Tensor names carry their shape: N images, E feature width.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    from sklearn.linear_model import LogisticRegression

# Of domains; after the CLIP paper's own (Radford et al., ICML 2021, appendix A.3).
DOMAIN_PROBE_C = 0.316
ITERATIONS = 1000


def fit_probe(features_NE: Tensor, label_N: Tensor, c: float) -> LogisticRegression:
    """Fits logistic regression.

    Args:
        features_NE: Unit-length features.
        label_N: What is to be read out of them.
        c: Inverse strength of the L2 penalty.
    """
    from sklearn.linear_model import (
        LogisticRegression,  # takes a second, which others need not wait
    )

    probe = LogisticRegression(C=c, max_iter=ITERATIONS)
    return probe.fit(features_NE.float().cpu().numpy(), label_N.cpu().numpy())


def probe_accuracy(probe: LogisticRegression, features_NE: Tensor, label_N: Tensor) -> float:
    """How often a probe is right."""
    return float(probe.score(features_NE.float().cpu().numpy(), label_N.cpu().numpy()))
