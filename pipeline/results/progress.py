"""What a person sees while a search runs: one table that changes in place.

Where the output is no terminal (``ray job submit``, a log file), one line a thing that ended.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from adu.training.trainer import EpochReport
from pipeline.command import LastingStream
from pipeline.executors.run import REFERENCE, TRIAL, Run
from pipeline.results.time_left import StudyWork, TimeLeft
from pipeline.studies.listener import RunListener
from pipeline.studies.records import TrialRecord

StudyState = Literal["waiting", "searching", "racing", "final runs", "proving", "done", "failed"]

REFRESH_HZ = 4

PLAIN_WIDTH = 100
# Of the live view beside a line a study: title, head, what is hidden, a message, the cursor's.
OTHER_LINES = 5


@dataclass
class _StudyView:
    trials_total: int
    state: StudyState = "waiting"
    ended: Counter[str] = field(default_factory=Counter)
    # Runs that have ended, trials aside; of a study that is proved, since then.
    others: int = 0
    best_h: float | None = None
    started_at: float | None = None
    ended_at: float | None = None
    # What each run at work is at.
    running: dict[str, str] = field(default_factory=dict)

    @property
    def n_ended(self) -> int:
        return sum(self.ended.values())


class Progress(RunListener):
    """The live view of a search.

    Args:
        console: Where to show it.
        title: First line.
        studies: Names of the studies in their order.
        work: What each study has to do.
        concurrency: Trials that run at once.
        started_at: `time.monotonic` of the search's start.
    """

    def __init__(
        self,
        console: Console,
        title: str,
        studies: Sequence[str],
        work: StudyWork,
        concurrency: int,
        started_at: float,
    ) -> None:
        self._console = console
        self._title = title
        self._time_left = TimeLeft(studies, work, concurrency)
        self._started_at = started_at
        self._message = ""
        # What does not hold a search up, such as a server that is behind; empty if all is well.
        self.note: Callable[[], str] = str
        self._studies = {name: _StudyView(work.trials) for name in studies}
        self._lock = threading.RLock()
        self._live = Live(
            console=console,
            get_renderable=self._render,
            refresh_per_second=REFRESH_HZ,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
        )

    def __enter__(self) -> Progress:
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._console.is_terminal:
            self._live.stop()

    def news(self, text: str) -> None:
        """Says what is going on apart from studies, such as executors that start."""
        with self._lock:
            self._message = text
        if text:
            self._line(text)

    def study_state(self, study: str, state: StudyState) -> None:
        """A study goes over to another phase."""
        with self._lock:
            view = self._studies[study]
            if view.state == state:
                return
            view.state = state
            if state == "proving":
                view.others = 0
            if view.started_at is None and state != "waiting":
                view.started_at = time.monotonic()
            if state in ("racing", "final runs"):
                self._time_left.trials_over(study)
            if state in ("done", "failed"):
                self._time_left.study_over(study)
                view.ended_at = time.monotonic()
                view.running.clear()
        self._line(f"forget {study}: {state}")

    def run_restored(self, study: str, record: TrialRecord, scores: Mapping[int, Any]) -> None:
        """Counts a trial that an earlier start of the search has finished."""
        self._time_left.trial_known(study, record)
        self._count(study, record)

    def run_started(self, run: Run) -> None:
        """A run has an executor."""
        if run.stage == TRIAL:
            self.study_state(run.study, "searching")
        with self._lock:
            self._time_left.run_started(run)
            now = "attacking" if run.attacked else f"epoch 0/{run.epochs}"
            self._studies[run.study].running[run.name] = now

    def run_epoch(self, run: Run, report: EpochReport, is_news: bool) -> None:
        """A run has finished an epoch."""
        with self._lock:
            self._message = ""
            self._time_left.run_epoch(run, report, is_news)
            now = f"epoch {report.epoch}/{report.epochs}"
            self._studies[run.study].running[run.name] = now

    def run_attacked(self, run: Run, done: int, total: int) -> None:
        """An attack on a model is over."""
        with self._lock:
            self._message = ""
            self._studies[run.study].running[run.name] = f"attack {done}/{total}"

    def run_suspended(self, run: Run) -> None:
        """A run waits for another executor, or for the search to be resumed."""
        with self._lock:
            self._time_left.run_suspended(run)
            self._studies[run.study].running.pop(run.name, None)

    def run_ended(self, run: Run, record: TrialRecord) -> None:
        """A run is over."""
        with self._lock:
            self._time_left.run_ended(run, record)
        self.run_suspended(run)
        with self._lock:
            if run.stage == REFERENCE:
                return
            if run.stage != TRIAL:
                self._studies[run.study].others += 1
                return
        self._count(run.study, record)
        h = f"validation H {100 * record.val.h:.1f} %" if record.val else record.error or ""
        self._line(f"forget {run.study}: trial {record.number} {record.state}, {h}{self._left()}")

    def _shown(self) -> list[str]:
        """The studies that there is room for, in their order."""
        names = list(self._studies)
        room = self._console.height - OTHER_LINES
        if len(names) <= room or not self._console.is_terminal:
            return names
        ranked = sorted(names, key=lambda name: SHOWN_FIRST.index(self._studies[name].state))
        chosen = set(ranked[: max(room, 1)])
        return [name for name in names if name in chosen]

    def _count(self, study: str, trial: TrialRecord) -> None:
        with self._lock:
            view = self._studies[study]
            view.ended[trial.state] += 1
            if trial.state == "complete" and trial.val is not None:
                view.best_h = max(view.best_h or 0.0, trial.val.h)

    def _left(self) -> str:
        with self._lock:
            seconds = self._time_left.seconds()
        return "" if seconds is None else f", about {_duration(seconds)} left"

    def _line(self, text: str) -> None:
        if not self._console.is_terminal:
            elapsed = _duration(time.monotonic() - self._started_at)
            self._console.print(f"[{elapsed}] {text}", markup=False, highlight=False)

    def _render(self) -> RenderableType:
        with self._lock:
            elapsed = _duration(time.monotonic() - self._started_at)
            header = Text.assemble(
                (self._title, "bold"), f"   {elapsed} elapsed{self._left()}", no_wrap=True
            )
            table = Table(pad_edge=False, box=None, padding=(0, 2, 0, 0))
            for name in ("forget", "state", "trials", "best H", "now"):
                right = name in ("trials", "best H")
                table.add_column(name, justify="right" if right else "left", no_wrap=True)
            shown = self._shown()
            for name in shown:
                table.add_row(name, *_row(self._studies[name]))
            lines: list[RenderableType] = [header, table]
            hidden = Counter(v.state for name, v in self._studies.items() if name not in shown)
            if hidden:
                counts = ", ".join(f"{count} {state}" for state, count in hidden.items())
                lines.append(Text(f"and {counts}"))
            if said := self._message or self.note():
                lines.append(Text(said, style="dim"))
            return Group(*lines)


# Which studies are shown where there is no room for all of them.
SHOWN_FIRST: tuple[StudyState, ...] = (
    *("searching", "racing", "final runs", "proving"),
    *("failed", "done", "waiting"),
)


def _row(view: _StudyView) -> tuple[str, ...]:
    trials = f"{view.n_ended}/{view.trials_total}"
    best = "" if view.best_h is None else f"{100 * view.best_h:.1f}"
    now = list(view.running.values())
    if view.state in ("done", "failed") and view.started_at and view.ended_at:
        took = _duration(view.ended_at - view.started_at)
        now = [f"{view.ended['stopped']} stopped early, took {took}"]
    if view.ended["failed"]:
        now.append(f"{view.ended['failed']} failed")
    counted = view.state in ("final runs", "proving")
    state = f"{view.state}, {view.others} done" if counted else view.state
    return state, trials, best, ", ".join(now[:4])


def _duration(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


@contextlib.contextmanager
def quiet_ray(log: Path) -> Iterator[Console]:
    """Sends all that this process and its children print to a file, save for one console.

    Ray's processes write to file descriptors 1 and 2 themselves, so these are what is redirected.

    Args:
        log: The file; appended to.

    Yields:
        A console that still writes to the real standard output.
    """
    for stream in (sys.stdout, sys.stderr):
        LastingStream(stream).flush()
    saved = {number: _duplicate(number) for number in (1, 2)}
    real = os.fdopen(os.dup(saved[1]), "w", encoding="utf-8", buffering=1)
    with log.open("ab") as sink:
        for number in saved:
            os.dup2(sink.fileno(), number)
    try:
        yield console_on(real)
    finally:
        for stream in (sys.stdout, sys.stderr):
            LastingStream(stream).flush()
        for number, kept in saved.items():
            os.dup2(kept, number)
            os.close(kept)
        with contextlib.suppress(OSError):
            real.close()


def _duplicate(number: int) -> int:
    try:
        return os.dup(number)
    except OSError:
        # Closed by whoever started the command.
        return os.open(os.devnull, os.O_WRONLY)


def console_on(file: Any) -> Console:
    """A console that does not break lines where nobody watches."""
    stream: Any = LastingStream(file)
    terminal = stream.isatty()
    return Console(
        file=stream,
        width=None if terminal else PLAIN_WIDTH,
        soft_wrap=not terminal,
        # Names are shown as they are.
        markup=False,
        emoji=False,
        highlight=False,
    )
