"""Ctrl-C: the first ends a job in good order, the second at once."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any

EXIT_CODE = 130
# `ray job stop` and Kubernetes send SIGTERM, a terminal that is closed SIGHUP.
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupt:
    """Turns signals into an event.

    Inside `graceful`, a signal only sets ``stop``: the code there looks at it. Anywhere else it
    raises KeyboardInterrupt as well.
    """

    def __init__(self) -> None:
        self.stop = threading.Event()
        self._graceful = False
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> Interrupt:
        self.install()
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def install(self) -> None:
        """Takes the signals; again after something else (``ray.init``) has taken them."""
        for number in SIGNALS:
            # What `nohup` has a command ignore, it ignores.
            if signal.getsignal(number) != signal.SIG_IGN:
                self._previous.setdefault(number, signal.signal(number, self._handle))

    @contextlib.contextmanager
    def graceful(self) -> Iterator[None]:
        """While inside, nothing is raised."""
        self._graceful = True
        try:
            yield
        finally:
            self._graceful = False

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.stop.is_set():
            os._exit(EXIT_CODE)
        self.stop.set()
        if not self._graceful:
            raise KeyboardInterrupt
