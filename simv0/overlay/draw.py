"""What the stream says, drawn on the frames: a picture for people who watch a rover, and an MP4 of a recording.

The frame is unchanged except for the action arrow, time and speed in the lower corners and, when it matters, a red
border or the word UNKNOWN; everything else is in a panel below it.
"""

import math
from collections import deque
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from simv0.data.recordings.recording import Recording
from simv0.data.recordings.video import VideoWriter
from simv0.data.spacing import ROUNDING
from simv0.errors import ConfigError
from simv0.labels import ACTIONS, REASONS, RISKS, TELEMETRY
from simv0.stream import OVERSAMPLING, State, Stream

COLORS = {"none": "#35a566", "low": "#d9c02f", "med": "#ee8a1d", "high": "#e23b3b", "unknown": "#8b8f98"}
PANEL, TEXT, DIM, TRACK = "#15181e", "#f2f4f8", "#a9b0bd", "#2b303a"
LEAST_WIDTH = 320
SECONDS = 10.0
"""Length of the time line."""
LINES = 5
"""Lines of text that fit into the panel above the time line."""
LONG_TIME = 1e6
"""Seconds; larger times, such as those since 1970, are shown relative to the start of the recording."""
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont
ARROWS = {  # outlines in a unit square, y down
    "continue": [(0.5, 0), (1, 0.5), (0.7, 0.5), (0.7, 1), (0.3, 1), (0.3, 0.5), (0, 0.5)],
    "slow": [(0.5, 0.35), (1, 0.85), (0.78, 1), (0.5, 0.7), (0.22, 1), (0, 0.85)],
    "stop": [(0.3, 0), (0.7, 0), (1, 0.3), (1, 0.7), (0.7, 1), (0.3, 1), (0, 0.7), (0, 0.3)],
    "reverse": [(0.5, 1), (1, 0.5), (0.7, 0.5), (0.7, 0), (0.3, 0), (0.3, 0.5), (0, 0.5)],
    "turn_left": [(0, 0.35), (0.45, 0), (0.45, 0.2), (1, 0.2), (1, 1), (0.7, 1), (0.7, 0.5), (0.45, 0.5), (0.45, 0.7)],
    "turn_right": [(1, 0.35), (0.55, 0), (0.55, 0.2), (0, 0.2), (0, 1), (0.3, 1), (0.3, 0.5), (0.55, 0.5), (0.55, 0.7)],
}


