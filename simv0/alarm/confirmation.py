"""The confirmed alarm: one window alone neither raises it nor takes it back.

`Stream` runs it on a robot, `alarm.events` over recordings: there is one implementation.
"""

import math
from collections import deque
from collections.abc import Sequence
from typing import Any

from simv0.arguments import is_number, require

STALE = 3
"""So many frame spacings after the last score, it and those before it confirm nothing."""


class Confirmation:
    """N-of-M with hysteresis: the alarm is raised when N of the last M scores reach the threshold, and taken back when
    too few of them to raise it reach `release` x threshold.

    All of this can be said without a threshold: the alarm is raised wherever `level`, a number of its own for each
    window, reaches it. So one run over the scores serves every threshold.

    Args:
        confirm: (N, M).
        release: the share.
        stale_after: seconds without a score after which the earlier ones confirm nothing; a raised alarm stays until
            new ones take it back.

    Raises:
        ConfigError: a setting out of range.
    """

    def __init__(self, confirm: Sequence[int], release: float, stale_after: float = math.inf) -> None:
        require(_is_n_of_m(confirm), "confirm", "(N, M) with 1 <= N <= M", confirm)
        require(is_number(release) and 0 < release <= 1, "release", "a share in 0..1", release)
        self.n, self.release, self.stale_after = confirm[0], release, stale_after
        self.level = -math.inf
        """The highest threshold at which the alarm is raised now; -inf before any."""
        self._scores: deque[tuple[float, bool]] = deque(maxlen=confirm[1])
        self._last = -math.inf

    def update(self, p_high: float, t: float, unlike: bool = False) -> float:
        """Take the P(high) of the window that ends at `t` seconds; returns `level`.

        A window that is `unlike` the training data may raise the alarm, never help to take it back.
        """
        if not 0 <= t - self._last <= self.stale_after:
            self._scores.clear()
        self._scores.append((p_high, unlike))
        self._last = t
        n, m = self.n, self._scores.maxlen or 0
        scores = sorted(score for score, _ in self._scores)
        calming = sorted(score for score, unlike in self._scores if not unlike)
        raises_at = scores[-n] if len(scores) >= n else -math.inf
        stays_at = calming[m - n] / self.release if len(calming) > m - n else math.inf
        self.level = max(raises_at, min(self.level, stays_at))
        return self.level


def _is_n_of_m(value: Any) -> bool:
    pair = isinstance(value, (tuple, list)) and len(value) == 2
    return pair and all(isinstance(n, int) and not isinstance(n, bool) for n in value) and 1 <= value[0] <= value[1]
