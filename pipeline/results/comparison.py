"""How sure a search can be of what it found, in figures and in words.

Test figures are compared seed by seed: the same seed draws the same batches for both, so that the
difference varies less than either. Points of H are hundredths.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean, stdev, variance

from scipy.special import stdtrit

from adu.evaluation.metrics import Scores
from pipeline.names import forget_name
from pipeline.studies.goal import kept_accuracy, least_mem
from pipeline.studies.records import SEARCHED, FinalRecord, StudyRecord, TrialRecord
from pipeline.studies.selection import best_seed

CONFIDENCE = 0.95

# Of zero-shot's Mem: what a model should keep at least where a search does not say.
KEPT_SHARE = "80%"

# What else a search is compared with, beside the defaults that it started from.
OTHERS = {"paper": "the paper's own", "baseline": "the Baseline"}

# So many trials are too few to tell from their course whether more would help.
FEW_TRIALS = 5


@dataclass(frozen=True)
class Difference:
    """Points of test H by which the search beat something else.

    Attributes:
        by_seed: Those of every seed that both have.
    """

    by_seed: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Over the seeds."""
        return mean(self.by_seed)

    @property
    def interval(self) -> tuple[float, float] | None:
        """Student's interval of the mean at `CONFIDENCE`; None for one seed."""
        n = len(self.by_seed)
        if n < 2:
            return None
        half = float(stdtrit(n - 1, (1 + CONFIDENCE) / 2)) * stdev(self.by_seed) / n**0.5
        return self.mean - half, self.mean + half

    def __str__(self) -> str:
        n = len(self.by_seed)
        seeds = f"{n} seed{'s' * (n > 1)}"
        if self.interval is None:
            return f"{self.mean:+.1f} points of H, {seeds}"
        low, high = self.interval
        interval = f"{100 * CONFIDENCE:g} % interval {low:+.1f} to {high:+.1f}"
        return f"{self.mean:+.1f} points of H, {interval}, {seeds}"


def difference(study: StudyRecord, stage: str) -> Difference | None:
    """What the search is ahead of another stage by; None if they have no seed in common."""
    if "best" not in study.finals or stage not in study.finals:
        return None
    ours, theirs = (_h_by_seed(study.finals[name]) for name in ("best", stage))
    gains = tuple(100 * (ours[seed] - theirs[seed]) for seed in ours if seed in theirs)
    return Difference(gains) if gains else None


def judgement(gains: Sequence[float], against: str = "the paper's defaults") -> str:
    """Whether points of H, seed by seed, are better than something else; in words."""
    gain = Difference(tuple(gains))
    if gain.mean <= 0:
        return f"did NOT beat {against}"
    if gain.interval is not None and gain.interval[0] <= 0:
        return f"beat {against} by less than is certain"
    return f"beat {against}"


def defaults_named(recipe: str | None) -> str:
    """What a search starts from, as a person reads it."""
    return f"the defaults of recipe '{recipe}'" if recipe else "the paper's defaults"


def noise(study: StudyRecord) -> float | None:
    """Standard deviation of H over seeds in points, pooled; None if nothing has two seeds.

    Of all configurations that were run with several: on validation images those of the race, on
    test images the final ones.
    """
    groups = [[look.h for look in trial.looks] for trial in study.trials]
    groups += [[scores.h for scores in final.test_by_seed] for final in study.finals.values()]
    groups = [group for group in groups if len(group) > 1]
    freedom = sum(len(group) - 1 for group in groups)
    if not freedom:
        return None
    pooled: float = sum((len(group) - 1) * variance(group) for group in groups) / freedom
    return 100 * pooled**0.5


def within_noise(study: StudyRecord) -> tuple[int, int] | None:
    """How many configurations were no further from the winner than the noise, and of how many.

    Counted are trials that were not stopped early, by their mean validation H; the winner is one
    of them. What breaks a constraint is as good as none.
    """
    spread, best = noise(study), study.best
    if spread is None or best is None or best.mean is None:
        return None
    keeping = [trial for trial in _complete(study) if study.goal.missed(*trial.looks) == 0]
    means = [100 * trial.mean.h for trial in keeping if trial.mean]
    return sum(h >= 100 * best.mean.h - spread for h in means), len(means)


def lost(study: StudyRecord, final: FinalRecord) -> bool:
    """Whether a model's Mem is below what was asked for, or else below `KEPT_SHARE`.

    Or that of one of the domains to keep, which the mean over all of them may hide.
    """
    zero_shot = study.finals.get("zero_shot")
    if final.test is None or zero_shot is None or zero_shot.test is None:
        return False
    least = least_mem(study.goal.min_mem or KEPT_SHARE, zero_shot.test.mem)
    return (least is not None and final.test.mem < least) or bool(lost_domains(study, final.test))


