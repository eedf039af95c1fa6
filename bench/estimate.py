"""Estimates how long a run takes: from the sizes of its cases, corrected by the times of those that
are done."""

import time
from collections.abc import Callable

from .case import Case
from .limits import Limits

# Typical values of a case. They may be rough, since the estimate is corrected.
IMPLEMENTATIONS = 6
TIMES_LIMIT = 4  # an implementation's time divided by the machine's limit
# Of an implementation: one is checked, four warm up, two for each of three samples
LEAST_CALLS = 11
PREPARATION = 6.0  # seconds to make inputs, compile peers and check outputs


class Estimate:
    """The seconds that remain of a run."""

    def __init__(
        self,
        cases: list[Case],
        limits: Limits,
        seconds: float,
        clock: Callable[[], float] = time.perf_counter,
    ):
        self.guesses = [_guess(case, limits, seconds) for case in cases]
        self.done = 0
        self.clock = clock
        self.began = clock()

    def next(self) -> float:
        """To call when a case begins: the seconds until all cases are done."""
        past = sum(self.guesses[: self.done])
        ahead = sum(self.guesses[self.done :])
        self.done += 1
        if not past:
            return ahead
        return ahead * (self.clock() - self.began) / past


def _guess(case: Case, limits: Limits, seconds: float) -> float:
    call = TIMES_LIMIT * limits.milliseconds(case.cost, case.dtype) / 1e3
    return PREPARATION + IMPLEMENTATIONS * max(seconds, LEAST_CALLS * call)


def in_words(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"
