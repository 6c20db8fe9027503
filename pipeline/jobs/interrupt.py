"""Ctrl-C: the first ends the search in good order, the second at once."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

EXIT_CODE = 130
SIGNALS = (signal.SIGINT, signal.SIGTERM)  # `ray job stop` and Kubernetes send SIGTERM


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
            handler = signal.signal(number, self._handle)
            self._previous.setdefault(number, handler)

    @contextlib.contextmanager
    def graceful(self, on_stop: Callable[[], None]) -> Iterator[None]:
        """While inside, nothing is raised.

        Args:
            on_stop: Called once, in a thread of its own, if a signal comes.
        """
        left = threading.Event()

        def watch() -> None:
            while not left.is_set():
                if self.stop.wait(0.1):
                    on_stop()
                    return

        watcher = threading.Thread(target=watch, daemon=True, name="interrupt")
        watcher.start()
        self._graceful = True
        try:
            yield
        finally:
            self._graceful = False
            left.set()
            watcher.join()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.stop.is_set():
            os._exit(EXIT_CODE)
        self.stop.set()
        if not self._graceful:
            raise KeyboardInterrupt
