"""Which of a study's trials is chosen, on validation images alone."""

from __future__ import annotations

from collections.abc import Sequence

from adu.evaluation.metrics import Scores
from pipeline.studies.records import TrialRecord


def best_trial(trials: Sequence[TrialRecord], min_mem: float | None = None) -> TrialRecord | None:
    """The chosen trial: among complete ones, else among stopped ones.

    Of those that were run again, only the ones with the most seeds are left (see `Race`); they are
    compared by their means. What was seen once has had luck or not.

    Args:
        trials: A study's trials.
        min_mem: Unset: the highest H. Else the highest For of those whose Mem is at least this; if
            there are none, the highest Mem.
    """
    for state in ("complete", "stopped"):
        ranked = ranking([trial for trial in trials if trial.state == state], min_mem)
        most = max((len(trial.looks) for trial in ranked), default=0)
        for trial in ranked:
            if len(trial.looks) == most:
                return trial
    return None


def ranking(trials: Sequence[TrialRecord], min_mem: float | None = None) -> list[TrialRecord]:
    """Trials that have scores, the best first, by the mean over their seeds."""
    scored = [(trial, trial.mean) for trial in trials]
    known = [(trial, mean) for trial, mean in scored if mean is not None]
    return [trial for trial, _ in sorted(known, key=lambda p: _rank(p[1], min_mem), reverse=True)]


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


def _rank(val: Scores, min_mem: float | None) -> tuple[float, ...]:
    if min_mem is None:
        return (val.h,)
    return (1.0, val.for_, val.mem) if val.mem >= min_mem else (0.0, val.mem)
