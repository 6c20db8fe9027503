"""What a battery comes to: what is left of a domain, how far a model is from one that never saw it.

**Residual** of one variant of an attack: where the accuracy that it gets out of the model stands
between what it gets out of a model that never saw the domain (0) and out of the untouched one (1),

    r = (a_model - a_floor) / (a_untouched - a_floor),   cut off at 0 and 1.

The floor is a model pre-trained without the domain if there is one, and else one that knows
nothing; the second is lower, since a model that never saw sketches may still guess some. Variants
in which the two ends are less than `LEAST_ROOM` apart say nothing and are left out.

**Distance** of a model: the mean over attacks of the mean over their variants, 0 for a model that
never saw the domain and 1 for the untouched one. Each attack counts the same, however many
variants it has. **Worst**: the variant with the largest residual; the verdict goes by it, since
whoever wants the domain back tries them all.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, stdev

from scipy.special import stdtrit

from adu.evidence.bench import Outcome
from adu.evidence.references import KNOWS_NOTHING, NEVER_SAW, UNTOUCHED

# The smallest gap of accuracy between the untouched model and the floor that says something.
LEAST_ROOM = 0.4
# Up to this residual a domain counts as gone, from this on as untouched.
GONE = 0.2
NOTHING_GONE = 0.9
# A model below this share of the untouched one's accuracy on kept domains has lost them, too.
KEEPS = 0.5
CONFIDENCE = 0.95

# An attack's name and the name of one of its variants.
Variant = tuple[str, str]


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds and, of at least two, Student's interval at `CONFIDENCE`.

    Attributes:
        mean: The mean.
        half_width: Half of the interval; None with one seed.
        n: Number of seeds.
    """

    mean: float
    half_width: float | None
    n: int

    @property
    def high(self) -> float:
        """The upper end, or the mean where there is no interval."""
        return self.mean + (self.half_width or 0.0)


@dataclass(frozen=True)
class Standing:
    """What is left of the domain in one model.

    Attributes:
        label: The model's.
        distance: From a model that never saw the domain; see above.
        by_attack: Residuals of each attack, the mean over its variants.
        worst: The variant that gets most out of it, and its residual; None if none says anything.
        kept: Accuracy on the kept domains.
    """

    label: str
    distance: Estimate
    by_attack: dict[str, Estimate]
    worst: tuple[Variant, Estimate] | None
    kept: Estimate


def estimate(values: Sequence[float]) -> Estimate:
    """Mean and interval of the figures of some seeds."""
    n = len(values)
    if n < 2:
        return Estimate(mean(values), None, n)
    quantile = float(stdtrit(n - 1, (1 + CONFIDENCE) / 2))
    return Estimate(mean(values), quantile * stdev(values) / math.sqrt(n), n)


def accuracies(outcomes: Iterable[Outcome]) -> dict[str, dict[int, dict[Variant, float]]]:
    """What was got out of every model, by label, seed and variant."""
    found: dict[str, dict[int, dict[Variant, float]]] = {}
    for outcome in outcomes:
        its = found.setdefault(outcome.label, {}).setdefault(outcome.seed, {})
        for name, value in outcome.figures.recovered.items():
            its[outcome.attack, name] = value
    return found


def standings(outcomes: Sequence[Outcome]) -> dict[str, Standing]:
    """What is left of the domain in each model, by label."""
    found = accuracies(outcomes)
    floor = found[NEVER_SAW if NEVER_SAW in found else KNOWS_NOTHING]
    ends = {
        variant: (_mean_of(floor, variant), _mean_of(found[UNTOUCHED], variant))
        for variant in next(iter(found[UNTOUCHED].values()))
        if all(variant in its for its in floor.values())
    }
    ends = {variant: (a, b) for variant, (a, b) in ends.items() if b - a >= LEAST_ROOM}
    kept = _kept(outcomes)
    return {label: _standing(label, by_seed, ends, kept[label]) for label, by_seed in found.items()}


def residual(accuracy: float, floor: float, untouched: float) -> float:
    """Where an accuracy stands between the two ends, from 0 to 1."""
    return min(1.0, max(0.0, (accuracy - floor) / (untouched - floor)))


def _standing(
    label: str,
    by_seed: Mapping[int, Mapping[Variant, float]],
    ends: Mapping[Variant, tuple[float, float]],
    kept: Sequence[float],
) -> Standing:
    residuals = [
        {
            variant: residual(accuracy, *ends[variant])
            for variant, accuracy in its.items()
            if variant in ends
        }
        for its in by_seed.values()
    ]
    names = list(dict.fromkeys(attack for attack, _ in residuals[0]))
    by_attack = [{name: _mean_of_attack(its, name) for name in names} for its in residuals]
    worst = max(residuals[0], key=lambda v: mean(its[v] for its in residuals), default=None)
    return Standing(
        label,
        estimate([mean(its.values()) if its else 1.0 for its in by_attack]),
        {name: estimate([its[name] for its in by_attack]) for name in names},
        None if worst is None else (worst, estimate([its[worst] for its in residuals])),
        estimate(kept),
    )


def verdict(standing: Standing, untouched: Standing, titles: Mapping[str, str]) -> str:
    """The sentence at the top of the page.

    Args:
        standing: The model's.
        untouched: The untouched model's.
        titles: What attacks are called, by name.
    """
    if standing.worst is None:
        return "Nothing can be said: the untouched model hardly knows the domain."
    (attack, variant), worst = standing.worst
    asked = standing.by_attack.get("asked")
    left = f"{100 * worst.mean:.0f} % of what the untouched model knows of it"
    how = f"{titles[attack]} ({variant})"
    if standing.kept.mean < KEEPS * untouched.kept.mean:
        kept = f"{100 * standing.kept.mean:.0f} % against {100 * untouched.kept.mean:.0f} %"
        return f"Destroyed: the model has lost the kept domains as well (accuracy {kept})."
    if worst.high <= GONE:
        return f"Forgotten, as far as was tested: the strongest attack, {how}, gets {left}."
    if asked is None or asked.mean >= NOTHING_GONE:
        return f"Not forgotten: {how} gets {left}, and so does the plain question."
    return (
        f"Suppressed, not forgotten: asked as trained, the model shows {100 * asked.mean:.0f} % of "
        f"what the untouched one knows of the domain; {how} gets {left}."
    )


def steps_to_half(
    curve: Sequence[tuple[int, float]], before: float, untouched: float
) -> int | None:
    """Steps until half of the lost accuracy is back.

    Args:
        curve: Steps and accuracy.
        before: Accuracy of the model.
        untouched: Accuracy of the untouched model, of which the model has lost a part.

    Returns:
        The first step that was tested; None if it did not come back.
    """
    half = before + (untouched - before) / 2
    return next((step for step, accuracy in curve if accuracy >= half), None)


def _mean_of(by_seed: Mapping[int, Mapping[Variant, float]], variant: Variant) -> float:
    return mean(its[variant] for its in by_seed.values())


def _mean_of_attack(residuals: Mapping[Variant, float], attack: str) -> float:
    return mean(value for (name, _), value in residuals.items() if name == attack)


def _kept(outcomes: Sequence[Outcome]) -> dict[str, list[float]]:
    kept: dict[str, list[float]] = {}
    for outcome in outcomes:
        if outcome.attack == "collateral":
            kept.setdefault(outcome.label, []).append(outcome.figures.others["kept accuracy"])
    return kept
