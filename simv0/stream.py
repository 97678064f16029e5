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
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from simv0.alarm.confirmation import STALE, Confirmation
from simv0.arguments import is_number, require
from simv0.config.schema import EvaluationConfig
from simv0.data.contract import check_sample
from simv0.data.spacing import choose_spacing, pick_window, unit_of_clock
from simv0.data.values import check_frames
from simv0.errors import DataError
from simv0.predict import Predictor

Outcome = Literal["judged", "waiting", "dropped", "bad"]

OVERSAMPLING = 8
"""Frames that arrive more than this many times per `spacing` are dropped unencoded, which bounds the ring."""
KEPT_LATENCIES = 1000


@dataclass(frozen=True)
class State:
    """What the stream knows at one moment.

    Act on `alarm`, the confirmed one. `prediction["alarm"]` is the same; what the newest window alone says, P(high) >=
    the threshold, is `prediction["window_alarm"]`.

    Attributes:
        outcome: what became of the frame pushed last: `judged`; `waiting` (encoded, but no whole window ends with it);
            `dropped` (a newer one was there already); `bad`.
        problem: why that frame was not judged, in one line; None when it was.
        risk: the newest prediction's risk, or "unknown".
        unknown: why the risk is unknown; None when it is known. Of a window that was judged but is unlike those of
            training it begins with "unlike the training data".
        prediction: the newest good prediction, as `SimV0Model.predict_json` gives it, but for the two alarms; None when
            unknown.
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


@dataclass(frozen=True)
class _Known:
    """All that one push leaves for `state` and `stats`: published as a whole, so that other threads may read it."""

    outcome: Outcome
    problem: str | None
    gap: str | None
    good: tuple[float, dict[str, Any], str | None] | None
    """Its time, what was predicted, and why it is unlike the training data."""
    raised: bool | None
    now: float
    counts: dict[str, int]
    latencies: tuple[float, ...]
    ages: tuple[float, ...]


class Stream:
    """A predictor that is fed frame by frame, by one thread; `state` and `stats` may be called from any.

    >>> stream = Stream(Predictor.load("runs/sim_v0/checkpoints/best.pt"), spacing=0.2)
    >>> state = stream.push(frame, telemetry, t=camera_seconds)
    >>> calm = state.risk != "unknown" and state.alarm is False  # None, without a threshold, is no all-clear
    >>> if not calm:
    ...     slow_down()

    Args:
        predictor: the loaded checkpoint.
        spacing: seconds between the frames of a training window; by default what the checkpoint says. Frames may come
            more often: a window takes those that lie `spacing` apart.
        stale_after: seconds after which the newest good prediction no longer counts; 3 x spacing by default.
        confirm: (N, M) of `Confirmation`; by default those that the checkpoint's alarm was chosen for.
        release: of `Confirmation`; by default the same.
        alarm_threshold: on P(high); by default the one that the checkpoint brings. Without either `alarm` is None.
        camera_delay: seconds from a frame's stamp to its push when nothing lags.
        live: False for recordings: then no frame is dropped for its age.
        clock: seconds, the clock that stamps the frames (`time.time` for ROS).

    Raises:
        ConfigError: a setting of a wrong type or out of range; no spacing, and the checkpoint does not know it.
    """

    def __init__(
        self,
        predictor: Predictor,
        spacing: float | None = None,
        *,
        stale_after: float | None = None,
        confirm: tuple[int, int] | None = None,
        release: float | None = None,
        alarm_threshold: float | None = None,
        camera_delay: float = 0.0,
        live: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        loads = f"; load it with Predictor.load({str(predictor)!r})" if isinstance(predictor, (str, Path)) else ""
        require(isinstance(predictor, Predictor), "predictor", "a Predictor", predictor, loads)
        predictor.check_takes_frames()
        spacing = choose_spacing(spacing, predictor.meta.frame_spacing)
        stale_after = STALE * spacing if stale_after is None else stale_after
        require(is_number(stale_after) and stale_after > 0, "stale_after", "seconds > 0", stale_after)
        require(is_number(camera_delay) and 0 <= camera_delay < math.inf, "camera_delay", "seconds >= 0", camera_delay)
        require(isinstance(live, bool), "live", "True or False", live)
        require(callable(clock), "clock", "a function that returns seconds", clock)
        self.predictor, self.spacing, self.live, self.clock = predictor, spacing, live, clock
        self.stale_after = float(stale_after)
        stored = predictor.meta.alarm
        threshold = alarm_threshold if alarm_threshold is not None else (stored.threshold if stored else None)
        probable = threshold is None or (is_number(threshold) and 0 <= threshold <= 1)
        require(probable, "alarm_threshold", "a probability", threshold)
        self.alarm_threshold = None if threshold is None else float(threshold)
        usual = stored or EvaluationConfig()
        self.confirmation = Confirmation(
            usual.confirm if confirm is None else confirm,
            usual.release if release is None else release,
            self.stale_after,
        )
        self.camera_delay = camera_delay
        self.counts: Counter[str] = Counter()
        """Frames pushed, encoded, judged (of which unlike the training data), waiting, dropped, bad."""
        self._latencies: deque[float] = deque(maxlen=KEPT_LATENCIES)
        self._ages: deque[float] = deque(maxlen=KEPT_LATENCIES)
        self._ring: deque[tuple[float, Tensor]] = deque(maxlen=2 * OVERSAMPLING * predictor.meta.F)
        self._begin()
        self._publish("waiting", "no frame yet")

    def _begin(self) -> None:
        """Reset to a state in which nothing is known."""
        self._ring.clear()
        self._now = -math.inf
        self._good: tuple[float, dict[str, Any], str | None] | None = None
        self._gap: str | None = "no frame yet"

    def _publish(self, outcome: Outcome, problem: str | None) -> None:
        """Publish the current state to other threads, by a single assignment of an immutable value."""
        self._known = _Known(
            outcome, problem, self._gap, self._good, self._reaches(self.confirmation.level), self._now,
            dict(self.counts), tuple(self._latencies), tuple(self._ages),
        )  # fmt: skip

    def push(self, frame: Any, telemetry: Any, t: Any) -> State:
        """Take one frame [3,H,W] (RGB; uint8, or float 0..1) with the raw telemetry [8] of its moment, `t` in seconds.

        `t` and `telemetry` are this frame's: a window is judged with the telemetry of its last frame, as in training.
        Never raises for what a camera or a sensor does: a bad frame is reported in the state and counted.
        """
        started = self.clock()
        self.counts["pushed"] += 1
        outcome, problem = self._take(frame, telemetry, t, started)
        self.counts[outcome] += 1
        if outcome == "judged":
            done = self.clock()
            self._latencies.append(done - started)
            self._ages.append(done - (self._now if self.live else started))
        self._publish(outcome, problem)
        return self.state()

    def _take(self, frame: Any, telemetry: Any, t: Any, started: float) -> tuple[Outcome, str | None]:
        """Process one frame as far as it gets."""
        where = f"push[{self.counts['pushed'] - 1}]"
        try:
            t = float(t)
        except (TypeError, ValueError):
            t = math.nan
        if not math.isfinite(t):
            return "bad", f"{where}: t: expected finite seconds"
        if self.live and t > started + self.spacing:
            return (
                "bad",
                f"{where}: t is {t - started:.3f} s in the future of the stream's clock{unit_of_clock(t, started)}",
            )
        anew = ""
        if t <= self._now:
            if self._now - t <= self.predictor.meta.F * self.spacing:
                return "bad", f"{where}: t is {t:.3f}, not after the last frame's {self._now:.3f}"
            anew = f"t went back {self._now - t:.3f} s, so the stream was restarted; "
            self._begin()  # the clock was set back, or a recording starts over
        since, self._now = t - self._now, t
        lag = started - t - self.camera_delay
        if self.live and lag >= min(since, self.spacing):
            return "dropped", f"{where}: {lag:.3f} s late, so a newer frame has arrived (or the clocks differ)"
        if self._ring and t - self._ring[-1][0] < self.spacing / OVERSAMPLING:
            return "dropped", f"{where}: more than {OVERSAMPLING} frames per spacing of {self.spacing:g} s"
        try:
            image = check_frames(frame, f"{where}: frame")
        except DataError as error:
            return "bad", str(error)
        feats = self.predictor.encode(image[None])[0]
        self.counts["encoded"] += 1
        if not torch.isfinite(feats).all():
            return "bad", f"{where}: its features are not finite"
        self._ring.append((t, feats))
        picked = pick_window([at for at, _ in self._ring], self.predictor.meta.F, self.spacing)
        self._gap = picked if isinstance(picked, str) else None
        try:
            sample = check_sample(
                {"telemetry": telemetry}, "push", self.counts["pushed"] - 1, F=1, labels=False, frames=False
            )
        except DataError as error:
            return "bad", str(error)  # its picture is good, and later windows need it
        if isinstance(picked, str):
            return "waiting", f"{where}: {anew}{picked}"
        window = torch.stack([self._ring[at][1] for at in picked])
        return self._judge(window, sample["telemetry"], t, where)

    def _judge(self, window: Tensor, telemetry: Tensor, t: float, where: str) -> tuple[Outcome, str | None]:
        """Predict, and bring the alarm up to date."""
        batch = {"vis_feats": window[None], "telemetry": telemetry[None], "sample_id": [f"{t:.3f}"]}
        judged = self.predictor.judge(batch)[0]  # type: ignore[arg-type]
        if not math.isfinite(judged.p_high):
            return "bad", f"{where}: its prediction is not finite"
        kept, distance = self.predictor.unlike, judged.distance
        unlike = None if kept is None or distance is None else kept.reason(distance, telemetry)
        confirmed = self._reaches(self.confirmation.update(judged.p_high, t, unlike is not None))
        alarms = {"alarm": confirmed, "window_alarm": self._reaches(judged.p_high)}
        self._good = (t, judged.as_json() | alarms, unlike)
        self.counts["unlike"] += unlike is not None
        return "judged", None

    def _reaches(self, score: float) -> bool | None:
        return None if self.alarm_threshold is None else score >= self.alarm_threshold

    def state(self, now: float | None = None) -> State:
        """What is known at `now` (default: by the clock; for a recording, at the last frame).

        Let a watchdog ask: where no frames come, no push can say that the state has become unknown.
        """
        known = self._known
        if now is None:
            now = self.clock() if self.live else known.now
        unknown, good = known.gap, known.good
        if unknown is None and (good is None or now - good[0] > self.stale_after):
            since = "yet" if good is None else f"for {now - good[0]:.3f} s"
            unknown = f"no good prediction {since}" + (f"; last: {known.problem}" if known.problem else "")
        elif unknown is None and good is not None:
            unknown = good[2]
        prediction = good[1] if unknown is None and good is not None else None
        return State(
            outcome=known.outcome,
            problem=known.problem,
            risk=prediction["risk"] if prediction else "unknown",
            unknown=unknown,
            prediction=prediction,
            alarm=None if known.raised is None else (known.raised or (False if prediction else None)),
            age=None if good is None else now - good[0],
        )

    def stats(self) -> dict[str, float | int | None]:
        """Counts of frames, and milliseconds: `latency` of a prediction, and the `age` that its frame had by then.

        Percentiles over the last 1000 predictions; None before two.
        """
        known = self._known
        result: dict[str, float | int | None] = {
            key: known.counts.get(key, 0)
            for key in ("pushed", "encoded", "judged", "unlike", "waiting", "dropped", "bad")
        }
        for name, seconds in (("latency", known.latencies), ("age", known.ages)):
            cuts = statistics.quantiles(seconds, n=100, method="inclusive") if len(seconds) > 1 else None
            result |= {f"{name}_p50_ms": 1e3 * cuts[49] if cuts else None}
            result |= {f"{name}_p99_ms": 1e3 * cuts[98] if cuts else None}
        return result