def lost_domains(study: StudyRecord, test: Scores) -> list[str]:
    """The domains to keep on which a model has lost too much of zero-shot's accuracy.

    One that is like the forget domain may go with it.
    """
    zero_shot = study.finals.get("zero_shot")
    if zero_shot is None or zero_shot.test is None:
        return []
    asked = study.goal.min_mem
    share: float | str = asked if isinstance(asked, str) else KEPT_SHARE
    if study.goal.min_mem_each is not None:
        share = study.goal.min_mem_each
    untouched = kept_accuracy(zero_shot.test, study.forget)
    return [
        domain
        for domain, accuracy in kept_accuracy(test, study.forget).items()
        if accuracy < (least_mem(share, untouched[domain]) or 0)
    ]


def verdict(study: StudyRecord) -> str:
    """What came of a study, how sure that is and whether more would help, in a few sentences."""
    name = forget_name(study.forget)
    best = study.finals.get("best")
    if best is None or best.test is None:
        return f"{name}: no model to judge it by."
    gains = [_gain(study)]
    for stage, other in OTHERS.items():
        if further := difference(study, stage):
            gains.append(f"it {judgement(further.by_seed, other)} ({further})")
    said = f"{name}: {'; '.join(gains)}"
    sentences = [said, *_missed(study), *_handed_out(study), *_certainty(study), outlook(study)]
    if lost(study, best):
        domains = lost_domains(study, best.test)
        which = f": {', '.join(domains)}" if domains else ""
        sentences.append(f"It LOST what it should keep{which}")
    return ". ".join(sentences) + "."


def outlook(study: StudyRecord) -> str:
    """Whether more trials are likely to help, by what the last third of them has brought."""
    ended = [trial for trial in study.trials if trial.val is not None]
    early, spread = ended[: len(ended) - len(ended) // 3], noise(study)
    best_early, best = _best_merit(study, early), _best_merit(study, ended)
    if best_early is None and best is not None and (limits := study.goal.limits):
        return (
            "More trials are likely to help: none but the last third of them kept to "
            f"{' and '.join(limits)}"
        )
    if len(ended) < FEW_TRIALS or spread is None or best_early is None or best is None:
        return "Whether more trials would help cannot be told yet"
    gain = 100 * (best - best_early)
    if gain > spread:
        return f"More trials are likely to help: the last third of them brought {gain:.1f} points"
    return (
        "More trials are not likely to help: the last third of them brought nothing beyond the "
        "noise; more epochs or seeds may"
    )


def _gain(study: StudyRecord) -> str:
    gain = difference(study, "paper_defaults")
    if gain is None:
        return "the search was not tested against its defaults"
    best, first = study.finals["best"], study.finals["paper_defaults"]
    named = defaults_named(getattr(first.run.method, "recipe", None))
    if best.run == first.run:
        return f"the search found nothing better than {named} and chose them"
    return f"the search {judgement(gain.by_seed, named)} ({gain})"


def _missed(study: StudyRecord) -> list[str]:
    """That nothing kept to what was asked for, if so: the choice is then the least bad."""
    if study.best is None or not study.goal.missed(*study.best.looks):
        return []
    return [
        f"No configuration kept to {' and '.join(study.goal.limits)} on validation images, and the "
        "one that was off the least was chosen"
    ]


def handed_out(study: StudyRecord) -> tuple[int, Scores] | None:
    """Which of the best configuration's seeds has the model to take, and its test scores."""
    finals = [study.finals[stage] for stage in SEARCHED if stage in study.finals]
    looks = [look for final in finals for look in final.val_by_seed]
    if not looks:
        return None
    place = best_seed(looks, study.goal)
    seeds = [seed for final in finals for seed in final.seeds]
    return seeds[place], [test for final in finals for test in final.test_by_seed][place]


def _handed_out(study: StudyRecord) -> list[str]:
    found = handed_out(study)
    if found is None:
        return []
    seed, test = found
    said = (
        f"The model to take is seed {seed}'s, the best on validation images: H {100 * test.h:.1f}"
    )
    if domains := lost_domains(study, test):
        shares = [f"{domain} ({100 * test.accuracy_by_domain[domain]:.0f} %)" for domain in domains]
        said += f"; it has LOST {', '.join(shares)}"
    return [said]


def _certainty(study: StudyRecord) -> list[str]:
    spread, near = noise(study), within_noise(study)
    if spread is None or near is None:
        return []
    said = f"H varies by {spread:.1f} points over seeds"
    n_near, n_keeping = near
    if n_keeping:
        said += f"; {n_near} of {n_keeping} whole trials were within that of the winner"
    return [said]


def _best_merit(study: StudyRecord, trials: Sequence[TrialRecord]) -> float | None:
    """The best first look of those that keep to what is asked for.

    A trial that was stopped early counts as one that was worse.
    """
    looks = [trial.val for trial in trials if trial.val and trial.state == "complete"]
    merits = [study.goal.merit(look) for look in looks if not study.goal.missed(look)]
    return max(merits, default=None)


def _complete(study: StudyRecord) -> list[TrialRecord]:
    return [trial for trial in study.trials if trial.state == "complete"]


def _h_by_seed(final: FinalRecord) -> dict[int, float]:
    runs = final.test_by_seed or ((final.test,) if final.test else ())
    return dict(zip(final.seeds, (scores.h for scores in runs), strict=True))
