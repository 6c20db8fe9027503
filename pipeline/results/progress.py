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
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean
from typing import Any, Literal

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from adu.training.trainer import EpochReport
from pipeline.command import LastingStream
from pipeline.executors.run import TRIAL, Run
from pipeline.studies.listener import RunListener
from pipeline.studies.records import TrialRecord

StudyState = Literal["waiting", "searching", "racing", "final runs", "done", "failed"]

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
    ended: Counter[str] = field(default_factory=Counter)
    finals: int = 0
    best_h: float | None = None
    started_at: float | None = None
    ended_at: float | None = None
    running: dict[str, tuple[int, int]] = field(default_factory=dict)

    @property
    def n_ended(self) -> int:
        return sum(self.ended.values())


class Progress(RunListener):
    """The live view of a search.

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
        # What does not hold a search up, such as a server that is behind; empty if all is well.
        self.note: Callable[[], str] = str
        self._studies = {name: _StudyView(trials) for name in studies}
        self._durations_s: dict[bool, deque[float]] = {
            tested: deque(maxlen=LAST_TRIALS) for tested in (False, True)
        }
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
            if view.started_at is None and state != "waiting":
                view.started_at = time.monotonic()
            if state in ("done", "failed"):
                view.ended_at = time.monotonic()
                view.running.clear()
        self._line(f"forget {study}: {state}")

    def run_restored(self, study: str, record: TrialRecord, scores: Mapping[int, Any]) -> None:
        """Counts a trial that an earlier start of the search has finished."""
        self._count(study, record)

    def run_started(self, run: Run) -> None:
        """A run has an executor."""
        if run.stage == TRIAL:
            self.study_state(run.study, "searching")
        self._studies[run.study].running[run.name] = (0, run.epochs)

    def run_epoch(self, run: Run, report: EpochReport, is_news: bool) -> None:
        """A run has finished an epoch."""
        with self._lock:
            self._message = ""
            self._studies[run.study].running[run.name] = (report.epoch, report.epochs)

    def run_suspended(self, run: Run) -> None:
        """A run waits for another executor, or for the search to be resumed."""
        with self._lock:
            self._studies[run.study].running.pop(run.name, None)

    def run_ended(self, run: Run, record: TrialRecord) -> None:
        """A run is over."""
        self.run_suspended(run)
        with self._lock:
            self._durations_s[run.tested].append(record.wall_s)
            if run.stage != TRIAL:
                self._studies[run.study].finals += 1
                return
        self._count(run.study, record)
        h = f"validation H {100 * record.val.h:.1f} %" if record.val else record.error or ""
        self._line(f"forget {run.study}: trial {record.number} {record.state}, {h}{self._left()}")

    def seconds_left(self) -> float | None:
        """An estimate from the runs so far; None before the first has ended."""
        with self._lock:
            if not any(self._durations_s.values()):
                return None
            # Until the first has ended, a final run is taken for a trial that was not stopped.
            trial_s, final_s = (self._mean_s(tested) for tested in (False, True))
            left_s = 0.0
            for view in self._studies.values():
                if view.state not in ("done", "failed"):
                    left_s += trial_s * max(view.trials_total - view.n_ended, 0)
                    left_s += final_s * max(self._n_finals - view.finals, 0)
                    left_s -= sum(
                        (trial_s if name.isdigit() else final_s) * epoch / epochs
                        for name, (epoch, epochs) in view.running.items()
                    )
            return max(left_s, 0.0) / max(self._concurrency, 1)

    def _mean_s(self, tested: bool) -> float:
        durations_s = self._durations_s[tested]
        return mean(durations_s) if durations_s else max(self._durations_s[not tested])

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
            if said := self._message or self.note():
                lines.append(Text(said, style="dim"))
            return Group(*lines)


# Which studies are shown where there is no room for all of them.
SHOWN_FIRST: tuple[StudyState, ...] = (
    *("searching", "racing", "final runs"),
    *("failed", "done", "waiting"),
)


def _row(view: _StudyView) -> tuple[str, ...]:
    trials = f"{view.n_ended}/{view.trials_total}"
    best = "" if view.best_h is None else f"{100 * view.best_h:.1f}"
    now = [f"epoch {epoch}/{epochs}" for epoch, epochs in view.running.values()]
    if view.state in ("done", "failed") and view.started_at and view.ended_at:
        took = _duration(view.ended_at - view.started_at)
        now = [f"{view.ended['stopped']} stopped early, took {took}"]
    if view.ended["failed"]:
        now.append(f"{view.ended['failed']} failed")
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
