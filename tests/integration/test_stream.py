"""The stream in time: what it drops, waits for and raises, and "unknown" whenever it should be."""

import itertools
import random
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jaxtyping
import numpy as np
import pytest
import torch
from stream_world import GOOD, SPACING, Clock, F, best, full, image, recording, trained

from simv0.alarm.confirmation import Confirmation
from simv0.config.schema import Config
from simv0.errors import ConfigError
from simv0.predict import Predictor
from simv0.runtime.threads import limited_to
from simv0.stream import OVERSAMPLING, State, Stream


@pytest.fixture(scope="module")
def run(models: Path, manifests: Path, tmp_path_factory: pytest.TempPathFactory) -> Config:
    return trained(models, manifests, tmp_path_factory.mktemp("stream"))


@pytest.fixture(scope="module")
def predictor(run: Config) -> Predictor:
    return Predictor.load(best(run))


def test_a_predictor_takes_the_threads_that_it_is_given(run: Config) -> None:
    with limited_to(3):
        assert Predictor.load(best(run)).threads == 3
        assert Predictor.load(best(run), threads=2).threads == 2
        assert torch.get_num_threads() == 3  # the caller's own
    with pytest.raises(ConfigError, match="^threads: expected a number of threads from 1 to 1024, found 0$"):
        Predictor.load(best(run), threads=0)


# ---- time -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("factor", "known"), [(0.55, True), (1.0, True), (1.45, True), (1.55, False), (0.3, True)])
def test_spacing_may_be_off_by_half(predictor: Predictor, factor: float, known: bool) -> None:
    stream = recording(predictor, stale_after=10.0)
    for i in range(20):
        state = stream.push(image(), GOOD, i * SPACING * factor)
    assert (state.risk != "unknown") == known
    if not known:
        assert state.unknown == "frames 0.310 s apart, 0.000 s before the newest one; expected 0.2 s, within half of it"
        assert state.outcome == "waiting"
        assert state.problem == f"push[19]: {state.unknown}"


def test_a_gap_is_unknown_until_the_window_has_left_it_behind(predictor: Predictor) -> None:
    stream = full(predictor)
    states = [stream.push(image(), GOOD, 1.0 + i * SPACING) for i in range(F)]  # 0.4 s after the last frame
    assert [state.risk == "unknown" for state in states] == [True, True, True, False]


def test_it_fills_before_it_speaks_and_starts_over_with_the_clock(predictor: Predictor) -> None:
    stream = recording(predictor)
    states = [stream.push(image(), GOOD, 5 + i * SPACING) for i in range(F)]
    assert [state.outcome for state in states] == ["waiting"] * 3 + ["judged"]
    assert states[0].unknown == "the window is not full yet: 1 of 4 frames"
    assert states[0].alarm is None
    late = stream.push(image(), GOOD, 5.5)
    assert (late.outcome, late.problem) == ("bad", "push[4]: t is 5.500, not after the last frame's 5.600")
    assert late.risk != "unknown"
    states = [stream.push(image(), GOOD, i * SPACING) for i in range(F)]
    assert [state.outcome for state in states] == ["waiting"] * 3 + ["judged"]
    assert states[0].problem == (
        "push[5]: t went back 5.600 s, so the stream was restarted; the window is not full yet: 1 of 4 frames"
    )


def slow(stream: Stream, clock: Clock, seconds: float) -> Any:
    """Let every encoding take `seconds` on the test's clock."""

    def spend(*_: Any) -> None:
        clock.now += seconds

    assert stream.predictor.model.encoder is not None
    return stream.predictor.model.encoder.register_forward_hook(spend)


def drive(stream: Stream, clock: Clock, times: list[float]) -> Iterator[tuple[float, State]]:
    """Push frames as a queue hands them over: none before its time, late ones at once."""
    for t in times:
        clock.now = max(clock.now, t)
        yield t, stream.push(image(), GOOD, t)


