"""The confirmed alarm of a stream: one window alone neither raises it nor takes it back."""

from collections import deque
from typing import Any

from simv0.arguments import is_number, require


class Confirmation:
    """N-of-M with hysteresis: the alarm is raised when N of the last M scores reach the threshold, and taken back when
    too few of them to raise it reach `release` x threshold.

    Raises:
        ConfigError: a setting out of range.
    """

    def __init__(self, threshold: float, confirm: tuple[int, int] = (2, 3), release: float = 0.8) -> None:
        require(is_number(threshold) and 0 <= threshold <= 1, "alarm_threshold", "a probability", threshold)
        require(_is_n_of_m(confirm), "confirm", "(N, M) with 1 <= N <= M", confirm)
        require(is_number(release) and 0 < release <= 1, "release", "a share in 0..1", release)
        self.threshold, self.n, self.release = threshold, confirm[0], release
        self.raised = False
        self._scores: deque[float] = deque(maxlen=confirm[1])

    def update(self, p_high: float) -> bool:
        """Take the next window's P(high); returns whether the alarm is raised now."""
        self._scores.append(p_high)
        calm = sum(score < self.release * self.threshold for score in self._scores)
        if sum(score >= self.threshold for score in self._scores) >= self.n:
            self.raised = True
        elif calm > (self._scores.maxlen or 0) - self.n:
            self.raised = False
        return self.raised

    def forget(self) -> None:
        """Drop the scores; a raised alarm stays until new ones take it back."""
        self._scores.clear()


def _is_n_of_m(value: Any) -> bool:
    pair = isinstance(value, (tuple, list)) and len(value) == 2
    return pair and all(isinstance(n, int) and not isinstance(n, bool) for n in value) and 1 <= value[0] <= value[1]
