"""What the report shows of single mistakes: the frames and numbers of windows, the worst first."""

import base64
import io
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor

from simv0.errors import SimError
from simv0.evaluation.evaluated import Evaluated
from simv0.evaluation.events import EventTable
from simv0.labels import HEADS, TELEMETRY, UNITS

STRIPS = 8
"""Of each kind, at most."""
THUMB = 150
"""Width of a frame in a strip, pixels."""

Captions = list[tuple[int, str]]
"""Windows to show, and what is said before their numbers."""


def strips(evaluated: Evaluated) -> list[dict[str, Any]]:
    """The worst misses and the worst false alarms: of events where recordings can be replayed, else of windows."""
    if not isinstance(evaluated.events, str):
        return [
            _kind(evaluated, "Missed events", "events", _missed_events(evaluated.events)),
            _kind(evaluated, "Longest false alarms", "false alarms", _false_alarms(evaluated.events)),
        ]
    is_high, raised, p_high = evaluated.is_high, evaluated.raised, evaluated.p_high
    missed = "Missed high windows" if evaluated.threshold is None else "High windows without an alarm"
    return [
        _kind(evaluated, missed, "windows", _windows(np.flatnonzero(is_high & ~raised), p_high)),
        _kind(evaluated, "Worst false alarms", "windows", _windows(np.flatnonzero(~is_high & raised), -p_high)),
    ]


def _windows(wrong: Int[np.ndarray, " W"], order: Float[np.ndarray, " N"]) -> Captions:
    return [(int(i), "") for i in wrong[np.argsort(order[wrong], kind="stable")]]


def _missed_events(table: EventTable) -> Captions:
    """Each by its first window, those that came least near to being found first."""
    replayed, line = table.replayed, table.replayed.line
    missed = np.flatnonzero(~table.found)
    shown = []
    for number in missed[np.argsort(replayed.scores[missed], kind="stable")]:
        first, end = replayed.events[number]
        seconds, score = line.seconds[first:end].sum(), max(0.0, replayed.scores[number])
        shown.append(
            (
                int(line.order[first]),
                f"{line.names[line.recording[first]]}, from {line.t[first]:.1f} s for {seconds:.1f} s; a threshold of "
                f"{score:.3f} would have found it. Its first window: ",
            )
        )
    return shown


def _false_alarms(table: EventTable) -> Captions:
    """Each by the window that raised it."""
    line = table.replayed.line
    return [
        (
            int(line.order[table.false[number, 0]]),
            f"{line.names[line.recording[table.false[number, 0]]]}, raised at {line.t[table.false[number, 0]]:.1f} s "
            f"for {table.lengths[number]:.1f} s. The window that raised it: ",
        )
        for number in np.argsort(-table.lengths, kind="stable")
    ]


def _kind(evaluated: Evaluated, title: str, of: str, wrong: Captions) -> dict[str, Any]:
    no_frames = evaluated.frames if isinstance(evaluated.frames, str) else None
    windows = [_window(evaluated, i, caption) for i, caption in wrong[:STRIPS]]
    return {"title": title, "count": len(wrong), "of": of, "windows": windows, "no_frames": no_frames}


def _window(evaluated: Evaluated, i: int, caption: str) -> dict[str, Any]:
    labels = evaluated.labels
    words = "; ".join(
        f"{head} {names[labels.ids[head][i]]}, said {names[evaluated.logits[head][i].argmax()]}"
        for head, names in HEADS.items()
    )
    units = UNITS if evaluated.raw_telemetry else [""] * len(UNITS)
    numbers = zip(TELEMETRY, labels.telemetry[i], units, strict=True)
    shown: dict[str, Any] = {
        "caption": f"{caption}{labels.sample_id[i]}: P(high) {evaluated.p_high[i]:.3f}; {words}",
        "telemetry": [f"{name} {round(float(value), 2) + 0.0:.2f} {unit}".rstrip() for name, value, unit in numbers],
        "frames": [],
        "problem": None,
    }
    if not isinstance(evaluated.frames, str):
        try:
            pictures = evaluated.frames(i)
        except SimError as error:
            return {**shown, "problem": str(error)}
        jpegs = [{"number": number, "jpeg": _jpeg(frame)} for number, frame in enumerate(pictures, 1)]
        shown["frames"] = jpegs[::-1]
    return shown


def _jpeg(frame: Tensor) -> str:
    pixels = frame if frame.dtype == torch.uint8 else (frame * 255).round().to(torch.uint8)
    image = Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())
    image.thumbnail((THUMB, THUMB))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=80)
    return base64.b64encode(buffer.getvalue()).decode()
