"""One thing is made ahead: in order, no more than one, and nothing before it is asked for."""

import threading

import pytest

from adu.data.prefetch import ahead


def test_things_come_in_order_one_ahead():
    started = []
    ready = threading.Event()

    def make(item):
        started.append(item)
        if item == 1:
            ready.set()
        return 10 * item

    made = ahead(range(4), make)
    assert started == []
    assert next(made) == 0
    assert ready.wait(10), "the next one is not made meanwhile"
    assert started == [0, 1]
    assert list(made) == [10, 20, 30]


def test_nothing_gives_nothing():
    assert list(ahead([], abs)) == []


def test_an_error_comes_with_its_item():
    made = ahead([1, 0], lambda item: 1 / item)
    assert next(made) == 1
    with pytest.raises(ZeroDivisionError):
        next(made)
