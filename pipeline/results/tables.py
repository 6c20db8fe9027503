"""The paper's tables: which runs stand in them, and what was published."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from statistics import mean, stdev
from typing import Any

from adu.errors import UserError
from adu.methods.adu import AduConfig

# The paper's defaults for ADU, and Baseline and zero-shot in the words of `adu.methods`.
MAIN: dict[str, dict[str, Any]] = {
    "Zero-shot": {"name": "zero_shot"},
    "LP++": {"name": "lp++"},
    "CLIPFit": {"name": "clipfit"},
    "BBF": {"name": "bbf"},
    "CoOp": {"name": "coop"},
    "MaPLe": {"name": "maple"},
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

# What else lowers an accuracy, beside what is said to unlearn: each part alone, no training at all.
CONTROLS: dict[str, dict[str, Any]] = {
    "Nothing trained": {"name": "zero_shot"},
    "Null space, no training": {"name": "null_space"},
    "Linear probe": {"name": "lp++"},
    "L_forget alone": {"name": "baseline", "memorize_weight": 0.0},
    "NegGrad": {"name": "baseline", "forget_loss": "neggrad"},
    "DDL alone": {"name": "adu", "instapg": False, "memorize_weight": 0.0, "forget_weight": 0.0},
    "Baseline": MAIN["Baseline"],
    "ADU": MAIN["ADU"],
}

# Around the paper's defaults, over several decades: the weights that work depend on the model.
GAMMAS = (0.03, 0.3, 3.0, 30.0)
LAMBDAS = (0.1, 1.0, 10.0, 30.0)
DEPTHS = (1, 2, 3, 4, 6, 9, 12)
SHOTS = (1, 2, 4, 8, 16)

# What the paper leaves open, each on top of the defaults; InstaPG's blocks are added to them.
GAPS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "InstaPG alone": {"instapg_residual": False},
    "InstaPG added": {"instapg_mode": "add"},
    "median kernel": {"mmd_kernel": "gaussian_median"},
    "Laplace kernel": {"mmd_kernel": "laplace"},
    "linear kernel": {"mmd_kernel": "linear"},
    "width / 4": {"mmd_bandwidth": 0.25},
    "width x 4": {"mmd_bandwidth": 4.0},
    "unbiased MMD": {"mmd_estimator": "unbiased"},
}

# Whether features tell the domains, before and after.
PROBED = {label: MAIN[label] for label in ("Zero-shot", "Baseline", "ADU")}

# The tables of a row a method and size of forget set: of the main one all sizes unless asked
# otherwise, of the others one domain.
BY_METHOD = {"main": MAIN, "ablation": ABLATION, "domain-accuracy": PROBED, "controls": CONTROLS}

METHODS = MAIN | ABLATION | CONTROLS

# Published figures in %, ViT-B/16, 8 shots (arXiv 2510.08132), by table, data set and size of the
# forget set. The paper's other tables are curves, without figures to stand beside.
Published = Mapping[str, Mapping[str, float]]
PUBLISHED: dict[tuple[str, str, int], Published] = {
    ("main", "imagenet", 1): {
        "LP++": {"h": 50.69},
        "CLIPFit": {"h": 71.31},
        "BBF": {"h": 45.56},
        "Baseline": {"h": 74.66},
        "ADU": {"h": 77.02},
    },
    ("main", "office_home", 1): {
        "LP++": {"h": 30.46},
        "CLIPFit": {"h": 43.44},
        "BBF": {"h": 31.25},
        "Baseline": {"h": 52.59, "mem": 79.96, "for": 39.88},
        "ADU": {"h": 69.96, "mem": 77.93, "for": 64.34},
    },
    ("main", "office_home", 3): {
        "Baseline": {"h": 59.47},
        "ADU": {"h": 75.89, "mem": 72.15, "for": 80.77},
    },
    ("main", "mini_domainnet", 1): {
        "LP++": {"h": 31.73},
        "CLIPFit": {"h": 53.56},
        "BBF": {"h": 32.12},
        "Baseline": {"h": 62.07},
        "ADU": {"h": 75.56},
    },
    ("ablation", "office_home", 1): {
        "Baseline": {"h": 52.59, "mem": 79.96, "for": 39.88},
        "InstaPG": {"h": 56.41, "mem": 83.55, "for": 44.05},
        "DDL": {"h": 60.82, "mem": 74.51, "for": 51.72},
        "InstaPG + CE": {"h": 64.01, "mem": 82.97, "for": 53.62},
        "InstaPG + MMD": {"h": 68.62, "mem": 82.41, "for": 59.47},
        "All": {"h": 69.96, "mem": 77.93, "for": 64.34},
    },
    ("domain-accuracy", "office_home", 1): {
        "Zero-shot": {"domain_accuracy": 25.80},
        "ADU": {"domain_accuracy": 79.43},
    },
}

# What a table shows of a row, and the head of its column.
METRICS = {"h": "H", "mem": "Mem", "for": "For"}
METRICS_BY_TABLE = {"domain-accuracy": {"domain_accuracy": "domain told", **METRICS}}


@dataclass(frozen=True)
class Row:
    """A row of a table: one configuration, run on every forget set of one size, with every seed.

    Attributes:
        label: Its name, unique within the table.
        size: Domains in each forget set.
        method: The method's configuration, laid over the user's for ADU.
        shots: Training images of each class and domain; None: as many as the user says.
        train: Options of the training, laid over the user's.
        published: The paper's figures by metric, where it has them.
        base: Label of the row that it is compared with, run by run.
    """

    label: str
    size: int
    method: Mapping[str, Any] = field(default_factory=dict)
    shots: int | None = None
    train: Mapping[str, Any] = field(default_factory=dict)
    published: Mapping[str, float] = field(default_factory=dict)
    base: str | None = None

    def forget_sets(self, domains: Sequence[str]) -> list[tuple[str, ...]]:
        """The forget sets that it is averaged over."""
        return list(combinations(domains, self.size))


def mean_and_spread(values: Sequence[float], digits: int = 1) -> str:
    """What is shown of a figure that every seed has one of: mean ± standard deviation."""
    spread = f" ± {stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{mean(values):.{digits}f}{spread}"


def table_rows(
    table: str,
    data_set: str,
    n_domains: int,
    n_blocks: int,
    sizes: Sequence[int] | None = None,
    only: Sequence[str] | None = None,
) -> list[Row]:
    """The rows of one of `TABLES`.

    Args:
        table: Its name.
        data_set: Name of the data set, which decides whether there are published figures.
        n_domains: Domains of the data set.
        n_blocks: Blocks of the image tower, for the tables that vary which of them have prompts.
        sizes: Domains in each forget set; None: as the table has it.
        only: Which rows, by what their labels begin with; None: all.

    Raises:
        UserError: If there is no such table, size or row.
    """
    if table not in TABLES:
        raise UserError(f"table '{table}': unknown (known: {', '.join(TABLES)})")
    allowed = range(1, n_domains) if table in BY_METHOD else (1,)
    wanted = (allowed if table == "main" else (1,)) if sizes is None else sorted(set(sizes))
    for size in wanted:
        if size not in allowed:
            known = ", ".join(map(str, allowed))
            raise UserError(
                f"forget sets of {size} domains: the {table} table has none (its sizes: {known})"
            )
    if table not in BY_METHOD:
        return _only(_curve(table, n_blocks), only, table)
    name = data_set.lower().replace("-", "_")
    rows = []
    for size in wanted:
        published = PUBLISHED.get((table, name, size), {})
        suffix = f", {size} of {n_domains}" if table == "main" or size > 1 else ""
        for label, method in BY_METHOD[table].items():
            # What domains are told by is no matter of H.
            base = None if table == "domain-accuracy" else _baseline(label, suffix)
            its = published.get(label, {})
            rows.append(Row(f"{label}{suffix}", size, method, published=its, base=base))
    return _only(rows, only, table)


def compared_with(rows: Sequence[Row], name: str) -> list[Row]:
    """The rows, each compared with the one of this name that has the same size and shots.

    Raises:
        UserError: If there is none.
    """
    bases = {(row.size, row.shots): row.label for row in rows if _is_called(row, name)}
    if not bases:
        labels = ", ".join(f"'{row.label}'" for row in rows)
        raise UserError(f"versus: there is no row called '{name}' (there are {labels})")
    found = []
    for row in rows:
        base = bases.get((row.size, row.shots))
        found.append(replace(row, base=base if base != row.label else None))
    return found


def _only(rows: list[Row], names: Sequence[str] | None, table: str) -> list[Row]:
    """The rows of these names, in the table's order."""
    for name in names or ():
        if not any(_is_called(row, name) for row in rows):
            labels = ", ".join(f"'{row.label}'" for row in rows)
            raise UserError(f"rows: the {table} table has none called '{name}' (it has {labels})")
    if names is None:
        return rows
    return [row for row in rows if any(_is_called(row, name) for name in names)]