def test_the_newest_frame_wins_when_the_model_is_slow(predictor: Predictor) -> None:
    """Frames every 0.1 s, 0.27 s a prediction. By hand: that of 0 ends at 0.27, when 0.1 and 0.2 wait: 0.2 is taken and
    ends at 0.54; 0.3 and 0.4 have 0.5 behind them, which is taken and ends at 0.81; of 0.6, 0.7, 0.8 the last; ...
    """
    clock = Clock()
    stream = Stream(predictor, 0.25, clock=clock)
    hook = slow(stream, clock, 0.27)
    outcomes = {t: state.outcome for t, state in drive(stream, clock, [i / 10 for i in range(15)])}
    hook.remove()
    assert [t for t, outcome in outcomes.items() if outcome != "dropped"] == [0.0, 0.2, 0.5, 0.8, 1.0, 1.3]
    stats = stream.stats()
    assert (stats["pushed"], stats["dropped"], stats["encoded"], stats["judged"]) == (15, 9, 6, 3)
    assert stats["latency_p50_ms"] == pytest.approx(270)
    assert stats["age_p50_ms"] == pytest.approx(320)  # 0.8, 1.0 and 1.3 had waited 10, 80 and 50 ms
    assert stream.state().risk != "unknown"  # 0.5, 0.8, 1.0, 1.3 lie within half of 0.25 s


def test_a_recording_is_never_dropped(predictor: Predictor) -> None:
    clock = Clock()
    stream = recording(predictor, clock=clock)
    hook = slow(stream, clock, 5.0)
    outcomes = [stream.push(image(), GOOD, i * SPACING).outcome for i in range(6)]
    hook.remove()
    assert outcomes == ["waiting"] * 3 + ["judged"] * 3


def test_clocks_that_differ_are_told_and_never_known(predictor: Predictor) -> None:
    clock = Clock()
    clock.now = 1000.0
    stream = Stream(predictor, SPACING, clock=clock)
    state = stream.push(image(), GOOD, 3.0)
    assert state.outcome == "dropped"
    assert state.problem == "push[0]: 997.000 s late, so a newer frame has arrived (or the clocks differ)"
    assert (state.outcome, state.risk) == ("dropped", "unknown")
    for t, seems in (
        (1e6 + 5, "t looks like milliseconds"),
        (1e12, "t looks like nanoseconds"),
        (1.7e12, "t looks like milliseconds"),  # since 1970
        (1.7e9, "t looks like seconds since 1970, which are of clock=time.time"),
    ):
        state = stream.push(image(), GOOD, t)
        assert (state.outcome, state.risk) == ("bad", "unknown")
        assert state.problem == (
            f"push[{stream.counts['pushed'] - 1}]: t is {t - 1000:.3f} s in the future of the stream's clock; {seems}"
        )
    assert Stream(predictor, SPACING, clock=clock, camera_delay=0.5).push(image(), GOOD, 999.5).outcome == "waiting"


def test_milliseconds_of_a_recording_are_told_as_such(predictor: Predictor) -> None:
    stream = recording(predictor)
    states = [stream.push(image(), GOOD, 33.3 * i) for i in range(4)]
    apart = "frames 33.300 s apart, 0.000 s before the newest one; expected 0.2 s, within half of it"
    assert [state.unknown for state in states[1:]] == [apart, *2 * [f"{apart}; t looks like milliseconds"]]


