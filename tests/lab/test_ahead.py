"""What is made ahead is what would be made without the thread."""

from __future__ import annotations

import gc
import threading
import time

import pytest

from natgrad.lab.ahead import Ahead

PATIENCE_S = 60.0


def squared(number: int) -> int:
    return number**2


def threads() -> int:
    return sum(thread.name.startswith("ahead") for thread in threading.enumerate())


def test_in_any_order_each_number_gets_its_own() -> None:
    ahead = Ahead[int]()
    assert [ahead.take(k, squared) for k in (0, 1, 2, 7, 8, 3, 3)] == [0, 1, 4, 49, 64, 9, 9]
    ahead.close()


def test_the_next_is_begun_before_it_is_asked_for_and_no_further_one() -> None:
    ahead, begun = Ahead[int](), {k: threading.Event() for k in range(3)}

    def make(number: int) -> int:
        begun[number].set()
        return number

    ahead.take(0, make)
    assert begun[1].wait(PATIENCE_S)
    ahead.close()  # waits for what is underway
    assert not begun[2].is_set()


def test_a_failure_is_that_of_its_own_number() -> None:
    ahead, failures = Ahead[int](), [OSError("the second")]

    def make(number: int) -> int:
        if number == 1 and failures:
            raise failures.pop()
        return number

    assert ahead.take(0, make) == 0
    with pytest.raises(OSError, match="the second"):
        ahead.take(1, make)
    assert ahead.take(1, make) == 1
    ahead.close()


def test_its_thread_ends_when_it_is_closed_or_dropped() -> None:
    before, ahead = threads(), Ahead[int]()
    assert threads() == before  # started by the first thing to make
    ahead.take(0, squared)
    assert threads() == before + 1
    ahead.close()
    assert threads() == before
    dropped = Ahead[int]()
    dropped.take(0, squared)
    del dropped
    gc.collect()
    deadline = time.monotonic() + PATIENCE_S
    while threads() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threads() == before
