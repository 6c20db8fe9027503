"""A made-up study, for tests of what is made from one."""

from __future__ import annotations

from adu.evaluation.metrics import Scores, harmonic_mean
from adu.methods.adu import AduConfig
from adu.methods.baseline import BaselineConfig
from adu.methods.zero_shot import ZeroShotConfig
from adu.training.config import RunConfig
from pipeline.studies.records import FinalRecord, StudyRecord, TrialRecord

METHODS = {
    "zero_shot": ZeroShotConfig(),
    "baseline": BaselineConfig(),
    "paper_defaults": AduConfig(),
    "best": AduConfig(gamma=3.0),
    "best_again": AduConfig(gamma=3.0),
}


def scores(mem: float, for_: float) -> Scores:
    by_domain = {"photo": mem, "sketch": 1 - for_}
    return Scores(mem, for_, harmonic_mean(mem, for_), by_domain, {"photo": 50, "sketch": 50})


def trial(number: int, mem: float, for_: float, state: str = "complete") -> TrialRecord:
    params = {"method.gamma": 3.0, "train.lr": 0.01}
    val = None if state == "failed" else scores(mem, for_)
    error = "ValueError: boom" if state == "failed" else None
    return TrialRecord(number, params, 3, state, val, 2.0, 1.5, error)  # type: ignore[arg-type]


def final(stage: str, *runs: tuple[float, float]) -> FinalRecord:
    tests = tuple(scores(*run) for run in runs)
    n = len(tests)
    mean = Scores(
        sum(s.mem for s in tests) / n,
        sum(s.for_ for s in tests) / n,
        sum(s.h for s in tests) / n,
        {d: sum(s.accuracy_by_domain[d] for s in tests) / n for d in ("photo", "sketch")},
        tests[0].n_by_domain,
    )
    run = RunConfig(forget=("sketch",), method=METHODS[stage])
    return FinalRecord(stage, run, tests[0], mean, tuple(range(n)), tests)


def study(best: tuple[float, float] = (0.95, 0.9)) -> StudyRecord:
    trials = [trial(0, 0.9, 0.5), trial(1, 0.5, 0.2, "stopped"), trial(2, 0.9, 0.8)]
    trials.append(trial(3, 0, 0, "failed"))
    finals = {
        "zero_shot": final("zero_shot", (0.94, 0.1)),
        "baseline": final("baseline", (0.9, 0.6)),
        "paper_defaults": final("paper_defaults", (0.9, 0.7), (0.8, 0.7)),
        "best": final("best", best),
    }
    return StudyRecord(("sketch",), trials, trials[2], finals, complete=True)
