"""Keeps MLflow up to date while a command runs, in a thread: no trial waits for a server."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from optuna.storages import BaseStorage

from pipeline.tracking.facts import Facts
from pipeline.tracking.mirror import Mirror, StoppedError
from pipeline.tracking.registry import register
from pipeline.tracking.server import Server, told
from pipeline.tracking.truth import AtWork, Truth

PERIOD_S = 3.0

# Of one look, after which MLflow counts as behind.
SLOW_S = 10.0

# Between two looks at a server that is away.
LONGEST_PAUSE_S = 30.0


class Projection:
    """Writes to MLflow every few seconds, and for a limited time at the end.

    Args:
        mirror: Does it.
        tell: Is told when MLflow falls behind, and when it has caught up.
        period_s: Between two looks.
    """

    def __init__(
        self,
        mirror: Mirror,
        tell: Callable[[str], None] = lambda _: None,
        period_s: float = PERIOD_S,
    ) -> None:
        self._mirror = mirror
        self._tell = tell
        self._period_s = period_s
        self._at_end = threading.Event()
        self._over = threading.Event()
        # Since when MLflow has been behind, in seconds since 1970.
        self._since_s: float | None = None
        self._reason = "not written yet"
        self._is_whole = False
        self._thread = threading.Thread(target=self._work, daemon=True, name="mlflow")

    @property
    def behind(self) -> str:
        """Since when MLflow has been behind, and by how much; empty if it is not."""
        if self._since_s is None:
            return ""
        since = time.strftime("%H:%M:%S", time.localtime(self._since_s))
        n_runs = max(self._mirror.n_behind, 1)
        return (
            f"MLflow is behind by {n_runs} run{'s' * (n_runs != 1)} since {since}: {self._reason}"
        )

    def start(self) -> None:
        """Begins to write."""
        self._thread.start()

    def lag_s(self) -> float:
        """For how long MLflow has been behind, in seconds."""
        return 0.0 if self._since_s is None else time.time() - self._since_s

    @property
    def truth(self) -> Truth:
        """What it writes."""
        return self._mirror.truth

    def abandon(self) -> None:
        """Writes no more: the command has failed."""
        self._over.set()
        self._at_end.set()

    def finish(self, limit_s: float) -> str:
        """Writes what is left, for no longer than that.

        Returns:
            What MLflow lacks and what to do, in a line; empty if it has everything.
        """
        self._mirror.truth.end()
        self._at_end.set()
        self._thread.join(limit_s)
        self._over.set()
        if self._is_whole:
            return ""
        self._since_s = self._since_s or time.time()
        command = f"python pipeline/track.py --output {self.truth.output}"
        return f"{self.behind} ({command} writes the rest)"

    def _work(self) -> None:
        pause_s = self._period_s
        while not self._over.is_set():
            is_last = self._at_end.is_set()
            done = self._sync(is_last)
            if done and is_last:
                self._is_whole = True
                return
            pause_s = self._period_s if done else min(2 * pause_s, LONGEST_PAUSE_S)
            if is_last:
                # It is worth trying again soon.
                self._over.wait(self._period_s)
            else:
                self._at_end.wait(pause_s)

    def _sync(self, is_last: bool) -> bool:
        began_s = time.time()
        try:

            def go_on() -> bool:
                if time.time() - began_s > SLOW_S:
                    self._fell_behind(began_s, "it answers slowly")
                return not self._over.is_set()

            self._mirror.sync(go_on)
            if is_last:
                # What was created twice shows only now.
                self._mirror.sync(go_on, look_again=True)
                register(self._mirror)
        except StoppedError:
            return False
        except Exception as error:
            # Whatever comes of a server that is away: it is tried again.
            self._fell_behind(began_s, told(error))
            return False
        if self._since_s is not None:
            self._since_s = None
            self._tell("MLflow has caught up")
        return True

    def _fell_behind(self, since_s: float, reason: str) -> None:
        is_news = self._since_s is None
        self._since_s, self._reason = self._since_s or since_s, reason
        if is_news:
            self._tell(self.behind)


def project(
    server: Server,
    facts: Facts,
    output: str,
    database: BaseStorage | None,
    at_work: AtWork | None,
    tell: Callable[[str], None],
) -> Projection:
    """Has an MLflow server follow an output; see `Truth` and `Projection`."""
    projection = Projection(Mirror(server, Truth(facts, output, database, at_work)), tell)
    projection.start()
    return projection
