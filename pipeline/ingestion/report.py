"""What a person sees of an ingest: progress, what the checks found, what came of it."""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from adu.data.manifest import Manifest
from pipeline.command import ESCAPES, plain_console
from pipeline.ingestion.checks import CHECKS, CheckResult
from pipeline.names import shown

PLAIN_EVERY_S = 30.0
SPEED_WINDOW_S = 30.0
MAX_LEFT_OUT = 20
BORDERS_WIDTH = 4 * 3 + 1 + 4  # and "found" may be wider than its numbers


@contextmanager
def decoders_apart() -> Iterator[Console]:
    """Gives a console, and keeps off the terminal what libraries below Pillow write to it.

    libtiff writes what it dislikes to the standard error itself, without the image's name, which
    the report has. What nobody else tells is told at the end.
    """
    try:
        number = sys.stderr.fileno()
    except (OSError, ValueError, AttributeError):
        yield plain_console(sys.stderr)
        return
    sys.stderr.flush()
    real = os.fdopen(os.dup(number), "w", encoding=sys.stderr.encoding, errors=ESCAPES)
    with tempfile.TemporaryFile() as words:
        os.dup2(words.fileno(), number)
        console = plain_console(real)
        try:
            yield console
        finally:
            sys.stderr.flush()
            os.dup2(real.fileno(), number)
            words.seek(0)
            lines = words.read().decode(errors=ESCAPES).splitlines()
            if lines:
                console.print(
                    f"decoders wrote {len(lines):,} lines, such as: {shown(lines[0])}",
                    soft_wrap=True,
                )
            with suppress(OSError):  # a full disk keeps what it did not take
                real.close()


class RateColumn(ProgressColumn):
    """Images a second."""

    def render(self, task: Task) -> Text:
        """Shows it once it is known."""
        return Text(f"{task.speed:,.0f}/s" if task.speed else "", style="progress.data.speed")


class ReadProgress:
    """Shows how many images are read, how fast, and how long it will take.

    On a terminal a bar; elsewhere (a log file, ``ray job submit``) a line now and then.

    Args:
        console: Where to show it; None for nowhere.
        total: Number of images.
    """

    def __init__(self, console: Console | None, total: int) -> None:
        self._console, self._total = console, total
        self._done = self._before = 0
        self._started_at = self._told_at = time.monotonic()
        self._bar: Progress | None = None
        if console is not None and console.is_terminal:
            self._bar = Progress(
                TextColumn("reading images"),
                BarColumn(),
                MofNCompleteColumn(),
                RateColumn(),
                TimeRemainingColumn(),
                console=console,
                transient=True,
                speed_estimate_period=SPEED_WINDOW_S,
            )

    def __enter__(self) -> ReadProgress:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def start(self, before: int) -> None:
        """Reading starts; so many images were read by an earlier ingest that was killed."""
        self._done = self._before = before
        self._started_at = self._told_at = time.monotonic()
        if self._console is not None and before:
            self._console.print(f"{before:,} of {self._total:,} images were read before")
        if self._bar is not None:
            self._bar.add_task("", total=self._total, completed=before)

    def advance(self, images: int) -> None:
        """So many more images are read."""
        self._done += images
        now = time.monotonic()
        if self._bar is not None:
            self._bar.advance(self._bar.task_ids[0], images)
        elif self._console is not None and now - self._told_at >= PLAIN_EVERY_S:
            self._told_at = now
            rate = (self._done - self._before) / (now - self._started_at)
            left_s = round((self._total - self._done) / rate)
            self._console.print(
                f"{self._done:,} of {self._total:,} images, {rate:,.0f}/s, "
                f"{left_s // 3600}:{left_s // 60 % 60:02}:{left_s % 60:02} left"
            )


def checks_table(results: Sequence[CheckResult], width: int) -> Table:
    """Every check with what it found, a line each, in a terminal of this width."""
    rows = [
        (
            CHECKS[result.name][0],
            f"{result.count:,}",
            CHECKS[result.name][1] if result.count else "",
            shown(result.examples[0]) if result.examples else "",
        )
        for result in results
    ]
    table = Table(title="Checks")
    for name in ("check", "found", "done", "for example"):
        table.add_column(name, justify="right" if name == "found" else "left", no_wrap=True)
    # Where the line is short, the example is cut, and nothing else.
    others = sum(max(map(len, column)) for column in list(zip(*rows, strict=True))[:3])
    room = max(width - others - BORDERS_WIDTH, len("for example"))
    for label, count, action, example in rows:
        text = Text(example)
        text.truncate(room, overflow="ellipsis")
        table.add_row(label, count, action, text, style=None if action else "dim")
    return table


def show_checks(console: Console, results: Sequence[CheckResult], left_out: Sequence[str]) -> None:
    """Shows what the checks found, and why images were left out."""
    console.print(checks_table(results, console.width))
    for reason in left_out[:MAX_LEFT_OUT]:
        console.print(f"left out: {shown(reason)}", soft_wrap=True)
    more = len(left_out) - MAX_LEFT_OUT
    if more > 0:
        console.print(f"left out: {more:,} more, which card.json lists")


def show_entries(console: Console, entries: Mapping[str, int]) -> None:
    """Shows what became of the entries of the source; their numbers add up."""
    used = entries["used"] + entries["converted"]
    console.print(
        f"{entries['found']:,} entries: {used:,} used (of them {entries['converted']:,} "
        f"converted), {entries['left_out']:,} left out"
    )


def images_table(manifest: Manifest) -> Table:
    """Classes and images of each domain."""
    synthetic = " (synthetic data)" if manifest.synthetic else ""
    table = Table(title=f"{shown(manifest.name)}{synthetic}: {manifest.n_images:,} images")
    for column in ("domain", "classes", "train", "test"):
        table.add_column(column, justify="left" if column == "domain" else "right")
    counts = {split: manifest.cell_counts(split) for split in ("train", "test")}
    for domain in manifest.domains:
        sums = [
            sum(n for (its, _), n in counts[split].items() if its == domain)
            for split in ("train", "test")
        ]
        table.add_row(shown(domain), str(len(manifest.classes)), *(f"{n:,}" for n in sums))
    return table