def test_a_watchdog_beside_push_sees_one_push_as_a_whole(predictor: Predictor) -> None:
    """The camera's clock is set back again and again, while two threads ask."""
    stream = recording(predictor, alarm_threshold=0.0, confirm=(1, 1))
    faults: list[BaseException] = []
    asked, done = [0, 0], threading.Event()

    def watch(watcher: int) -> None:
        try:
            while not done.is_set():
                state, stats = stream.state(), stream.stats()
                assert (state.prediction is None) == (state.unknown is not None)
                if state.outcome == "judged":
                    assert state.age == 0
                    assert state.prediction is not None
                asked[watcher] += 1
                assert stats["pushed"] == sum(stats[outcome] or 0 for outcome in ("judged", "waiting", "bad"))
        except BaseException as fault:
            faults.append(fault)

    watchers = [threading.Thread(target=watch, args=(i,)) for i in range(2)]
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        for watcher in watchers:
            watcher.start()
        for i in range(120):
            stream.push(image(), GOOD, 1000 * (i // 6 % 2) + i * SPACING)
    finally:
        done.set()
        for watcher in watchers:
            watcher.join()
        sys.setswitchinterval(before)
    assert faults == []
    assert min(asked) > 100


def test_a_watchdog_sees_a_dead_camera(predictor: Predictor) -> None:
    clock = Clock()
    stream = Stream(predictor, SPACING, clock=clock, stale_after=0.5)
    states = [state for _, state in drive(stream, clock, [i * SPACING for i in range(F)])]
    assert states[-1].risk != "unknown"
    clock.now = 1.0
    assert stream.state().risk != "unknown"
    assert stream.state().age == pytest.approx(0.4)
    clock.now = 1.2
    assert stream.state().risk == "unknown"
    assert stream.state().unknown == "no good prediction for 0.600 s"


# ---- bad input --------------------------------------------------------------------------------------------------

BAD = [
    (None, GOOD, "frame: expected uint8 or float [3,H,W], found"),
    ("x.jpg", GOOD, "frame: expected"),
    (
        torch.zeros(24, 40, 3, dtype=torch.uint8),
        GOOD,
        "frame: expected [3,H,W], found uint8 [24,40,3]; put the channels first: permute(2, 0, 1), "
        "in numpy transpose(2, 0, 1)",
    ),
    (torch.full((3, 8, 8), torch.nan), GOOD, "frame: holds NaN or inf"),
    (image().float(), GOOD, "frame: float frames must lie in 0..1"),
    (image(), torch.full((8,), torch.nan), "telemetry: holds NaN or inf in ax, ay, az, gx, gy, gz, v, w"),
    (image(), torch.zeros(7), "telemetry: expected float [8]"),
    (image(), None, "telemetry: expected float [8]"),
]


@pytest.mark.parametrize(("frame", "telemetry", "problem"), BAD)
def test_bad_input_is_told_skipped_and_unknown_once_it_lasts(
    predictor: Predictor, frame: Any, telemetry: Any, problem: str
) -> None:
    stream = full(predictor, stale_after=0.3)
    before = stream.state()
    state = stream.push(frame, telemetry, 0.8)
    assert state.outcome == "bad"
    assert state.problem is not None
    assert state.problem.startswith("push[4]: ")
    assert problem in state.problem
    assert "\n" not in state.problem
    assert state.risk == before.risk != "unknown"
    state = stream.push(frame, telemetry, 1.0)
    assert (state.risk, state.prediction, state.alarm) == ("unknown", None, None)
    assert state.unknown == f"no good prediction for 0.400 s; last: {state.problem}"
    assert stream.stats()["bad"] == 2


def test_whatever_the_robots_drivers_give_is_read(predictor: Predictor) -> None:
    """The same numbers as views, lists and in other byte orders: one prediction."""
    numbers = [0.5, -0.25, 9.75, 0.0, 0.125, -1.0, 2.0, 0.25]
    pixels = image().numpy()
    bgr = pixels.transpose(1, 2, 0)[..., ::-1].copy()
    wide = np.zeros((8, 2), np.float32)
    wide[:, 0] = numbers
    given: list[tuple[Any, Any]] = [
        (image(), torch.tensor(numbers)),
        (pixels, numbers),
        (pixels, tuple(map(np.float64, numbers))),
        (bgr[..., ::-1].transpose(2, 0, 1), np.array(numbers[::-1])[::-1]),
        (pixels[:, ::-1][:, ::-1], np.array(numbers, ">f4")),
        (np.asfortranarray(pixels), wide[:, 0]),
        ((pixels / np.float32(255)).astype(">f4"), np.array(numbers, np.float16)),
    ]
    risks = []
    for frame, telemetry in given:
        stream = recording(predictor)
        for i in range(F):
            state = stream.push(frame, telemetry, np.float64(i * SPACING))
        assert state.prediction is not None, state
        risks.append(list(state.prediction["probs"]["risk"].values()))
    assert risks == [pytest.approx(risks[0], abs=1e-3)] * len(given)


@pytest.mark.parametrize("t", [float("nan"), float("inf"), None, "soon"])
def test_a_time_that_is_none(predictor: Predictor, t: Any) -> None:
    state = full(predictor).push(image(), GOOD, t)
    assert (state.outcome, state.problem) == ("bad", "push[4]: t: expected finite seconds")


def test_one_reading_lost_costs_one_prediction_not_a_window(predictor: Predictor) -> None:
    stream = full(predictor)
    stream.push(image(), torch.full((8,), torch.nan), 0.8)
    assert stream.push(image(), GOOD, 1.0).outcome == "judged"


# ---- alarm ------------------------------------------------------------------------------------------------------


def test_confirmation_and_hysteresis_by_hand() -> None:
    """2 of 3 at 0.5, taken back below 0.4."""
    scores = [0.9, 0.1, 0.5, 0.45, 0.45, 0.45, 0.39, 0.45, 0.39, 0.9, 0.3, 0.3, 0.9, 0.9]
    raised = [0, 0, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0, 1]
    alarm = Confirmation(0.5, (2, 3), 0.8)
    assert [int(alarm.update(score)) for score in scores] == raised


def test_one_threshold_is_in_force(predictor: Predictor) -> None:
    """The prediction's alarm is of the stream's threshold, the state's is confirmed: 2 of 3 by default."""
    stream = recording(predictor, alarm_threshold=0.0)
    states = [stream.push(image(i), GOOD, i * SPACING) for i in range(F + 1)]
    alarms = [(state.alarm, state.prediction and state.prediction["alarm"]) for state in states]
    assert alarms == [*3 * [(None, None)], (False, True), (True, True)]
    predictions = [full(predictor, alarm_threshold=threshold).state().prediction for threshold in (1.0, None)]
    assert [prediction and prediction["alarm"] for prediction in predictions] == [False, None]


def test_an_alarm_outlives_a_blind_camera(predictor: Predictor) -> None:
    stream = full(predictor, alarm_threshold=0.0, confirm=(1, 1))
    assert stream.state().alarm is True
    state = stream.state(now=100.0)
    assert (state.risk, state.alarm) == ("unknown", True)
    assert full(predictor, alarm_threshold=1.0).state().alarm is False
    assert full(predictor).state().alarm is None  # 5 high windows in val are too few for a threshold


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"spacing": 0.0}, "spacing: expected seconds > 0, found 0.0"),
        ({"spacing": "0.2"}, "spacing: expected seconds > 0, found '0.2'"),
        ({"spacing": True}, "spacing: expected seconds > 0, found True"),
        (
            {"spacing": None},
            "spacing: the checkpoint does not say how far apart the frames of its training windows are; give it in "
            "seconds (and train with data.frame_spacing)",
        ),
        (
            {"predictor": "best.pt"},
            "predictor: expected a Predictor, found 'best.pt'; load it with Predictor.load('best.pt')",
        ),
        ({"predictor": None}, "predictor: expected a Predictor, found None"),
        ({"confirm": 3}, "confirm: expected (N, M) with 1 <= N <= M, found 3"),
        ({"confirm": (2.0, 3)}, "confirm: expected (N, M) with 1 <= N <= M, found (2.0, 3)"),
        ({"release": "0.8"}, "release: expected a share in 0..1, found '0.8'"),
        ({"stale_after": [1]}, "stale_after: expected seconds > 0, found [1]"),
        ({"camera_delay": None}, "camera_delay: expected seconds >= 0, found None"),
        ({"live": "no"}, "live: expected True or False, found 'no'"),
        ({"clock": 0.5}, "clock: expected a function that returns seconds, found 0.5"),
        ({"stale_after": -1.0}, "stale_after: expected seconds > 0, found -1.0"),
        ({"confirm": (3, 2), "alarm_threshold": 0.5}, "confirm: expected (N, M) with 1 <= N <= M, found (3, 2)"),
        ({"alarm_threshold": 50.0}, "alarm_threshold: expected a probability, found 50.0"),
        ({"alarm_threshold": "0.5"}, "alarm_threshold: expected a probability, found '0.5'"),
    ],
)
def test_wrong_settings(
    predictor: Predictor, settings: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # as users run it
    with pytest.raises(ConfigError) as error:
        Stream(**{"predictor": predictor, "spacing": SPACING, **settings})
    assert str(error.value) == message


# ---- an hour ----------------------------------------------------------------------------------------------------


def test_an_hour_with_drops_gaps_bad_frames_and_a_slow_model(predictor: Predictor) -> None:
    """1,200 frames, 3 s apart with jitter; a quarter of an hour each: well, bad input, gaps, a model of 1.2 to 8 s.

    "Known" is worked out a second way from what came in: the frames that reached the encoder, and the good telemetry.
    """
    rng = random.Random(0)
    clock, spacing = Clock(), 3.0
    stream = Stream(predictor, spacing, clock=clock, alarm_threshold=0.3)
    pictures = [image(i) for i in range(8)]
    spend = [0.05]
    assert predictor.model.encoder is not None
    hook = predictor.model.encoder.register_forward_hook(lambda *_: setattr(clock, "now", clock.now + spend[0]))
    encoded: list[float] = []
    good = -1e9
    tally = {"known": 0, "unknown": 0}
    sizes = set()
    t = 0.0
    for i in range(1200):
        trouble = i // 300
        t += spacing * rng.uniform(0.9, 1.1) + (
            rng.choice([0.3, 2.0, 30.0]) if trouble == 2 and rng.random() < 0.02 else 0
        )
        frame: Any = pictures[i % 8]
        telemetry = torch.tensor([rng.gauss(0, 1) for _ in range(8)])
        if trouble == 1 and rng.random() < 0.1:
            frame, telemetry, _ = rng.choice(BAD)
        spend[0] = rng.uniform(1.2, 8.0) if trouble == 3 else 0.05
        clock.now = max(clock.now, t)
        before = stream.counts["encoded"]
        state = stream.push(frame, telemetry, t)
        if stream.counts["encoded"] > before:
            encoded = [*encoded[1 - F :], t]
            gaps = [b - a for a, b in itertools.pairwise(encoded)]
            fits = len(encoded) == F and all(abs(gap - spacing) <= spacing / 2 for gap in gaps)
            if fits and not any(telemetry is x[1] and "telemetry" in x[2] for x in BAD):
                good = t
        known = fits and clock.now - good <= stream.stale_after
        assert (state.risk != "unknown") == known, (i, t, state)
        assert (state.prediction is None) == (state.unknown is not None) == (not known)
        assert known or state.alarm is not False
        tally["known" if known else "unknown"] += 1
        if i % 300 == 299:
            sizes.add(sum(len(x) for x in vars(stream).values() if hasattr(x, "__len__")) - len(stream._latencies))
    hook.remove()
    stats = stream.stats()
    assert t > 3600
    assert tally["known"] > 500
    assert tally["unknown"] > 150
    assert stats["bad"] > 20  # type: ignore[operator]
    assert stats["dropped"] > 100  # type: ignore[operator]
    assert len(stream._ring) <= 2 * OVERSAMPLING * F
    assert max(sizes) < 2 * OVERSAMPLING * F + 1100  # the ring, 1000 ages, a handful of counts