def _is_called(row: Row, name: str) -> bool:
    return row.label == name or row.label.startswith(f"{name}, ")


def _baseline(label: str, rest: str = "") -> str | None:
    """The label of the Baseline's row; none where nothing is trained, or for itself."""
    compared = label != "Baseline" and METHODS[label]["name"] != "zero_shot"
    return f"Baseline{rest}" if compared else None


def _curve(table: str, n_blocks: int) -> list[Row]:
    """The rows of a table along one option."""
    if table == "shots":
        return [
            Row(
                f"{label}, {shots} shots",
                1,
                MAIN[label],
                shots=shots,
                base=_baseline(label, f", {shots} shots"),
            )
            for shots in SHOTS
            for label in ("Baseline", "ADU")
        ]
    if table == "sensitivity":
        gammas = [Row(f"gamma {value:g}", 1, {"name": "adu", "gamma": value}) for value in GAMMAS]
        lambdas = [
            Row(f"lambda {value:g}", 1, {"name": "adu", "lambda": value}) for value in LAMBDAS
        ]
        return gammas + lambdas
    if table == "gaps":
        depth = AduConfig().depth_in(n_blocks)
        blocks = sorted({max(1, depth // 2), max(1, depth - 1), 1})
        options = GAPS | {f"InstaPG in block {i}": {"instapg_layer": i} for i in blocks}
        rows = [Row(label, 1, {"name": "adu", **method}) for label, method in options.items()]
        rows.append(Row("plain batches", 1, {"name": "adu"}, train={"sampling": "plain"}))
        return [rows[0], *(replace(row, base=rows[0].label) for row in rows[1:])]
    # An InstaPG block needs a prompted one before it: depth 1 is without.
    return [
        Row(f"depth {depth}", 1, {"name": "adu", "depth": depth, "instapg": depth > 1})
        for depth in DEPTHS
        if depth <= n_blocks
    ]


TABLES = (*BY_METHOD, "sensitivity", "shots", "depth", "gaps")
