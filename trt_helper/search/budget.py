"""The limits of a search: it stops there with the best plan so far, although a smaller one may exist."""

from __future__ import annotations

import time
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Budget:
    """Where a search stops. None is no limit.

    Attributes:
        trials: plans that are evaluated.
        pins: pins of the answer: the best plan with at most so many, whether it passes or not.
        seconds: wall clock since the search began.
    """

    trials: int | None = None
    pins: int | None = None
    seconds: float | None = None

    def spent(self, trials: int, started: float) -> str:
        """The limit that is reached, in words; empty while there is none.

        Args:
            trials: the number of plans that were evaluated.
            started: when the search began, on `time.monotonic`'s clock.
        """
        if self.trials is not None and trials >= self.trials:
            return f"the best plan after {trials} trials, as many as were allowed"
        return self.spent_seconds(started)

    def spent_seconds(self, started: float) -> str:
        """`spent`, of the time alone: also between two trials."""
        if self.seconds is not None and time.monotonic() - started >= self.seconds:
            return f"the best plan after {self.seconds:g} s, as long as was allowed"
        return ""


UNLIMITED = Budget()
