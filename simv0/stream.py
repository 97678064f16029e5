"""Frame by frame on a robot: `Stream` encodes each frame once, and says "unknown" whenever it cannot know.

`push` works in the caller's thread, so it takes one prediction's time at most. What comes meanwhile waits in the
caller's queue; a frame that is older than the camera's interval when it is pushed has a newer one behind it and is
dropped unread: so the newest frame wins without threads or sleeping.
"""

import math
import statistics
import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from simv0.errors import ConfigError, DataError
from simv0.labels import HIGH, RISKS
from simv0.predict import Predictor
from simv0.samples import check_frames, check_sample

Outcome = Literal["judged", "waiting", "dropped", "bad"]

OVERSAMPLING = 8
"""Frames that come more than so many times as often as `spacing` are dropped unencoded: this bounds the ring."""
KEPT_LATENCIES = 1000
ROUNDING = 1e-6
"""Seconds since 1970 carry a rounding of 2e-7."""


@dataclass(frozen=True)
class State:
    """What the stream knows at one moment.

    Attributes:
        outcome: what became of the frame pushed last: `judged`; `waiting` (encoded, but no whole window ends with it);
            `dropped` (a newer one was there already); `bad`.
        problem: why that frame was not judged, in one line; None when it was.
        risk: the newest prediction's risk, or "unknown".
        unknown: why the risk is unknown; None when it is known.
        prediction: the newest good prediction, as `SimV0Model.predict_json` gives it; None when unknown.
        alarm: the confirmed alarm. It stays True while the risk is unknown (a blind camera is no reason to calm down),
            but is None, never False, where nothing is known or no threshold was chosen.
        age: seconds since the frame that was judged last; None before any.
    """

    outcome: Outcome
    problem: str | None
    risk: str
    unknown: str | None
    prediction: dict[str, Any] | None
    alarm: bool | None
    age: float | None


class Confirmation:
    """N-of-M with hysteresis: the alarm is raised when N of the last M scores reach the threshold, and taken back when
    too few of them to raise it reach `release` x threshold.

    Raises:
        ConfigError: a setting out of range.
    """

    def __init__(self, threshold: float, confirm: tuple[int, int] = (2, 3), release: float = 0.8) -> None:
        _require(0 <= threshold <= 1, "alarm_threshold", "a probability", threshold)
        _require(1 <= confirm[0] <= confirm[1], "confirm", "(N, M) with 1 <= N <= M", confirm)
        _require(0 < release <= 1, "release", "a share in 0..1", release)
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


