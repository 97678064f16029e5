"""What is promised of an alarm is measured by replay: it must be the alarm that a stream gives, at every frame."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from stream_world import GOOD, SPACING, F, recording
from torch import Tensor

from simv0.alarm.events import Timeline, replay, timeline
from simv0.data.images import load_image
from simv0.data.jsonl import read_jsonl
from simv0.predict import Predictor

RECORDINGS = {"autocar00": 146, "autocar04": 292, "autocar14": 100}
"""Of a real car, and their frames: no two so close that the middle one of three could be left out of a window."""


def drive(folder: Path, name: str) -> tuple[list[Tensor], list[float]]:
    """The frames of a recording and their times; 0.2 s before the next where no window ends with a frame."""
    rows = [row for row in read_jsonl(folder / "train.jsonl") if row["group"] == name]
    known = {row["frames"][-1]: row["t"] for row in rows}
    frames = sorted({frame for row in rows for frame in row["frames"]})
    times: list[float] = []
    for frame in reversed(frames):
        times.append(known.get(frame, times[-1] - SPACING if times else 0.0))
    return [load_image(folder / frame) for frame in frames], times[::-1]


def windows(times: list[float]) -> Iterator[int]:
    """The last frame of every window whose frames lie about a spacing apart."""
    for end in range(F - 1, len(times)):
        if (np.abs(np.diff(times[end - F + 1 : end + 1]) - SPACING) <= SPACING / 2).all():
            yield end


def test_replay_and_stream_agree_at_every_frame_of_three_real_recordings(predictor: Predictor, real: Path) -> None:
    drives = {name: drive(real / "data" / "autocar", name) for name in RECORDINGS}
    assert {name: len(frames) for name, (frames, _) in drives.items()} == RECORDINGS
    ends = {name: list(windows(times)) for name, (_, times) in drives.items()}
    group = [name for name in drives for _ in ends[name]]
    line = timeline(group, np.array([times[end] for name, (_, times) in drives.items() for end in ends[name]]))
    assert isinstance(line, Timeline)
    scores = [
        predictor.predict(torch.stack(frames[end - F + 1 : end + 1]), GOOD)["probs"]["risk"]["high"]
        for name, (frames, _) in drives.items()
        for end in ends[name]
    ]
    levels = replay(line, np.array(scores)[line.order], (2, 3), 0.99, SPACING)
    distinct = np.unique(levels[np.isfinite(levels)])
    threshold = float(distinct[len(distinct) // 2 - 1 : len(distinct) // 2 + 1].mean())  # apart from every level
    raised = iter(levels >= threshold)

    flips = 0
    for name, (frames, times) in drives.items():
        stream = recording(predictor, alarm_threshold=threshold, release=0.99)
        expected = False
        for at, (frame, t) in enumerate(zip(frames, times, strict=True)):
            state = stream.push(frame, GOOD, t)
            assert (state.outcome == "judged") == (at in ends[name]), f"{name}, frame {at}"
            before = expected
            expected = bool(next(raised)) if state.outcome == "judged" else expected
            assert (state.alarm is True) == expected, f"{name}, frame {at}"
            flips += before != expected
    assert next(raised, None) is None
    assert flips >= 10  # a stream that never cries agrees too easily
