"""The final runs of a study: trained once more, in parallel, and then shown the test split.

This is the first and only time that test images are read.
"""

from __future__ import annotations

import hashlib
import pickle
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

from adu import storage
from adu.methods.baseline import BaselineConfig, PromptConfig
from adu.methods.zero_shot import ZeroShotConfig
from adu.metrics import Scores
from adu.trainer import EpochReport, RunConfig
from pipeline.executors.mailbox import Command, Event
from pipeline.executors.session import TestOutcome, epoch_report
from pipeline.executors.sharing import Executors, Lease
from pipeline.results.outcome_file import read_outcome, write_outcome
from pipeline.studies.space import Space, configure, defaults


@dataclass(frozen=True)
class FinalRun:
    """One final run.

    Attributes:
        stage: What it stands for: ``zero_shot``, ``baseline``, ``paper_defaults`` or ``best``.
        run: Its configuration; the seed is ``run.train.seed``.
    """

    stage: str
    run: RunConfig


class FinalRunFailedError(Exception):
    """A final run that came to no result."""


def final_runs(
    base: RunConfig, space: Space, best: Mapping[str, Any] | None, seeds: Sequence[int]
) -> list[FinalRun]:
    """The runs that a study is judged by, the longest first.

    Args:
        base: The run's configuration apart from what is searched.
        space: What was searched; its defaults are the paper's.
        best: The best trial's parameters; None if there is none.
        seeds: Every stage that trains is run once with each.
    """
    paper = configure(base, defaults(space))
    stages = {"paper_defaults": paper, "baseline": _baseline(paper)}
    if best is not None:
        stages = {"best": configure(base, best)} | stages
    seeded = [
        FinalRun(stage, run.model_copy(update={"train": _seeded(run, seed)}))
        for stage, run in stages.items()
        for seed in seeds
    ]
    return [*seeded, FinalRun("zero_shot", paper.model_copy(update={"method": ZeroShotConfig()}))]


def run_finals(
    study: str,
    runs: Sequence[FinalRun],
    executors: Executors,
    stop: threading.Event,
    on_epoch: Callable[[FinalRun, EpochReport], None],
    on_end: Callable[[FinalRun, TestOutcome], None] | None = None,
    folder: str | None = None,
) -> list[TestOutcome] | None:
    """Runs final runs, as many at once as there are executors that no trial waits for.

    Args:
        study: Name of the study, a part of run ids.
        runs: What to run; equal configurations are run once.
        executors: Where.
        stop: Set when the search is interrupted.
        on_epoch: Called after each epoch, in any thread.
        on_end: Called when a run has come to its end, in any thread.
        folder: Folder or URL where outcomes and the last epochs of unfinished runs are kept; what
            is there already is not run again. None keeps nothing.

    Returns:
        The outcomes in the order of the runs; None if the search was interrupted.

    Raises:
        FinalRunFailedError: If a run fails.
    """

    def run_one(run_id: str, final: FinalRun) -> TestOutcome | None:
        place = storage.join(folder, _digest(final.run)) if folder else None
        file = f"{place}.npz" if place else None
        if file is not None and (known := read_outcome(file, final.run)) is not None:
            return known
        savepoint = f"{place}.savepoint" if place else None
        command = Command(run_id, final.run.model_dump(mode="json", by_alias=True), "test")
        command = replace(command, savepoint=savepoint)
        outcome = _run_one(command, final, executors, stop, on_epoch)
        if file is not None and outcome is not None:
            write_outcome(file, final.run, outcome)
        if outcome is not None and on_end is not None:
            on_end(final, outcome)
        return outcome

    distinct = list({final.run.model_dump_json(): final for final in runs}.items())
    # Each waits for an executor in a thread of its own: there may be more of them soon.
    with ThreadPoolExecutor(len(distinct)) as threads:
        pending = {
            key: threads.submit(run_one, f"{study}/final-{i}", final)
            for i, (key, final) in enumerate(distinct)
        }
    outcomes = {key: future.result() for key, future in pending.items()}
    if any(outcome is None for outcome in outcomes.values()):
        return None
    found = [outcomes[final.run.model_dump_json()] for final in runs]
    return [outcome for outcome in found if outcome is not None]


def mean_scores(scores: Sequence[Scores]) -> Scores:
    """Scores averaged over runs: H is the mean of the runs' H (the paper's way)."""
    n = len(scores)
    return Scores(
        mem=sum(s.mem for s in scores) / n,
        for_=sum(s.for_ for s in scores) / n,
        h=sum(s.h for s in scores) / n,
        accuracy_by_domain={
            domain: sum(s.accuracy_by_domain[domain] for s in scores) / n
            for domain in scores[0].accuracy_by_domain
        },
        n_by_domain=scores[0].n_by_domain,
    )


def _digest(run: RunConfig) -> str:
    return hashlib.sha256(run.model_dump_json(by_alias=True).encode()).hexdigest()[:16]


def _run_one(
    command: Command,
    final: FinalRun,
    executors: Executors,
    stop: threading.Event,
    on_epoch: Callable[[FinalRun, EpochReport], None],
) -> TestOutcome | None:
    if stop.is_set():
        return None
    lease = executors.lease(yields=True)
    began_s = time.time()
    try:
        lease.start(command)
        event = _follow(lease, lambda report: on_epoch(final, report))
    finally:
        lease.release()
    if event.kind == "failed":
        raise FinalRunFailedError(f"final run {final.stage}: {event.error}")
    if event.kind == "interrupted":
        return None
    assert event.result is not None
    outcome: TestOutcome = pickle.loads(event.result)
    return replace(outcome, began_s=began_s, ended_s=time.time())


def _follow(lease: Lease, on_epoch: Callable[[EpochReport], None]) -> Event:
    while (event := lease.advance()).epoch is not None:
        on_epoch(epoch_report(event.epoch))
    return event


def _baseline(paper: RunConfig) -> RunConfig:
    """The Baseline with the prompts that the paper's defaults have."""
    shared: dict[str, Any] = {}
    if isinstance(paper.method, PromptConfig):
        shared = {name: getattr(paper.method, name) for name in PromptConfig.model_fields}
    return paper.model_copy(update={"method": BaselineConfig(**shared)})


def _seeded(run: RunConfig, seed: int) -> Any:
    return run.train.model_copy(update={"seed": seed})
