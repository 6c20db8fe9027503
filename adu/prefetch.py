"""Makes the next thing in a thread while the last one is in use."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

ItemT = TypeVar("ItemT")
MadeT = TypeVar("MadeT")


def ahead(items: Sequence[ItemT], make: Callable[[ItemT], MadeT]) -> Iterator[MadeT]:
    """Makes something of each item, in order and one ahead; nothing before it is asked for."""
    with ThreadPoolExecutor(1, thread_name_prefix="ahead") as worker:
        pending = worker.submit(make, items[0]) if items else None
        for following in [*items[1:], None]:
            if pending is None:
                return
            made = pending.result()
            pending = worker.submit(make, following) if following is not None else None
            yield made
