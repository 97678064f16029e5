"""The event table, worked out by hand; rates of each recording; intervals over recordings."""

import math
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from simv0.data.labels import Labels
from simv0.evaluation.by_recording import by_recording, worst, worst_line
from simv0.evaluation.events import EventTable, Figure, Replayed, replay_split
from simv0.labels import HEADS, HIGH

A = "..HHH...H."
"""One letter a second: an event from 2 s to 4 s, another at 8 s."""
P_A = [0, 0.6, 0, 0.6, 0.6, 0.6, 0, 0.6, 0.6, 0]
"""A false alarm at 1 s; the first event's raised one second late, and for one longer; the second's a second early."""


def windows(recordings: dict[str, str]) -> Labels:
    truth = "".join(recordings.values())
    ids = {head: np.zeros(len(truth), int) for head in HEADS}
    ids["risk"] = np.array([HIGH if letter == "H" else 0 for letter in truth])
    return Labels(
        telemetry=np.zeros((len(truth), 8), np.float32),
        ids=ids,
        weight=np.ones(len(truth), np.float32),
        sample_id=[str(i) for i in range(len(truth))],
        group=[name for name, letters in recordings.items() for _ in letters],
        t=np.array([float(i) for letters in recordings.values() for i in range(len(letters))]),
    )


def replayed(recordings: dict[str, str], p_high: list[float], confirm: tuple[int, int] = (1, 1)) -> Replayed:
    """With 1 of 1 and no hysteresis by default: the alarm is raised where P(high) reaches the threshold."""
    found = replay_split(windows(recordings), np.array(p_high, np.float64), confirm, 1.0, None)
    assert isinstance(found, Replayed)
    return found


def values(table: EventTable) -> dict[str, Any]:
    return {name: None if figure is None else figure.value for name, figure in table.figures.items()}


def test_the_table_by_hand() -> None:
    table = EventTable(replayed({"a": A, "b": "...."}, [*P_A, 0, 0.9, 0.9, 0]), 0.5)
    assert table.found.tolist() == [True, True]
    assert table.leads.tolist() == [-1, 1]
    assert table.lengths.tolist() == [1, 2]  # seconds of the false ones: a's first and b's
    assert values(table) == pytest.approx(
        {
            "found": 1.0,
            "lead_p10_seconds": -0.8,
            "lead_p50_seconds": 0.0,
            "lead_p90_seconds": 0.8,
            "false_alarms_per_hour": 2 / (14 / 3600),
            "false_alarm_p10_seconds": 1.1,
            "false_alarm_p50_seconds": 1.5,
            "false_alarm_p90_seconds": 1.9,
            "share_of_time_in_alarm": 8 / 14,
        }
    )
    assert "2 events in 2 recordings of 0.2 minutes together; the alarm: 1 of 1 windows at P(high) >= 0.5" in str(table)
    plain = table.plain()
    assert (plain["events"], plain["missed"], plain["false_alarms"], plain["recordings"]) == (2, 0, 2, 2)
    assert plain["found"] == {"value": 1.0, "low": None, "high": None}  # two recordings have no spread

    silent = EventTable(table.replayed, 0.95)
    assert values(silent) == {**dict.fromkeys(values(silent)), "found": 0, "false_alarms_per_hour": 0,
                              "share_of_time_in_alarm": 0}  # fmt: skip


def test_one_early_window_finds_an_event_only_if_the_alarm_is_still_raised_in_it() -> None:
    assert EventTable(replayed({"a": "...H..."}, [0, 0.6, 0.6, 0, 0, 0, 0], (2, 3)), 0.5).found.tolist() == [True]
    assert EventTable(replayed({"a": "....H.."}, [0, 0.6, 0.6, 0, 0, 0, 0], (2, 3)), 0.5).found.tolist() == [False]
    late = EventTable(replayed({"a": "..H...."}, [0, 0, 0.6, 0.6, 0, 0, 0], (2, 3)), 0.5)
    assert (late.found.tolist(), len(late.false)) == ([False], 1)  # raised when the event is over


def test_intervals_are_over_recordings_and_their_far_ends_exact() -> None:
    recordings = {f"{i:02d}": A for i in range(20)}
    table = EventTable(replayed(recordings, [*P_A * 10, *[0.0] * 100]), 0.5)  # ten find all, ten find nothing
    found = table.figures["found"]
    assert found is not None
    assert found.low is not None
    assert found.high is not None
    assert (found.value, found.high - found.low) == pytest.approx((0.5, 2 * 1.96 * math.sqrt(0.25 / 20)), rel=0.15)
    every, never = (EventTable(table.replayed, threshold).figures for threshold in (0.0, 1.0))
    assert every["found"] == Figure(1.0, 0.025 ** (1 / 20), 1.0)
    assert never["false_alarms_per_hour"] == Figure(0.0, 0.0, -math.log(0.025) / (200 / 3600))
    assert never["lead_p50_seconds"] is None


def test_ranking_of_events_against_slices_of_calm() -> None:
    """Events of 3 and 1 windows (median 2): calm is cut in twos, and its first window after an event left out."""
    these = replayed({"a": A}, [0.1, 0.2, 0.5, 0.3, 0.4, 0.9, 0.6, 0.5, 0.5, 0.8])
    assert these.scores.tolist() == [0.5, 0.5]
    assert these.calm_scores.tolist() == [0.2, 0.6]
    truth, scores = [1, 1, 0, 0], [0.5, 0.5, 0.2, 0.6]
    assert these.ranking["auroc"] == pytest.approx(roc_auc_score(truth, scores), abs=1e-12)
    assert these.ranking["average_precision"] == pytest.approx(average_precision_score(truth, scores), abs=1e-12)
    assert replayed({"a": "..."}, [0, 0, 0]).ranking == {"auroc": None, "average_precision": None}
    unconfirmed = replayed({"a": "H..", "b": "..."}, [0.9] * 6, (3, 3))  # two windows raise at no threshold
    assert unconfirmed.ranking["auroc"] == 0.25


def test_each_recording_has_its_rates_and_the_worst_its_name() -> None:
    recordings = {"good": A, "poor": A, "calm": "...."}
    labels, p_high = windows(recordings), [*P_A, *[0.6 * (i == 8) for i in range(10)], 0, 0.6, 0, 0]
    table, raised = EventTable(replayed(recordings, p_high), 0.5), np.array(p_high) >= 0.5
    is_high = labels.ids["risk"] == HIGH
    rows = by_recording(labels.group, is_high, raised, table)
    assert [row["recording"] for row in rows] == ["poor", "good", "calm"]
    assert rows[0] == pytest.approx(
        {
            "recording": "poor", "windows": 10, "high": 4, "recall": 0.25, "false_alarm_rate": 0.0, "events": 2,
            "found": 1, "hours": 10 / 3600, "false_alarms": 0, "false_alarms_per_hour": 0.0,
            "share_of_time_in_alarm": 0.1,
        }
    )  # fmt: skip
    assert (rows[2]["recall"], rows[2]["false_alarms"], rows[2]["false_alarm_rate"]) == (None, 1, 0.25)
    assert worst_line(rows) == "worst recording: poor: 1 of 2 events found"
    without = by_recording(labels.group, is_high, raised, None)
    assert worst_line(without) == "worst recording: poor: recall 0.250 of 4 high windows"
    assert worst(by_recording(["x"], np.array([False]), np.array([True]), None)) is None
    assert by_recording(None, is_high, raised, None) == []
