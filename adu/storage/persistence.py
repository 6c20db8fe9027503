"""A store that stumbles is asked again, with longer and longer pauses.

There are two layers of that. A request that gets no good answer is repeated by botocore (its
``standard`` mode: exponential backoff with jitter), whoever sent it. Reading and writing a file
start over beside that, since an answer may also break off in its middle, and keys may have been
renewed meanwhile.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import TypeVar

from adu.errors import UserError
from adu.storage.errors import explain, is_expired, is_transient
from adu.storage.urls import is_local

# How often a file is read or written from the start, at most.
MAX_TRANSFERS = 6
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.2, 8.0
T = TypeVar("T")


def persistently(url: str, transfer: Callable[[], T]) -> T:
    """Carries out a transfer, again where it broke off; for the user's sake with pauses.

    Args:
        url: What it is about.
        transfer: May be called any number of times.

    Raises:
        UserError: If it cannot succeed, or has not after `MAX_TRANSFERS` attempts.
    """
    for attempt in range(1, MAX_TRANSFERS + 1):
        try:
            return transfer()
        except Exception as error:
            again = is_transient(error) or is_expired(error)
            if attempt == MAX_TRANSFERS or is_local(url) or not again:
                raise UserError(explain(url, error)) from error
            pause(attempt)
    raise AssertionError


def pause(attempt: int) -> None:
    """Waits before another attempt: longer from time to time, and not all readers at once.

    Args:
        attempt: How many have failed.
    """
    longest_s = min(FIRST_PAUSE_S * 2 ** (attempt - 1), LONGEST_PAUSE_S)
    time.sleep(random.uniform(0, longest_s))
