"""What a person sees while a search runs: one table that changes in place.

Where the output is no terminal (``ray job submit``, a log file), one line a thing that ended.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any, Literal, TextIO

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from adu.trainer import EpochReport
from pipeline.studies.records import TrialRecord

StudyState = Literal["waiting", "searching", "final runs", "done", "failed"]

REFRESH_HZ = 4

# From which the time that is left is estimated.
LAST_TRIALS = 200
PLAIN_WIDTH = 100
# Of the live view beside a line a study: title, head, what is hidden, a message, the cursor's.
OTHER_LINES = 5


@dataclass
class _StudyView:
    trials_total: int
    state: StudyState = "waiting"
    complete: int = 0
    stopped: int = 0
    failed: int = 0
    finals: int = 0
    best_h: float | None = None
    started_at: float | None = None
    ended_at: float | None = None
    running: dict[str, tuple[int, int]] = field(default_factory=dict)


class Progress:
    """The live view of a search. Its methods may be called from any thread.

    Args:
        console: Where to show it.
        title: First line.
        studies: Names of the studies in their order.
        trials: Trials of each study.
        concurrency: Trials that run at once.
        n_finals: Final runs of each study that take a trial's time.
        started_at: `time.monotonic` of the search's start.
    """

    def __init__(
        self,
        console: Console,
        title: str,
        studies: Sequence[str],
        trials: int,
        concurrency: int,
        n_finals: int,
        started_at: float,
    ) -> None:
        self._console = console
        self._title = title
        self._concurrency = concurrency
        self._n_finals = n_finals
        self._started_at = started_at
        self._message = ""
        self._studies = {name: _StudyView(trials) for name in studies}
        self._durations_s: deque[float] = deque(maxlen=LAST_TRIALS)
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

    def message(self, text: str) -> None:
        """Says what is going on apart from studies, such as executors that start."""
        with self._lock:
            self._message = text
        if text:
            self._line(text)

    def executors(self, n_executors: int, news: str) -> None:
        """Says how many trials run at once from now on, and why."""
        with self._lock:
            self._concurrency = n_executors
            self._message = news
        self._line(news)

    def study_state(self, study: str, state: StudyState) -> None:
        """A study goes over to another phase."""
        with self._lock:
            view = self._studies[study]
            view.state = state
            if view.started_at is None and state != "waiting":
                view.started_at = time.monotonic()
            if state in ("done", "failed"):
                view.ended_at = time.monotonic()
                view.running.clear()
        self._line(f"forget {study}: {state}")

    def study_restored(self, study: str, trials: Sequence[TrialRecord]) -> None:
        """Counts the trials that an earlier start of the search has finished."""
        for trial in trials:
            self._count(study, trial)

    def run_started(self, study: str, run: str, epochs: int) -> None:
        """A trial is running."""
        with self._lock:
            self._studies[study].running[run] = (0, epochs)

    def run_epoch(self, study: str, run: str, report: EpochReport) -> None:
        """A trial or final run has finished an epoch."""
        with self._lock:
            self._studies[study].running[run] = (report.epoch, report.epochs)

    def trial_ended(self, study: str, trial: TrialRecord) -> None:
        """A trial is over."""
        with self._lock:
            self._studies[study].running.pop(trial_key(trial.number), None)
            self._durations_s.append(trial.wall_s)
        self._count(study, trial)
        h = f"validation H {100 * trial.val.h:.1f} %" if trial.val else trial.error or ""
        self._line(f"forget {study}: trial {trial.number} {trial.state}, {h}{self._left()}")

    def run_ended(self, study: str, run: str) -> None:
        """A final run is over, or a trial is suspended."""
        with self._lock:
            view = self._studies[study]
            view.running.pop(run, None)
            view.finals += view.state == "final runs"

    def seconds_left(self) -> float | None:
        """An estimate from the trials so far; None before the first has ended."""
        with self._lock:
            if not self._durations_s:
                return None
            runs = 0.0
            for view in self._studies.values():
                if view.state in ("waiting", "searching"):
                    ended = view.complete + view.stopped + view.failed
                    runs += max(view.trials_total - ended, 0) + self._n_finals
                elif view.state == "final runs":
                    runs += max(self._n_finals - view.finals, 0)
            return median(self._durations_s) * runs / self._concurrency

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
            setattr(view, trial.state, getattr(view, trial.state) + 1)
            if trial.state == "complete" and trial.val is not None:
                view.best_h = max(view.best_h or 0.0, trial.val.h)

    def _left(self) -> str:
        seconds = self.seconds_left()
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
            if self._message:
                lines.append(Text(self._message, style="dim"))
            return Group(*lines)


# Which studies are shown where there is no room for all of them.
SHOWN_FIRST: tuple[StudyState, ...] = ("searching", "final runs", "failed", "done", "waiting")


def trial_key(number: int) -> str:
    """A trial among a study's runs."""
    return f"trial {number}"


def _row(view: _StudyView) -> tuple[str, ...]:
    ended = view.complete + view.stopped + view.failed
    trials = f"{ended}/{view.trials_total}"
    best = "" if view.best_h is None else f"{100 * view.best_h:.1f}"
    now = [f"epoch {epoch}/{epochs}" for epoch, epochs in view.running.values()]
    if view.state in ("done", "failed") and view.started_at and view.ended_at:
        now = [f"{view.stopped} stopped early, took {_duration(view.ended_at - view.started_at)}"]
    if view.failed:
        now.append(f"{view.failed} failed")
    state = f"{view.state}, {view.finals} done" if view.state == "final runs" else view.state
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
    sys.stdout.flush()
    sys.stderr.flush()
    saved = [os.dup(1), os.dup(2)]
    real: TextIO = os.fdopen(os.dup(1), "w", encoding="utf-8", buffering=1)
    with log.open("ab") as sink:
        for descriptor in (1, 2):
            os.dup2(sink.fileno(), descriptor)
    try:
        yield console_on(real)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for descriptor, kept in zip((1, 2), saved, strict=True):
            os.dup2(kept, descriptor)
            os.close(kept)
        real.close()


def console_on(file: Any) -> Console:
    """A console that does not break lines where nobody watches."""
    terminal = file.isatty()
    return Console(file=file, width=None if terminal else PLAIN_WIDTH, soft_wrap=not terminal)
