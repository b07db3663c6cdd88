"""Making what is wanted next while what is there is being used."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

__all__ = ["Ahead"]

T = TypeVar("T")


class Ahead(Generic[T]):
    """A thread that makes things one number ahead: of a function of the number alone.

    What is taken is what would be made without the thread, in whatever order numbers are asked for;
    in the order 0, 1, 2, ... it is begun before it is asked for.
    """

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, "ahead")  # started by the first thing to make
        self._begun: tuple[int, Future[T]] | None = None

    def take(self, number: int, make: Callable[[int], T]) -> T:
        """``make(number)``; the next one is begun.

        Raises:
            Exception: what ``make(number)`` raised; what the next one raises, its own taking does.
        """
        begun, self._begun = self._begun, None
        if begun is not None and begun[0] == number:
            found = begun[1].result()
        else:
            if begun is not None:
                begun[1].cancel()
            found = self._thread.submit(make, number).result()
        self._begun = number + 1, self._thread.submit(make, number + 1)
        return found

    def close(self) -> None:
        """End the thread, after what it is making; nothing can be taken any more."""
        self._thread.shutdown(cancel_futures=True)
        self._begun = None
