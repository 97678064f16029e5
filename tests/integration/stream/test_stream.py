"""The stream in time: what it drops, waits for and raises, and "unknown" whenever it should be."""

import itertools
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from stream_world import GOOD, SPACING, Clock, F, best, full, image, recording

from simv0.config.schema import Config
from simv0.errors import ConfigError
from simv0.predict import Predictor
from simv0.runtime.threads import limited_to
from simv0.stream import State, Stream


def test_a_predictor_takes_the_threads_that_it_is_given(run: Config) -> None:
    with limited_to(3):
        assert Predictor.load(best(run)).threads == 3
        assert Predictor.load(best(run), threads=2).threads == 2
        assert torch.get_num_threads() == 3  # the caller's own
    with pytest.raises(ConfigError, match="^threads: expected a number of threads from 1 to 1024, found 0$"):
        Predictor.load(best(run), threads=0)


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
        (1.7e9, "t looks like seconds since 1970, which need clock=time.time"),
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
        for i in itertools.count():
            stream.push(image(), GOOD, 1000 * (i // 6 % 2) + i * SPACING)
            if (i >= 120 and min(asked) > 100) or faults:
                break
    finally:
        done.set()
        for watcher in watchers:
            watcher.join()
        sys.setswitchinterval(before)
    assert faults == []


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