class Overlay:
    """Draws one state after the other; remembers the last seconds for the time line.

    Args:
        threshold: of the alarm, for the time line.
    """

    def __init__(self, threshold: float | None = None) -> None:
        self.threshold = threshold
        self._past: deque[tuple[float, str, float | None]] = deque(maxlen=4096)
        self._first: float | None = None

    def draw(
        self, frame: UInt8[Tensor, "3 H W"], state: State, t: float, telemetry: list[float] | None = None
    ) -> UInt8[np.ndarray, "h w 3"]:
        """The frame with what the stream says at `t`, and v and w; width and height are even, the width at least 320.

        Args:
            frame: RGB.
            state: of the stream, after this frame.
            t: seconds.
            telemetry: 8 numbers as measured then; NaN where nothing was.
        """
        p_high = state.prediction["probs"]["risk"]["high"] if state.prediction else None
        self._past.append((t, state.risk, p_high))
        while self._past[0][0] < t - SECONDS:
            self._past.popleft()

        picture = Image.fromarray(frame.permute(1, 2, 0).numpy())
        if picture.width < LEAST_WIDTH:
            picture = picture.resize((LEAST_WIDTH, round(picture.height * LEAST_WIDTH / picture.width)))
        width, height = picture.width // 2 * 2, picture.height // 2 * 2
        unit = max(1.0, width / 640)
        panel = round(72 * unit) * 2
        canvas = Image.new("RGB", (width, height + panel), PANEL)
        canvas.paste(picture.crop((0, 0, width, height)))
        pen = ImageDraw.Draw(canvas)
        self._mark_frame(pen, state, width, height, unit)
        self._readings(pen, t, telemetry, width, height, unit)
        self._panel(pen, state, width, height, unit)
        self._time_line(pen, t, (round(6 * unit), height + panel - round(38 * unit), width, height + panel), unit)
        return np.asarray(canvas)

    def _mark_frame(self, pen: ImageDraw.ImageDraw, state: State, width: int, height: int, unit: float) -> None:
        """On the frame itself: the arrow, the alarm, the word UNKNOWN."""
        if state.alarm:
            pen.rectangle((0, 0, width - 1, height - 1), outline=COLORS["high"], width=round(5 * unit))
        if state.prediction:
            size = round(min(width, height) * 0.16)
            left, top = (width - size) // 2, height - size - round(8 * unit)
            outline = [(left + x * size, top + y * size) for x, y in ARROWS[state.prediction["action"]]]
            pen.polygon(outline, fill=COLORS[state.risk], outline="#000000", width=max(1, round(1.5 * unit)))
        if state.alarm:
            self._sign(pen, "ALARM", COLORS["high"], round(9 * unit), width, unit)
        if state.unknown:
            self._sign(pen, "UNKNOWN", COLORS["unknown"], round((34 if state.alarm else 9) * unit), width, unit)

    def _readings(
        self, pen: ImageDraw.ImageDraw, t: float, telemetry: list[float] | None, width: int, height: int, unit: float
    ) -> None:
        """In the lower corners: the time as the recording has it, and v and w."""
        self._first = t if self._first is None else self._first
        time = f"{t:.2f} s" if abs(t) < LONG_TIME else f"+{t - self._first:.2f} s"
        font, bottom = _font(10 * unit), height - 8 * unit
        self._label(pen, time, 8 * unit, bottom, font, unit)
        if telemetry is not None:
            v, w = (telemetry[TELEMETRY.index(name)] for name in ("v", "w"))
            text = f"v {_number(v, '.2f')} m/s  w {_number(w, '+.2f')} rad/s"
            self._label(pen, text, width - 8 * unit - pen.textlength(text, font) - 6 * unit, bottom, font, unit)

    @staticmethod
    def _label(pen: ImageDraw.ImageDraw, text: str, left: float, bottom: float, font: Font, unit: float) -> None:
        right = left + pen.textlength(text, font) + 6 * unit
        pen.rectangle((left, bottom - 14 * unit, right, bottom), fill=PANEL)
        pen.text((left + 3 * unit, bottom - 7 * unit), text, TEXT, font, anchor="lm")

    @staticmethod
    def _sign(pen: ImageDraw.ImageDraw, text: str, color: str, top: int, width: int, unit: float) -> None:
        font = _font(15 * unit)
        half = pen.textlength(text, font) / 2 + 8 * unit
        pen.rectangle((width / 2 - half, top, width / 2 + half, top + 21 * unit), fill=color)
        pen.text((width / 2, top + 10.5 * unit), text, "#ffffff", font, anchor="mm")

    def _panel(self, pen: ImageDraw.ImageDraw, state: State, width: int, top: int, unit: float) -> None:
        """Risk as one stacked bar; reason and action as one bar per class; and what is wrong, if anything."""
        pad = round(6 * unit)
        font, large = _font(10 * unit), _font(13 * unit)
        pen.text((pad, top + 12 * unit), f"risk {state.risk}", COLORS[state.risk], large, anchor="lm")
        left, bar = round(width * 0.3), (top + 5 * unit, top + 19 * unit)
        if state.prediction is None:
            for row, line in enumerate(_wrap(pen, state.unknown or "", font, float(width - 2 * pad))[:LINES]):
                pen.text((pad, top + (29 + 13 * row) * unit), line, TEXT, font, anchor="lm")
            return
        probs = state.prediction["probs"]
        at = float(left)
        for name in RISKS:
            wide = probs["risk"][name] * (width - pad - left)
            pen.rectangle((at, bar[0], at + wide, bar[1]), fill=COLORS[name])
            label = f"{name} {probs['risk'][name]:.2f}"
            if pen.textlength(label, font) + 4 * unit < wide:
                pen.text((at + wide / 2, top + 12 * unit), label, "#101216", font, anchor="mm")
            at += wide
        columns = ((pad, REASONS, "reason"), (round(width * 0.5), ACTIONS, "action"))
        for column, names, head in columns:
            end = column + width * 0.5 - 3 * pad
            for row, name in enumerate(names):
                y = top + (29 + 13 * row) * unit * 0.93
                chosen, p = name == state.prediction[head], probs[head][name]
                start = column + 66 * unit
                pen.text((column, y), name, TEXT if chosen else DIM, font, anchor="lm")
                pen.rectangle((start, y - 4 * unit, end - 28 * unit, y + 4 * unit), fill=TRACK)
                length = p * (end - 28 * unit - start)
                pen.rectangle((start, y - 4 * unit, start + length, y + 4 * unit), fill=TEXT if chosen else DIM)
                pen.text((end, y), f"{p:.2f}", TEXT if chosen else DIM, font, anchor="rm")
        if state.problem and state.outcome != "dropped":  # one of more frames than are needed is no trouble
            y = top + (29 + 13 * len(REASONS)) * unit * 0.93
            text = _fit(pen, state.problem, font, width * 0.5 - 2 * pad)
            pen.text((pad, y), text, COLORS["med"], font, anchor="lm")

    def _time_line(self, pen: ImageDraw.ImageDraw, t: float, box: tuple[int, int, int, int], unit: float) -> None:
        """The last seconds: the colour of the risk, and P(high) as a line with the threshold."""
        left, top, right, bottom = box[0], box[1], box[2] - box[0], box[3] - round(3 * unit)
        strip = bottom - round(5 * unit)
        pen.rectangle((left, top, right, bottom), fill=TRACK)

        def x(time: float) -> float:
            return right - (t - time) / SECONDS * (right - left)

        def y(p: float) -> float:
            return strip - p * (strip - top)

        if self.threshold is not None:
            for dash in range(left, right, round(8 * unit)):
                pen.line((dash, y(self.threshold), dash + 4 * unit, y(self.threshold)), fill=DIM)
        past = list(self._past)
        step = (past[-1][0] - past[0][0]) / max(1, len(past) - 1)
        for (time, risk, p), (after, _, p_after) in zip(past, [*past[1:], (t + step, "", None)], strict=True):
            pen.rectangle((x(time), strip, max(x(time), min(right, x(after))), bottom), fill=COLORS[risk])
            if p is not None and p_after is not None:
                pen.line((x(time), y(p), x(after), y(p_after)), fill=TEXT, width=max(1, round(1.5 * unit)))
        pen.text((left, top - 6 * unit), f"P(high), last {SECONDS:g} s", DIM, _font(8 * unit), anchor="lm")


