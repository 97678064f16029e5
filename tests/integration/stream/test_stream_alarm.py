"""The alarm of a stream: confirmed, released, and kept while the camera is blind."""

import copy

from stream_world import GOOD, SPACING, F, full, image, recording

from simv0.alarm.confirmation import Confirmation
from simv0.predict import Predictor
from simv0.stream import State


def test_confirmation_and_hysteresis_by_hand() -> None:
    """2 of 3 at 0.5, taken back below 0.4."""
    scores = [0.9, 0.1, 0.5, 0.45, 0.45, 0.45, 0.39, 0.45, 0.39, 0.9, 0.3, 0.3, 0.9, 0.9]
    raised = [0, 0, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0, 1]
    alarm = Confirmation((2, 3), 0.8)
    assert [int(alarm.update(score, float(t)) >= 0.5) for t, score in enumerate(scores)] == raised


def alarms_of(state: State) -> tuple[bool | None, bool | None]:
    """The prediction's: confirmed, and of the window alone."""
    return (None, None) if state.prediction is None else (state.prediction["alarm"], state.prediction["window_alarm"])


def test_one_threshold_is_in_force(predictor: Predictor) -> None:
    """That of the stream: confirmed (2 of 3 by default) in state and prediction; apart from it the window's."""
    stream = recording(predictor, alarm_threshold=0.0)
    states = [stream.push(image(i), GOOD, i * SPACING) for i in range(F + 1)]
    alarms = [(state.alarm, *alarms_of(state)) for state in states]
    assert alarms == [*3 * [(None, None, None)], (False, False, True), (True, True, True)]
    others = [alarms_of(full(predictor, alarm_threshold=threshold).state()) for threshold in (1.0, None)]
    assert others == [(False, False), (None, None)]


def test_the_alarm_is_confirmed_as_the_checkpoint_says_unless_told_otherwise(predictor: Predictor) -> None:
    chosen = predictor.meta.alarm
    assert chosen is not None
    once = chosen.model_copy(update={"confirm": [1, 4], "release": 0.5})
    eager, bare = copy.copy(predictor), copy.copy(predictor)
    eager.meta = predictor.meta.model_copy(update={"alarm": once})
    bare.meta = predictor.meta.model_copy(update={"alarm": None})  # last.pt
    assert full(eager, alarm_threshold=0.0).state().alarm is True
    assert full(eager, alarm_threshold=0.0, confirm=(2, 3)).state().alarm is False
    settings = [(it.n, it.release) for it in (full(eager).confirmation, full(bare).confirmation)]
    assert settings == [(1, 0.5), (2, 0.8)]
    assert full(eager, release=0.9).confirmation.release == 0.9


def test_an_alarm_outlives_a_blind_camera(predictor: Predictor) -> None:
    stream = full(predictor, alarm_threshold=0.0, confirm=(1, 1))
    assert stream.state().alarm is True
    state = stream.state(now=100.0)
    assert (state.risk, state.alarm) == ("unknown", True)
    assert full(predictor, alarm_threshold=1.0).state().alarm is False
    assert full(predictor).state().alarm is None  # 5 high windows in val are too few for a threshold
