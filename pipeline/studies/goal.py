"""What a study searches for, as one number: its merit, which everything that compares follows.

Sampler, early stopping, race and choice see the same number. With a constraint, a model that breaks
it is worth less than any that does not, the less the further it is off, so that a search among
such models still finds its way out.
"""

from __future__ import annotations

import ast
import contextlib
import itertools
import math
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from statistics import mean
from typing import Annotated

from pydantic import AfterValidator

from adu.data.forget import forget_domains
from adu.errors import UserError
from adu.evaluation.metrics import Scores, harmonic_mean
from pipeline.studies.imported import imported

# Measured after a trial's last epoch, of trials whose objective names it.
DISTANCE = "distance"

METRICS = ("h", "mem", "for", DISTANCE)

# Two objectives of Optuna's, with their Pareto front; what else compares follows H.
FRONT = "mem_for"

OPERATORS: dict[type[ast.operator], Callable[[float, float], float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}
FUNCTIONS: dict[str, Callable[..., float]] = {"min": min, "max": max}

LONGEST_EXPRESSION = 200

# An objective is looked at where Mem and For are multiples of one over this.
LATTICE = 20

# A share of an accuracy may be off by a bit.
ROUNDING = 1e-9

Objective = Callable[[Mapping[str, float]], float]


def parse_objective(text: str) -> Objective:
    """What an objective gives for the metrics of a run.

    Args:
        text: An expression such as ``0.7*mem+0.3*for``, with `METRICS`, numbers, ``+ - * /``,
            ``min`` and ``max``; or ``package.module:function``, given h, mem and for by name.

    Raises:
        ValueError: If it is neither, or not a finite number for every Mem and For.
    """
    return _parsed(text)[0]


def _checked_objective(text: str) -> str:
    parse_objective(text)
    return text


def _checked_least(value: float | str) -> float | str:
    # A flag's value is text.
    with contextlib.suppress(ValueError):
        value = float(value)
    least = _share(value) if isinstance(value, str) else value
    if not 0 <= least <= 1:
        raise ValueError("must be from 0 to 1, or from 0% to 100% of zero-shot's")
    return value


ObjectiveText = Annotated[str, AfterValidator(_checked_objective)]

# A fraction, or a share of what zero-shot has, such as 80%.
Least = Annotated[float | str, AfterValidator(_checked_least)]


@dataclass(frozen=True)
class Goal:
    """What a study searches for.

    Attributes:
        objective: See `parse_objective`; or `FRONT`.
        min_mem: The least Mem: a fraction, or a share of zero-shot's such as ``80%``.
        max_forget_accuracy: The highest accuracy on the forget domains.
        zero_shot_mem: Mem of the untouched model on the validation images, once it is known.
        min_mem_each: The least accuracy on each domain to keep, as `min_mem`.
        zero_shot_kept: Zero-shot's accuracy there (see `kept_accuracy`), once it is known.
    """

    objective: str = "h"
    min_mem: float | str | None = None
    max_forget_accuracy: float | None = None
    zero_shot_mem: float | None = None
    min_mem_each: float | str | None = None
    zero_shot_kept: Mapping[str, float] | None = None

    @property
    def lacks_zero_shot(self) -> bool:
        """Whether nothing can be compared before zero-shot's scores are known."""
        lacks_mem = isinstance(self.min_mem, str) and self.zero_shot_mem is None
        # Which domains there are to keep is known from it, too.
        return lacks_mem or (self.min_mem_each is not None and self.zero_shot_kept is None)

    @property
    def least_mem(self) -> float | None:
        """The least Mem as a fraction."""
        return least_mem(self.min_mem, self.zero_shot_mem)

    @property
    def least_by_domain(self) -> dict[str, float]:
        """The least accuracy on each domain to keep, where there is one, as a fraction."""
        untouched = self.zero_shot_kept or {}
        least = {domain: least_mem(self.min_mem_each, had) for domain, had in untouched.items()}
        return {domain: asked for domain, asked in least.items() if asked is not None}

    def beside(self, zero_shot: Scores | None, forget: Sequence[str]) -> Goal:
        """The same where the untouched model's scores for a forget set are known, or None."""
        if zero_shot is None:
            return replace(self, zero_shot_mem=None, zero_shot_kept=None)
        kept = kept_accuracy(zero_shot, forget)
        return replace(self, zero_shot_mem=zero_shot.mem, zero_shot_kept=kept)

    @property
    def limits(self) -> list[str]:
        """Which constraints there are, as a person sets them."""
        names = ("min_mem", "min_mem_each", "max_forget_accuracy")
        return [f"search.{name}" for name in names if getattr(self, name) is not None]

    @property
    def measures_distance(self) -> bool:
        """Whether it is searched for by the distance of `adu.evidence.distance`."""
        return _names_distance(self.objective)

    def merit(self, *looks: Scores) -> float:
        """What a configuration is worth, by its scores with each seed.

        Feasible ones are worth the mean of their objective, infeasible ones less than the
        objective's lowest value, by how far their means miss. Where the objective names
        a distance that is not known, H stands in for it.
        """
        is_known = all(look.distance is not None for look in looks)
        by_h = self.measures_distance and not is_known
        objective, lowest = _parsed("h" if by_h else self.objective)
        missed = self.missed(*looks)
        if missed > 0:
            return lowest - missed
        # Not below what the lattice has found, under which infeasible ones lie.
        return mean(max(objective(look.as_dict()), lowest) for look in looks)

    def between(self, look: Scores) -> float:
        """What a run is worth to whoever compares epochs: no distance is known between them."""
        return self.merit(replace(look, distance=None))

    def missed(self, *looks: Scores) -> float:
        """How far the mean scores are from what is asked for, all constraints together."""
        missed = 0.0
        if self.least_mem is not None:
            missed += max(self.least_mem - mean(look.mem for look in looks), 0.0)
        for domain, least in self.least_by_domain.items():
            missed += max(least - mean(_accuracy(look, domain) for look in looks), 0.0)
        if self.max_forget_accuracy is not None:
            kept = 1 - mean(look.for_ for look in looks)
            missed += max(kept - self.max_forget_accuracy, 0.0)
        return missed if missed > ROUNDING else 0.0

    def values(self, val: Scores) -> list[float]:
        """What Optuna is told of a trial: its merit, or Mem and For.

        Of two objectives, an infeasible trial gets values that every feasible one surpasses.
        """
        if self.objective != FRONT:
            return [self.merit(val)]
        missed = self.missed(val)
        return [-missed, -missed] if missed > 0 else [val.mem, val.for_]

    @property
    def n_objectives(self) -> int:
        """How many values Optuna is told."""
        return 2 if self.objective == FRONT else 1


def kept_accuracy(scores: Scores, forget: Sequence[str]) -> dict[str, float]:
    """Accuracy on each domain to keep: those of which nothing is forgotten.

    Args:
        scores: Of a model.
        forget: The forget set.
    """
    by_domain = scores.accuracy_by_domain
    touched = forget_domains(forget, list(by_domain))
    return {domain: value for domain, value in by_domain.items() if domain not in touched}


def _accuracy(look: Scores, domain: str) -> float:
    """What has failed knows no domain."""
    return look.accuracy_by_domain.get(domain, 0.0)


def least_mem(min_mem: float | str | None, zero_shot_mem: float | None) -> float | None:
    """The least Mem as a fraction; see `Goal`."""
    if isinstance(min_mem, str):
        assert zero_shot_mem is not None, "zero-shot was not run"
        return _share(min_mem) * zero_shot_mem
    return min_mem


def _share(text: str) -> float:
    number = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*%\s*", text)
    if number is None:
        raise ValueError("must be a fraction such as 0.8, or a share of zero-shot's such as 80%")
    return float(number[1]) / 100


@cache
def _parsed(text: str) -> tuple[Objective, float]:
    """An objective and its lowest value."""
    if text == FRONT:
        text = "h"
    objective = _imported(text) if ":" in text else _expression(text)
    lowest = math.inf
    steps = [step / LATTICE for step in range(LATTICE + 1)]
    distances = steps if _names_distance(text) else [None]
    for mem, for_, distance in itertools.product(steps, steps, distances):
        metrics = {"h": harmonic_mean(mem, for_), "mem": mem, "for": for_}
        if distance is not None:
            metrics[DISTANCE] = distance
        lowest = min(lowest, _number(objective, metrics))
    return objective, lowest


def _names_distance(text: str) -> bool:
    """Whether an expression does; a function is given none."""
    return ":" not in text and re.search(rf"\b{DISTANCE}\b", text) is not None


def _number(objective: Objective, metrics: Mapping[str, float]) -> float:
    where = f"where mem is {metrics['mem']:g} and for is {metrics['for']:g}"
    try:
        value = float(objective(metrics))
    except (ArithmeticError, TypeError, ValueError, LookupError) as error:
        raise ValueError(f"fails {where} ({error})") from error
    if not math.isfinite(value):
        raise ValueError(f"is {value} {where}, not a finite number")
    return value


def _imported(path: str) -> Objective:
    try:
        found = imported(path, "objective", "must be package.module:function")
    except UserError as error:
        raise ValueError(str(error)) from error
    if not callable(found):
        raise ValueError("is no function")
    return found


def _expression(text: str) -> Objective:
    allowed = f"allowed: {', '.join(METRICS)}, numbers, + - * /, min(), max()"
    if len(text) > LONGEST_EXPRESSION:
        raise ValueError(f"has {len(text)} characters, at most {LONGEST_EXPRESSION}")
    try:
        # To Python, `for` is no name.
        return _compiled(ast.parse(re.sub(r"\bfor\b", "for_", text), mode="eval").body)
    except (SyntaxError, ValueError) as error:
        reason = "is no expression" if isinstance(error, SyntaxError) else str(error)
        raise ValueError(f"{reason} ({allowed})") from error


def _compiled(node: ast.expr) -> Objective:
    """What an expression computes; of Python's syntax nothing but what stands here."""
    match node:
        case ast.Constant(value=int() | float() as number) if not isinstance(number, bool):
            return lambda _: number
        case ast.Name(id=name) if (metric := name.rstrip("_")) in METRICS:
            return lambda metrics: metrics[metric]
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            value = _compiled(operand)
            return lambda metrics: -value(metrics)
        case ast.BinOp(left=left, op=how, right=right) if type(how) in OPERATORS:
            combine, first, second = OPERATORS[type(how)], _compiled(left), _compiled(right)
            return lambda metrics: combine(first(metrics), second(metrics))
        case ast.Call(func=ast.Name(id=name), args=[_, _, *_] as parts, keywords=[]) if (
            name in FUNCTIONS
        ):
            chosen, values = FUNCTIONS[name], [_compiled(part) for part in parts]
            return lambda metrics: chosen(*(value(metrics) for value in values))
    raise ValueError(f"holds '{ast.unparse(node).replace('for_', 'for')}'")
