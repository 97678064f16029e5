"""The report on events: the table in words, time lines with missed events first, strips of what was missed."""

import html
import re
from typing import Any

import numpy as np
import pytest
import torch

from simv0.alarm.threshold import choose_alarm
from simv0.config.schema import EvaluationConfig
from simv0.data.labels import Labels
from simv0.evaluation.evaluated import Evaluated
from simv0.evaluation.event_plots import ROW, curve, rows
from simv0.evaluation.events import EventTable, replay_split
from simv0.evaluation.report import render
from simv0.labels import HEADS, HIGH

DRIVES, LONG = 12, 20
"""Recordings, and their windows at 2 Hz: one event of four windows in each."""
UNSEEN = 3
"""The recording in which the model sees nothing."""


def evaluated(**changes: Any) -> Evaluated:
    N = DRIVES * LONG
    place, drive = np.arange(N) % LONG, np.arange(N) // LONG
    ids = {head: np.zeros(N, int) for head in HEADS}
    ids["risk"] = np.where((place >= 8) & (place < 12), HIGH, 0)
    logits = {head: np.zeros((N, len(names)), np.float32) for head, names in HEADS.items()}
    logits["risk"][:, HIGH] = np.where((ids["risk"] == HIGH) & (drive != UNSEEN), 3.0, -3.0)
    logits["risk"][np.isin(np.arange(N), [2, 3, LONG + 16, LONG + 17]), HIGH] = 3.5  # two false alarms
    labels = Labels(
        telemetry=np.zeros((N, 8), np.float32),
        ids=ids,
        weight=np.ones(N, np.float32),
        sample_id=[f"w{i}" for i in range(N)],
        group=[f"drive{i:02d}" for i in drive],
        t=place * 0.5,
    )
    wanted = EvaluationConfig(target_recall=0.6)
    fields: dict[str, Any] = {
        "about": {"checkpoint": "best.pt", "data": "val", "epoch": 3, "windows": N},
        "metrics": {},
        "logits": logits,
        "labels": labels,
        "alarm": choose_alarm(logits, ids, labels.group, wanted, t=labels.t),
        "epoch": 3,
        "baselines": "left out",
        "history": ([], []),
        "frames": lambda i: torch.full((4, 3, 20, 30), i, dtype=torch.uint8),
    }
    return Evaluated(**{**fields, **changes})


def words(page: str) -> str:
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", page)).split())


@pytest.fixture(scope="module")
def page() -> str:
    return render(evaluated())


def test_it_says_in_words_what_the_alarm_finds_and_costs(page: str) -> None:
    """11 of 12 events, each raised at its second window; 2 false alarms of 1.5 s in 12 x 10 s."""
    text = words(page)
    assert "The alarm finds 11 of 12 events and misses 1. Half of those found are raised 0.5 s after their" in text
    assert "It cries for nothing 60.0 times an hour" in text
    assert "promised: 60 % or more" in text
    assert "worst recording: drive03: 0 of 1 events found" in text
    assert re.search(r"share of events found 0\.917 0\.\d+ to 1\.000", text)


def test_missed_events_come_first(page: str) -> None:
    captions = re.findall(r"<h3>(drive\d+, t = [^<]*)</h3>", page)
    assert captions[0] == "drive03, t = 0.0 s to 9.5 s: events missed: 1, false alarms: 0"
    assert captions[1] == "drive00, t = 0.0 s to 9.5 s: events missed: 0, false alarms: 1"
    assert len(captions) == 12
    text = words(page)
    assert re.search(
        r"Missed events 1 events; the worst 1, newest frame first: drive03, from 4\.0 s for 2\.0 s; ", text
    )
    assert "Its first window: w68: P(high) 0.0" in text
    assert re.search(r"Longest false alarms 2 false alarms; the worst 2.*drive00, raised at 1\.5 s for 1\.0 s\.", text)
    assert page.count("<img ") == 4 * (1 + 2)


def test_without_times_one_line_says_what_to_add() -> None:
    these = evaluated()
    labels = these.labels
    timeless = Labels(labels.telemetry, labels.ids, labels.weight, labels.sample_id, labels.group)
    text = words(render(evaluated(labels=timeless)))
    assert "no event table: the windows have no t: give each its recording as `group` and the seconds of its" in text
    assert "worst recording: drive03: recall 0.000 of 4 high windows" in text
    assert "High windows without an alarm" in text
    assert "there is no threshold: only best.pt has an alarm" in words(render(evaluated(alarm=None)))


def test_the_curve_goes_from_no_alarm_to_one_that_never_ends() -> None:
    table = evaluated().events
    assert isinstance(table, EventTable)
    line = curve(table)
    assert (line.found[0], line.false_alarms_per_hour[0], line.time_in_alarm[0]) == (0, 0, 0)
    assert line.found[-1] == 1
    assert line.time_in_alarm[-1] == pytest.approx(19 / 20)  # one window alone never raises it
    assert (np.diff(line.found) >= 0).all()
    assert (np.diff(line.time_in_alarm) >= 0).all()


def test_a_long_recording_is_drawn_in_parts_that_together_are_all_of_it() -> None:
    n = 2 * ROW + 1
    labels = evaluated().labels
    ids = {head: np.zeros(n, int) for head in HEADS}
    long = Labels(
        np.zeros((n, 8), np.float32), ids, np.ones(n, np.float32), labels.sample_id, ["a"] * n, np.arange(n) * 1.0
    )
    replayed = replay_split(long, np.zeros(n), [2, 3], 0.8, None)
    assert not isinstance(replayed, str)
    parts = rows(EventTable(replayed, 0.5))
    assert [(part.first, part.end) for part in parts] == [(0, 201), (201, 401), (401, n)]
