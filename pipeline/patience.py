"""Waits for an object store that cannot be reached: a search of days outlives minutes of that.

Imports little: see `pipeline.executors.mailbox`.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import TypeVar

from adu.errors import UserError

# How long a store may be away before what needs it gives up.
OUTAGE_S = 600.0
RETRY_S = 5.0

T = TypeVar("T")


def patiently(url: str, call: Callable[[], T]) -> T:
    """Calls a function that reads or writes by URL until it succeeds.

    A local disk is not waited for: what is wrong with it stays wrong.

    Args:
        url: What it reads or writes.
        call: The function.

    Raises:
        UserError: What the function has raised last, after `OUTAGE_S` of trying.
    """
    deadline = time.monotonic() + OUTAGE_S
    while True:
        try:
            return call()
        except UserError as error:
            if "://" not in url or time.monotonic() > deadline:
                raise
            print(f"waiting for {error}", file=sys.stderr, flush=True)
            time.sleep(RETRY_S)
