"""The paper's tables: which runs stand in them, and what was published."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

from adu.errors import UserError

# The paper's defaults for ADU, and Baseline and zero-shot in the words of `adu.methods`.
MAIN: dict[str, dict[str, Any]] = {
    "Zero-shot": {"name": "zero_shot"},
    "LP++": {"name": "lp++"},
    "CLIPFit": {"name": "clipfit"},
    "BBF": {"name": "bbf"},
    "Baseline": {"name": "baseline"},
    "ADU": {"name": "adu"},
}

# InstaPG alone has neither term of the domain disentangling loss; see adu/README.md.
ABLATION: dict[str, dict[str, Any]] = {
    "Baseline": {"name": "baseline"},
    "InstaPG": {"name": "adu", "gamma": 0.0, "lambda": 0.0},
    "DDL": {"name": "adu", "instapg": False},
    "InstaPG + CE": {"name": "adu", "lambda": 0.0},
    "InstaPG + MMD": {"name": "adu", "gamma": 0.0},
    "All": {"name": "adu"},
}

# Around the paper's defaults, over several decades: the weights that work depend on the model.
GAMMAS = (0.03, 0.3, 3.0, 30.0)
LAMBDAS = (0.1, 1.0, 10.0, 30.0)
DEPTHS = (1, 2, 3, 4, 6, 9, 12)

# Published H, Mem, For in %, ViT-B/16, 8 shots, |D_forget| = 1 (arXiv 2510.08132).
Published = Mapping[str, tuple[float | None, float | None, float | None]]
PUBLISHED: dict[tuple[str, str], Published] = {
    ("main", "imagenet"): {
        "LP++": (50.69, None, None),
        "CLIPFit": (71.31, None, None),
        "BBF": (45.56, None, None),
        "Baseline": (74.66, None, None),
        "ADU": (77.02, None, None),
    },
    ("main", "office_home"): {
        "LP++": (30.46, None, None),
        "CLIPFit": (43.44, None, None),
        "BBF": (31.25, None, None),
        "Baseline": (52.59, 79.96, 39.88),
        "ADU": (69.96, 77.93, 64.34),
    },
    ("main", "mini_domainnet"): {
        "LP++": (31.73, None, None),
        "CLIPFit": (53.56, None, None),
        "BBF": (32.12, None, None),
        "Baseline": (62.07, None, None),
        "ADU": (75.56, None, None),
    },
    ("ablation", "office_home"): {
        "Baseline": (52.59, 79.96, 39.88),
        "InstaPG": (56.41, 83.55, 44.05),
        "DDL": (60.82, 74.51, 51.72),
        "InstaPG + CE": (64.01, 82.97, 53.62),
        "InstaPG + MMD": (68.62, 82.41, 59.47),
        "All": (69.96, 77.93, 64.34),
    },
}


@dataclass(frozen=True)
class Row:
    """A row of a table: one configuration, run on every forget set of one size, with every seed.

    Attributes:
        label: Its name, unique within the table.
        size: Domains in each forget set.
        method: The method's configuration, laid over the user's for ADU.
        published: H, Mem and For of the paper, where it has them.
    """

    label: str
    size: int
    method: Mapping[str, Any] = field(default_factory=dict)
    published: tuple[float | None, float | None, float | None] = (None, None, None)

    def forget_sets(self, domains: Sequence[str]) -> list[tuple[str, ...]]:
        """The forget sets that it is averaged over."""
        return list(combinations(domains, self.size))


def table_rows(table: str, data_set: str, n_domains: int, n_blocks: int) -> list[Row]:
    """The rows of one of `TABLES`.

    Raises:
        UserError: If there is no such table.
    """
    if table not in TABLES:
        raise UserError(f"table '{table}': unknown (known: {', '.join(TABLES)})")
    published = PUBLISHED.get((table, data_set.lower().replace("-", "_")), {})
    nothing = (None, None, None)
    if table == "main":
        return [
            Row(f"{label}, {size} of {n_domains}", size, method, published.get(label, nothing))
            if size == 1
            else Row(f"{label}, {size} of {n_domains}", size, method)
            for size in range(1, n_domains)
            for label, method in MAIN.items()
        ]
    if table == "ablation":
        return [
            Row(label, 1, method, published.get(label, nothing))
            for label, method in ABLATION.items()
        ]
    if table == "sensitivity":
        gammas = [Row(f"gamma {value:g}", 1, {"name": "adu", "gamma": value}) for value in GAMMAS]
        lambdas = [
            Row(f"lambda {value:g}", 1, {"name": "adu", "lambda": value}) for value in LAMBDAS
        ]
        return gammas + lambdas
    # An InstaPG block needs a prompted one before it: depth 1 is without.
    depths = [depth for depth in DEPTHS if depth <= n_blocks]
    return [
        Row(f"depth {depth}", 1, {"name": "adu", "depth": depth, "instapg": depth > 1})
        for depth in depths
    ]


TABLES = ("main", "ablation", "sensitivity", "depth")