class Stream:
    """A predictor that is fed frame by frame.

    >>> stream = Stream(Predictor.load("runs/sim_v0/checkpoints/best.pt"), spacing=0.2)
    >>> state = stream.push(frame, telemetry, t=camera_seconds)
    >>> stop = state.risk == "unknown" or state.alarm

    Args:
        predictor: the loaded checkpoint.
        spacing: seconds between the frames of a training window. Frames may come more often: a window takes those that
            lie `spacing` apart.
        stale_after: seconds after which the newest good prediction no longer counts; 3 x spacing by default.
        confirm: (N, M) of `Confirmation`.
        release: of `Confirmation`.
        alarm_threshold: on P(high); by default the one that the checkpoint brings.
        camera_delay: seconds from a frame's stamp to its push when nothing lags.
        live: False for recordings: then no frame is dropped for its age.
        clock: seconds, the clock that stamps the frames (`time.time` for ROS).

    Raises:
        ConfigError: a setting out of range.
    """

    def __init__(
        self,
        predictor: Predictor,
        spacing: float,
        *,
        stale_after: float | None = None,
        confirm: tuple[int, int] = (2, 3),
        release: float = 0.8,
        alarm_threshold: float | None = None,
        camera_delay: float = 0.0,
        live: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        _require(0 < spacing < math.inf, "spacing", "seconds > 0", spacing)
        _require(stale_after is None or stale_after > 0, "stale_after", "seconds > 0", stale_after)
        _require(0 <= camera_delay < math.inf, "camera_delay", "seconds >= 0", camera_delay)
        self.predictor, self.spacing, self.live, self.clock = predictor, spacing, live, clock
        self.stale_after = 3 * spacing if stale_after is None else stale_after
        stored = predictor.meta.alarm
        threshold = alarm_threshold if alarm_threshold is not None else (stored.threshold if stored else None)
        self.alarm = None if threshold is None else Confirmation(threshold, confirm, release)
        self.camera_delay = camera_delay
        self.counts: Counter[str] = Counter()
        """Frames pushed, encoded, judged, waiting, dropped, bad."""
        self._latencies: deque[float] = deque(maxlen=KEPT_LATENCIES)
        self._ages: deque[float] = deque(maxlen=KEPT_LATENCIES)
        self._ring: deque[tuple[float, Tensor]] = deque(maxlen=2 * OVERSAMPLING * predictor.meta.F)
        self._begin()

    def _begin(self) -> None:
        """Know nothing."""
        self._ring.clear()
        self._now = -math.inf
        self._good: tuple[float, dict[str, Any]] | None = None
        self._gap: str | None = "no frame yet"
        self._last: tuple[Outcome, str | None] = ("waiting", "no frame yet")

    def push(self, frame: Any, telemetry: Any, t: Any) -> State:
        """Take one frame [3,H,W] (uint8, or float 0..1) with the raw telemetry [8] of its moment, `t` in seconds.

        Never raises for what a camera or a sensor does: a bad frame is told in the state and counted.
        """
        started = self.clock()
        self.counts["pushed"] += 1
        self._last = self._take(frame, telemetry, t, started)
        self.counts[self._last[0]] += 1
        if self._last[0] == "judged":
            done = self.clock()
            self._latencies.append(done - started)
            self._ages.append(done - (self._now if self.live else started))
        return self.state()

    def _take(self, frame: Any, telemetry: Any, t: Any, started: float) -> tuple[Outcome, str | None]:
        """Follow one frame as far as it leads."""
        where = f"push[{self.counts['pushed'] - 1}]"
        try:
            t = float(t)
        except (TypeError, ValueError):
            t = math.nan
        if not math.isfinite(t):
            return "bad", f"{where}: t: expected finite seconds"
        if self.live and t > started + self.spacing:
            return "bad", f"{where}: t is {t - started:.3f} s in the future of the stream's clock"
        anew = ""
        if t <= self._now:
            if self._now - t <= self.predictor.meta.F * self.spacing:
                return "bad", f"{where}: t is {t:.3f}, not after the last frame's {self._now:.3f}"
            anew = f"t went back {self._now - t:.3f} s, so the stream has begun anew; "
            self._begin()  # the clock was set back, or a recording starts over
        since, self._now = t - self._now, t
        lag = started - t - self.camera_delay
        if self.live and lag >= min(since, self.spacing):
            return "dropped", f"{where}: {lag:.3f} s late, so a newer frame is there (or the clocks differ)"
        if self._ring and t - self._ring[-1][0] < self.spacing / OVERSAMPLING:
            return "dropped", f"{where}: more than {OVERSAMPLING} frames in one spacing of {self.spacing:g} s"
        try:
            image = check_frames(frame, f"{where}: frame")
        except DataError as error:
            return "bad", str(error)
        feats = self.predictor.encode(image[None])[0]
        self.counts["encoded"] += 1
        if not torch.isfinite(feats).all():
            return "bad", f"{where}: its features are not finite"
        self._ring.append((t, feats))
        window, self._gap = self._window()
        try:
            sample = check_sample(
                {"telemetry": telemetry}, "push", self.counts["pushed"] - 1, F=1, labels=False, frames=False
            )
        except DataError as error:
            return "bad", str(error)  # its picture is good, and later windows need it
        if window is None:
            return "waiting", f"{where}: {anew}{self._gap}"
        return self._judge(window, sample["telemetry"], t, where)

    def _window(self) -> tuple[Tensor | None, str | None]:
        """The F features that end with the newest frame and lie `spacing` apart, or why there are none."""
        at, picked = len(self._ring) - 1, []
        newest = self._ring[at][0]
        while True:
            t, feats = self._ring[at]
            picked.append(feats)
            if len(picked) == self.predictor.meta.F:
                return torch.stack(picked[::-1]), None
            earlier = range(at)
            if not earlier:
                return None, f"the window is not full yet: {len(picked)} of {self.predictor.meta.F} frames"
            at = min(earlier, key=lambda i: (abs(t - self.spacing - self._ring[i][0]), -i))
            if abs(t - self._ring[at][0] - self.spacing) > self.spacing / 2 + ROUNDING:
                return None, (
                    f"frames {t - self._ring[at][0]:.3f} s apart, {newest - t:.3f} s before the newest one; "
                    f"expected {self.spacing:g} s, within half of it"
                )

    def _judge(self, window: Tensor, telemetry: Tensor, t: float, where: str) -> tuple[Outcome, str | None]:
        """Predict, and bring the alarm up to date."""
        batch = {"vis_feats": window[None], "telemetry": telemetry[None], "sample_id": [f"{t:.3f}"]}
        prediction = self.predictor.predict_batch(batch)[0]  # type: ignore[arg-type]
        p_high = prediction["probs"]["risk"][RISKS[HIGH]]
        if not math.isfinite(p_high):
            return "bad", f"{where}: its prediction is not finite"
        if self.alarm is not None:
            if self._stale(t):
                self.alarm.forget()  # windows from before the gap confirm nothing
            self.alarm.update(p_high)
        self._good = (t, prediction)
        return "judged", None

    def _stale(self, now: float) -> bool:
        return self._good is None or now - self._good[0] > self.stale_after

    def state(self, now: float | None = None) -> State:
        """What is known at `now` (default: by the clock; for a recording, at the last frame).

        Let a watchdog ask: where no frames come, no push can say that the state has become unknown.
        """
        if now is None:
            now = self.clock() if self.live else self._now
        outcome, problem = self._last
        unknown = self._gap
        if unknown is None and self._stale(now):
            since = "yet" if self._good is None else f"for {now - self._good[0]:.3f} s"
            unknown = f"no good prediction {since}" + (f"; last: {problem}" if problem else "")
        known = unknown is None and self._good is not None
        prediction = self._good[1] if known and self._good else None
        raised = None if self.alarm is None else (self.alarm.raised or (False if known else None))
        return State(
            outcome=outcome,
            problem=problem,
            risk=prediction["risk"] if prediction else "unknown",
            unknown=unknown,
            prediction=prediction,
            alarm=raised,
            age=None if self._good is None else now - self._good[0],
        )

    def stats(self) -> dict[str, float | int | None]:
        """Counts of frames, and milliseconds: `latency` of a prediction, and the `age` that its frame had by then.

        Percentiles over the last 1000 predictions; None before two.
        """
        result: dict[str, float | int | None] = {
            key: self.counts[key] for key in ("pushed", "encoded", "judged", "waiting", "dropped", "bad")
        }
        for name, seconds in (("latency", self._latencies), ("age", self._ages)):
            cuts = statistics.quantiles(seconds, n=100, method="inclusive") if len(seconds) > 1 else None
            result |= {f"{name}_p50_ms": 1e3 * cuts[49] if cuts else None}
            result |= {f"{name}_p99_ms": 1e3 * cuts[98] if cuts else None}
        return result


def _require(holds: bool, name: str, expected: str, found: Any) -> None:
    if not holds:
        raise ConfigError(f"{name}: expected {expected}, found {found}")
