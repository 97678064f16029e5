"""The model card, of checkpoints that lack what a whole one has."""

import pytest
from export_world import checkpoint

from simv0.export.card import model_card

ALARM = {
    "target_recall": 0.95, "max_false_alarm_rate": 0.05, "windows": 9, "n_high": 0, "groups": None,
    "reason": "val has no high", "chosen": None, "at_max_false_alarm_rate": None,
    "temperatures": {}, "ece_before": {}, "ece_after": {},
}  # fmt: skip
POINT = {
    "threshold": 0.5,
    "recall": {"value": 1.0, "low": 0.9, "high": 1.0},
    "false_alarm_rate": {"value": 0.0, "low": 0.0, "high": 0.1},
}


def test_without_a_threshold_no_alarm_is_described() -> None:
    card = model_card("rover", checkpoint(alarm=ALARM), {}, [])
    assert "alarm: no threshold: val has no high. `Stream` raises none, and its alarm is always `None`.\n" in card
    assert "Raised when" not in card
    card = model_card("rover", checkpoint(alarm={**ALARM, "chosen": POINT}), {}, [])
    assert "Raised when 2 of 3 windows reach the threshold, released at 0.8 of it." in card


@pytest.mark.parametrize(
    ("spacing", "line"),
    [(0.2, "stream = Stream(predictor)\n"), (None, "stream = Stream(predictor, spacing=SECONDS)\n")],
)
def test_the_lines_to_use_it_run_as_they_are_where_the_spacing_is_known(spacing: float | None, line: str) -> None:
    assert line in model_card("rover", checkpoint(encoder={"a": "b"}, frame_spacing=spacing), {}, [])
