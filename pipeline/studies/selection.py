"""Which of a study's trials is chosen, and of its seeds, on validation images alone."""

from __future__ import annotations

from collections.abc import Sequence

from adu.evaluation.metrics import Scores
from pipeline.studies.goal import Goal
from pipeline.studies.records import TrialRecord


def best_trial(trials: Sequence[TrialRecord], goal: Goal) -> TrialRecord | None:
    """The chosen trial: among complete ones, else among stopped ones.

    Of those that were run again, only the ones with the most seeds are left (see `Race`); they are
    compared by their means. What was seen once has had luck or not.

    Args:
        trials: A study's trials.
        goal: What is searched for.
    """
    for state in ("complete", "stopped"):
        ranked = ranking([trial for trial in trials if trial.state == state], goal)
        most = max((len(trial.looks) for trial in ranked), default=0)
        for trial in ranked:
            if len(trial.looks) == most:
                return trial
    return None


def best_seed(looks: Sequence[Scores], goal: Goal) -> int:
    """Which of a configuration's seeds has the model to take: its place, of equal ones the first.

    Seeds differ by more than validation images err, so that the best of them on those is better
    than any one. How good a configuration is, the mean over all seeds tells.

    Args:
        looks: Validation scores of each seed's model.
        goal: What is searched for.
    """
    return max(range(len(looks)), key=lambda place: goal.merit(looks[place]))


def luckiest_seed(trial: TrialRecord, own_seed: int, goal: Goal) -> int:
    """The seed with which a trial's configuration was best in the search.

    Args:
        trial: Has scores.
        own_seed: The trial's; those that it was run again with it knows.
        goal: What is searched for.
    """
    seeds = [own_seed, *trial.again, *trial.tries]
    return seeds[best_seed([*trial.looks, *trial.tries.values()], goal)]


def ranking(trials: Sequence[TrialRecord], goal: Goal) -> list[TrialRecord]:
    """Trials that have scores, the best first, by their merit over all their seeds."""
    scored = [trial for trial in trials if trial.val is not None]
    return sorted(scored, key=lambda trial: goal.merit(*trial.looks), reverse=True)


def pareto_front(trials: Sequence[TrialRecord]) -> list[TrialRecord]:
    """The complete trials that no other surpasses in Mem and For at once, by rising Mem."""
    complete = [trial for trial in trials if trial.state == "complete" and trial.val]
    points = [(trial.val.mem, trial.val.for_) for trial in complete if trial.val]
    pairs = zip(points, complete, strict=True)
    front = [(point, trial) for point, trial in pairs if not is_dominated(point, points)]
    return [trial for _, trial in sorted(front, key=lambda pair: pair[0])]


def is_dominated(point: tuple[float, float], points: Sequence[tuple[float, float]]) -> bool:
    """Whether one of some (Mem, For) is no worse in either and better in one."""
    return any(other[0] >= point[0] and other[1] >= point[1] and other != point for other in points)
