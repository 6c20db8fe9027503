"""Makes the next thing in a thread while the last one is in use."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

ItemT = TypeVar("ItemT")
MadeT = TypeVar("MadeT")


def ahead(items: Iterable[ItemT], make: Callable[[ItemT], MadeT]) -> Iterator[MadeT]:
    """Makes something of each item, in order and one ahead; nothing before it is asked for."""
    following = iter(items)
    with ThreadPoolExecutor(1, thread_name_prefix="ahead") as worker:
        pending = [worker.submit(make, item) for item in islice(following, 1)]
        while pending:
            made = pending.pop().result()
            pending = [worker.submit(make, item) for item in islice(following, 1)]
            yield made
