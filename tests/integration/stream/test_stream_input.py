"""What a stream is given wrongly: told, skipped, and unknown once it lasts."""

import itertools
import random
from typing import Any

import jaxtyping
import numpy as np
import pytest
import torch
from stream_world import GOOD, SPACING, Clock, F, full, image, recording

from simv0.errors import ConfigError
from simv0.predict import Predictor
from simv0.stream import OVERSAMPLING, Stream

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
