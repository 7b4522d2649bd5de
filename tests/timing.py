"""What is done at once, on machines that stand still for a second now and then."""

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def at_once(call: Callable[[], T], seconds: float = 1.0, tries: int = 3) -> T:
    """What `call` gives in its first try that took less than `seconds`.

    A busy machine may hold one try up. Work that grows with the square of its input is slow each time.
    """
    took = []
    for _ in range(tries):
        start = time.monotonic()
        given = call()
        took.append(time.monotonic() - start)
        if took[-1] < seconds:
            return given
    raise AssertionError(f"It should take less than {seconds:g} seconds, and took {took}.")