def check_recording(sequence: Recording, F: int, spacing: float, name: str) -> None:
    """Refuse a recording in which no window can be judged, before anything is loaded.

    Raises:
        ConfigError: its frames are too far apart, or it is too short.
    """
    windows = f"windows of {F} frames {spacing:g} s apart"
    if F > 1 and sequence.interval > 1.5 * spacing + ROUNDING:
        raise ConfigError(f"{name}: its frames are {sequence.interval:g} s apart, too far for {windows}")
    between = max(sequence.interval, spacing / OVERSAMPLING + sequence.interval)  # of the frames that are encoded
    shortest = (F - 2) * max(spacing - between / 2, spacing / 2) + spacing / 2 if F > 1 else 0.0
    if sequence.seconds is not None and sequence.seconds + ROUNDING < shortest:
        raise ConfigError(f"{name}: is {sequence.seconds:.1f} s long, too short for {windows}")


def render_overlay(
    stream: Stream,
    sequence: Recording,
    out: Path | None,
    show: Callable[[UInt8[np.ndarray, "h w 3"], State, float], None] | None = None,
) -> int:
    """Run a recording through the stream and write what it says as an MP4 with the same number of frames.

    Args:
        stream: made with `live=False`.
        sequence: the recording.
        out: the MP4; None to show it only.
        show: called with every picture, its state, and its time.

    Returns:
        The number of frames.
    """
    overlay = Overlay(stream.alarm_threshold)
    count, first = 0, 0.0
    with VideoWriter(out) if out else nullcontext() as writer:
        for moment in replace(sequence, smallest=stream.predictor.smallest):
            state = stream.push(moment.seen, moment.telemetry, moment.t)
            picture = overlay.draw(moment.frame, state, moment.t, moment.telemetry)
            first = moment.t if count == 0 else first
            count += 1
            if writer is not None:
                writer.write(picture, moment.t - first)
            if show is not None:
                show(picture, state, moment.t)
    return count


def _number(value: float, form: str) -> str:
    return format(value, form) if math.isfinite(value) else "?"


def _font(size: float) -> Font:
    return ImageFont.load_default(round(size))


def _wrap(pen: ImageDraw.ImageDraw, text: str, font: Font, width: float) -> list[str]:
    """The text, wrapped to lines of at most `width`."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if pen.textlength(longer, font) <= width:
            lines[-1] = longer
        else:
            lines.append(_fit(pen, word, font, width))
    return lines


def _fit(pen: ImageDraw.ImageDraw, text: str, font: Font, width: float) -> str:
    """The text, cut off with an ellipsis if it is too long."""
    if pen.textlength(text, font) <= width:
        return text
    while text and pen.textlength(text + "...", font) > width:
        text = text[:-1]
    return text + "..."
