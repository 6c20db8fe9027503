"""Which of a study's trials is chosen, on validation images alone."""

from __future__ import annotations

from collections.abc import Sequence

from adu.metrics import Scores
from pipeline.records import TrialRecord


def best_trial(trials: Sequence[TrialRecord], min_mem: float | None = None) -> TrialRecord | None:
    """The chosen trial: among complete ones, else among stopped ones.

    Args:
        trials: A study's trials.
        min_mem: Unset: the highest H. Else the highest For of those whose Mem is at least this; if
            there are none, the highest Mem.
    """
    for state in ("complete", "stopped"):
        scored = [(trial, trial.val) for trial in trials if trial.state == state and trial.val]
        if scored:
            return max(scored, key=lambda pair: _rank(pair[1], min_mem))[0]
    return None


def pareto_front(trials: Sequence[TrialRecord]) -> list[TrialRecord]:
    """The complete trials that no other surpasses in Mem and For at once, by rising Mem."""
    scored = [(trial, trial.val) for trial in trials if trial.state == "complete" and trial.val]
    front = [
        (trial, val)
        for trial, val in scored
        if not any(_dominates(other, val) for _, other in scored)
    ]
    return [trial for trial, _ in sorted(front, key=lambda pair: pair[1].mem)]


def _rank(val: Scores, min_mem: float | None) -> tuple[float, ...]:
    if min_mem is None:
        return (val.h,)
    return (1.0, val.for_, val.mem) if val.mem >= min_mem else (0.0, val.mem)


def _dominates(one: Scores, other: Scores) -> bool:
    no_worse = one.mem >= other.mem and one.for_ >= other.for_
    return no_worse and (one.mem > other.mem or one.for_ > other.for_)
