"""The one queue of a job: every run that a cluster is given comes from here, as a trial of Tune's.

A run whose executor is gone waits here for another one. Tune's own retry would ask for the same
place again at once, which may be what is broken.
"""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import wraps
from typing import Any, Literal

from ray.tune.search import Searcher

from adu.training.trainer import EpochReport
from pipeline.executors.capacity import Capacity
from pipeline.executors.run import Event, Run
from pipeline.executors.session import epoch_report
from pipeline.studies.listener import RunListener
from pipeline.studies.records import TrialRecord
from pipeline.studies.source import Source

# How often a run may lose its executor without an epoch in between: it may be what kills them.
MAX_LOSSES = 3

# An executor that was without a run for longer was idle; shorter is what a trial costs.
IDLE_S = 1.0


@dataclass
class _Live:
    run: Run
    source: Source
    proposed_s: float
    began_s: float | None = None
    loop_s: float = 0.0
    report: EpochReport | None = None
    executor: str = ""
    broken: Event | None = None


def _guarded(method: Callable[..., Any]) -> Callable[..., Any]:
    """Keeps a method's exception, which ends the job: Tune would take it for its trial's."""

    @wraps(method)
    def call(self: RunQueue, *arguments: Any, **options: Any) -> Any:
        try:
            return method(self, *arguments, **options)
        except Exception as error:
            self.exception = self.exception or error
            return None

    return call


