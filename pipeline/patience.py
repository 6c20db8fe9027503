"""Waits for what is away for a while: a search of days outlives minutes of that.

Imports little: see `pipeline.executors.mailbox`.
"""

from __future__ import annotations

import errno
import sys
import time
from collections.abc import Callable
from typing import TypeVar

from adu.errors import UserError

# How long a store may be away before what needs it gives up.
OUTAGE_S = 600.0
RETRY_S = 5.0

T = TypeVar("T")


def _to_stderr(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


# Who tells a person that something is waited for: a live view has a place for it.
_tell: Callable[[str], None] = _to_stderr


def tell_by(tell: Callable[[str], None] | None) -> None:
    """Has a function say what is waited for; None for standard error again."""
    global _tell
    _tell = tell or _to_stderr


def patiently(url: str, call: Callable[[], T]) -> T:
    """Calls a function that reads or writes by URL until it succeeds.

    A local disk is waited for only while it is full: what else is wrong with it stays wrong.

    Args:
        url: What it reads or writes.
        call: The function.

    Raises:
        UserError: What the function has raised last, after `OUTAGE_S` of trying.
    """

    def outage(error: Exception) -> str | None:
        passes = isinstance(error, UserError) and ("://" in url or is_full(error.__cause__))
        return str(error) if passes else None

    return outlast(call, outage)


def outlast(call: Callable[[], T], outage: Callable[[Exception], str | None]) -> T:
    """Calls a function again and again while what it needs is away.

    Args:
        call: The function.
        outage: Says what an exception of the function's is waited for; None: for nothing.

    Raises:
        Exception: What is not waited for, and after `OUTAGE_S` what is.
    """
    deadline = time.monotonic() + OUTAGE_S
    while True:
        try:
            return call()
        except Exception as error:
            reason = outage(error)
            if reason is None or time.monotonic() > deadline:
                raise
        _tell(f"waiting for {reason}")
        time.sleep(RETRY_S)


def is_full(error: BaseException | None) -> bool:
    """Whether an exception says that a disk, or what one may use of it, is full."""
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