class RunQueue(Searcher):
    """Says what runs next, and hears what became of it.

    Trials come before fixed runs, of which nobody waits for the answer. Studies take turns, each
    with one trial at a time, so that it learns from every one before the next; trials of one study
    run side by side only where an executor would have nothing to do.

    Args:
        capacity: How many runs the cluster takes at a time.
        listeners: Are told what happens.
        stop: Ends the job soon after it is set.
        studies_at_once: Studies that are searched at the same time; None: as many as executors.
    """

    def __init__(
        self,
        capacity: Capacity,
        listeners: list[RunListener],
        stop: threading.Event,
        studies_at_once: int | None = None,
    ) -> None:
        super().__init__(metric="h", mode="max")
        self._capacity = capacity
        self._listeners = listeners
        self._stop = stop
        self._at_once = studies_at_once
        self._studies: list[Source] = []
        self._fixed: list[Source] = []
        self.begun: set[str] = set()
        self._again: deque[tuple[Run, Source]] = deque()
        self._live: dict[str, _Live] = {}
        self._paused: dict[str, _Live] = {}
        self._losses: Counter[str] = Counter()
        self._idle_since: dict[str, float] = {}
        # Of each executor, in order: wall time of a trial less the time inside the training loop.
        self.overheads_s: dict[str, list[float]] = {}
        self._tidings: deque[tuple[str, tuple[Any, ...]]] = deque()
        self.exception: Exception | None = None

    def add_study(self, study: Source) -> None:
        """Adds a study; they begin in this order."""
        self._studies.append(study)

    def add_fixed(self, runs: Source) -> None:
        """Adds runs that are known beforehand."""
        self._fixed.append(runs)

    @property
    def ending(self) -> bool:
        """Whether nothing more is to begin."""
        return self._stop.is_set() or self.exception is not None

    # What Tune calls.

    @_guarded
    def suggest(self, trial_id: str) -> Any:
        """The next run, if there is an executor for it."""
        if self.ending:
            return Searcher.FINISHED
        self._retire()
        n_at_work = sum(live.began_s is not None for live in self._live.values())
        if len(self._live) >= self._capacity.look(n_at_work):
            return None
        following = self._next()
        if following is None:
            is_over = not self._live and not self._paused
            return Searcher.FINISHED if is_over else None
        run, source = following
        self._live[trial_id] = _Live(run, source, time.time())
        return {"run": run}

    @_guarded
    def on_trial_result(self, trial_id: str, result: Mapping[str, Any]) -> None:
        """Keeps an epoch after which the run goes on."""
        if trial_id in self._paused:
            return
        live = self._live[trial_id]
        event: Event = result["event"]
        if event.kind == "broken":
            live.broken = event
            self._tell("news", f"an executor cannot start: {event.error}")
            self._capacity.broken(event)
            return
        self._note_executor(live, result)
        self._keep(live, event)

    @_guarded
    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Closes a run that is done, was stopped early or has failed, or has it wait again."""
        if self.ending:
            return
        live = self._live.pop(trial_id, None) or self._paused.pop(trial_id)
        event: Event | None = (result or {}).get("event")
        if error or event is None:
            self._lost(live)
            return
        assert result is not None
        self._note_executor(live, result)
        self._keep(live, event)
        self._end(live, event.error if event.kind == "failed" else None)

    def save(self, checkpoint_path: str) -> None:
        """Writes nothing: Optuna's storage and the outcome files have it all."""

    def restore(self, checkpoint_path: str) -> None:
        """Reads nothing: see `save`."""

    def __reduce__(self) -> tuple[Any, ...]:
        # Tune pickles what it would need for its own way of resuming, which is not ours.
        return Searcher, ()

    # What others call.

    def started(self, trial_id: str) -> None:
        """A run has its executor."""
        live = self._live[trial_id]
        live.began_s = live.began_s or time.time()
        self._tell("run_started", live.run)

    def deliver(self) -> None:
        """Tells the listeners what has happened since the last time."""
        while self._tidings:
            what, arguments = self._tidings.popleft()
            for listener in self._listeners:
                getattr(listener, what)(*arguments)

    @_guarded
    def keep_paused(self, trial_id: str, event: Event) -> None:
        """A rule has a trial wait for others after an epoch."""
        live = self._paused[trial_id] = self._live.pop(trial_id)
        self._keep(live, event)

    def resume(self, trial_id: str) -> None:
        """A rule has a trial go on."""
        self._live[trial_id] = self._paused.pop(trial_id)

    def suspend(self) -> None:
        """The job ends: what has not ended goes on when it is resumed."""
        for live in (*self._live.values(), *self._paused.values()):
            self._tell("run_suspended", live.run)
        self._live.clear()
        self._paused.clear()
        for source in (*self._studies, *self._fixed):
            source.suspend()
        self.deliver()

    # Helpers.

    def _next(self) -> tuple[Run, Source] | None:
        if self._again:
            return self._again.popleft()
        source = self._study_at_rest() or self._first(self._fixed) or self._least_busy()
        if source is None:
            return None
        self.begun.add(source.name)
        return source.propose(), source

    def _study_at_rest(self) -> Source | None:
        """A study that nobody works for: one that has begun, else the next one."""
        at_rest = [study for study in self._studies if not study.n_live and study.wants]
        begun = [study for study in at_rest if study.name in self.begun]
        if begun:
            return begun[0]
        n_searched = sum(study.name in self.begun for study in self._studies)
        at_once = self._at_once or max(self._capacity.size, 1)
        return at_rest[0] if at_rest and n_searched < at_once else None

    def _least_busy(self) -> Source | None:
        busy = [
            study
            for study in self._studies
            if study.wants and study.name in self.begun and study.n_live < study.most_at_once
        ]
        return min(busy, key=lambda study: study.n_live, default=None)

    @staticmethod
    def _first(sources: list[Source]) -> Source | None:
        return next((source for source in sources if source.wants), None)

    def _retire(self) -> None:
        """Lets go of sources that have come to their end, and of those that they add if need be."""
        while ended := [
            (sources, source)
            for sources in (self._studies, self._fixed)
            for source in sources
            if not source.n_live and not source.wants
        ]:
            sources, source = ended[0]
            sources.remove(source)
            source.on_end(source)

    def _note_executor(self, live: _Live, result: Mapping[str, Any]) -> None:
        if live.executor:
            return
        live.executor = result["executor"]
        self._capacity.seen(result["executor"], result["group"])
        free_s = self._idle_since.get(live.executor, live.began_s or live.proposed_s)
        idle_s = live.proposed_s - free_s
        live.began_s = free_s if idle_s < IDLE_S else live.proposed_s

    def _keep(self, live: _Live, event: Event) -> None:
        self._capacity.has_worked = True
        if event.attacks is not None:
            self._losses.pop(live.run.key, None)
            self._tell("run_attacked", live.run, *event.attacks)
        if event.epoch is None:
            return
        self._losses.pop(live.run.key, None)
        for values in event.before:
            self._keep_epoch(live, epoch_report(values), is_news=False)
        self._keep_epoch(live, epoch_report(event.epoch), is_news=not event.before)

    def _keep_epoch(self, live: _Live, report: EpochReport, is_news: bool) -> None:
        live.report = report
        is_news = live.source.keep(live.run, report) and is_news
        if is_news:
            live.loop_s += report.train_s + report.val_s
        self._tell("run_epoch", live.run, report, is_news)

    def _lost(self, live: _Live) -> None:
        """Has a run wait for another executor, unless it has lost too many."""
        key = live.run.key
        self._losses[key] += live.broken is None
        if self._losses[key] > MAX_LOSSES:
            self._end(live, f"its executor was lost {MAX_LOSSES + 1} times")
            return
        if live.broken is None:
            self._tell("news", f"the executor of {key} was lost; it goes on with another one")
        self._again.append((live.run, live.source))
        self._tell("run_suspended", live.run)

    def _end(self, live: _Live, failure: str | None) -> None:
        now_s, report, run = time.time(), live.report, live.run
        state: Literal["complete", "stopped", "failed"] = "complete"
        if failure is not None:
            state = "failed"
        elif not run.tested and report is not None and report.epoch < report.epochs:
            state = "stopped"
        record = TrialRecord(
            number=run.number,
            params=dict(run.params),
            epochs_done=report.epoch if report else 0,
            state=state,
            val=report.val if report else None,
            wall_s=now_s - (live.began_s or live.proposed_s),
            loop_s=live.loop_s,
            error=failure,
        )
        if live.executor:
            self._idle_since[live.executor] = now_s
            if failure is None and not run.tested:
                overheads_s = self.overheads_s.setdefault(live.executor, [])
                overheads_s.append(record.wall_s - record.loop_s)
        live.source.end(run, record)
        self._tell("run_ended", run, record)

    def _tell(self, what: str, *arguments: Any) -> None:
        self._tidings.append((what, arguments))
