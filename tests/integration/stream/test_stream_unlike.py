"""What a stream, predictions, an evaluation and `inspect` say of windows that are unlike those of training."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import run as simv0
from small_world import write_manifest
from stream_world import GOOD, SPACING, F, best, recording, trained
from torch import Tensor

from simv0.alarm.confirmation import Confirmation
from simv0.alarm.events import Timeline, replay, timeline
from simv0.alarm.unlike import LEAST, NOTHING_KEPT, fit_unlike, window_means
from simv0.checks.files import inspect_path
from simv0.config.schema import Config
from simv0.data.images import load_image
from simv0.model.checkpoint import load_checkpoint
from simv0.predict import Predictor
from simv0.stream import State, Stream

STRANGE = torch.zeros(3, 24, 40, dtype=torch.uint8)
STRANGE[0, :, 20:] = 255


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Enough windows for a summary, those of val not of train; `strange.jsonl` shows another world."""
    folder = tmp_path_factory.mktemp("unlike")
    write_manifest(folder / "train.jsonl", 4 * LEAST, seed=1)
    write_manifest(folder / "val.jsonl", 2 * LEAST, seed=2)
    return folder


@pytest.fixture(scope="module")
def config(models: Path, folder: Path) -> Config:
    return trained(models, folder, folder)


@pytest.fixture(scope="module")
def judge(config: Config) -> Predictor:
    return Predictor.load(best(config))


def pictures(folder: Path) -> list[Tensor]:
    return [load_image(path) for path in sorted((folder / "val_images").iterdir())]


def push(stream: Stream, frames: list[Tensor], start: int = 0, telemetry: Tensor = GOOD) -> list[State]:
    return [stream.push(frame, telemetry, (start + i) * SPACING) for i, frame in enumerate(frames)]


def test_another_world_is_unknown_and_no_reason_to_be_calm(judge: Predictor, folder: Path) -> None:
    stream = recording(judge, alarm_threshold=1.0)
    own = push(stream, pictures(folder)[:10])[F - 1 :]
    assert {(state.unknown, state.alarm) for state in own} == {(None, False)}
    strange = push(stream, [STRANGE] * F, start=10)[-1]
    assert (strange.outcome, strange.problem, strange.risk) == ("judged", None, "unknown")
    assert strange.unknown is not None
    assert strange.unknown.startswith("unlike the training data: frames ")
    assert (strange.prediction, strange.alarm) == (None, None)
    assert stream.stats()["judged"] == 7 + F
    assert 1 <= (stream.stats()["unlike"] or 0) <= F
    assert push(stream, pictures(folder)[:F], start=14)[-1].unknown is None


def test_another_world_raises_the_alarm_and_never_takes_it_back(judge: Predictor, folder: Path) -> None:
    raised = recording(judge, alarm_threshold=0.0)
    assert push(raised, [STRANGE] * (F + 1))[-1].alarm is True
    known = recording(judge)
    push(known, pictures(folder)[:10])
    threshold = known.confirmation.level
    strange = push(known, [STRANGE] * 2 * F, start=10)[-1]
    assert strange.risk == "unknown"
    assert known.confirmation.level >= threshold


def test_unlike_windows_in_the_confirmation_by_hand() -> None:
    """2 of 3: raised by unlike windows too, released by known ones alone, in a replay as in a stream."""
    alarm = Confirmation((2, 3), 0.8)
    scores = [(0.9, True), (0.9, True), (0.1, True), (0.1, True), (0.1, True), (0.1, False), (0.1, True), (0.1, False)]
    levels = [alarm.update(score, float(t), unlike) for t, (score, unlike) in enumerate(scores)]
    assert [level >= 0.5 for level in levels] == [False, True, True, True, True, True, True, False]
    line = timeline(["a"] * 8, np.arange(8.0))
    assert isinstance(line, Timeline)
    p_high, unlike = (np.array(values) for values in zip(*scores, strict=True))
    assert replay(line, p_high, (2, 3), 0.8, unlike=unlike).tolist() == levels


def test_a_broken_sensor_is_named(judge: Predictor, folder: Path) -> None:
    degrees = torch.tensor([0.0, 0, 0, 0, 0, 57.3, 0, 0])
    state = push(recording(judge), pictures(folder)[:F], telemetry=degrees)[-1]
    assert state.unknown is not None
    assert state.unknown.startswith("unlike the training data: telemetry gz 57.3, in training -")


def test_predictions_say_it_too(judge: Predictor, folder: Path) -> None:
    own = judge.predict(torch.stack(pictures(folder)[:F]), GOOD)
    strange = judge.predict(torch.stack([STRANGE] * F), GOOD)
    assert (own["unlike"], strange["unlike"]) == (False, True)
    assert own["distance"]["frames"] < 1 < strange["distance"]["frames"]
    assert own["distance"]["telemetry"] == strange["distance"]["telemetry"] < 1
    assert judge.unlike is not None
    assert judge.unlike.reason(own["distance"], GOOD) is None


def test_an_evaluation_counts_them(config: Config, folder: Path) -> None:
    done = simv0("evaluate", "--ckpt", best(config), "--no-baselines")
    assert done.exit_code == 0, done.output
    found = Path(config.output.output_dir) / "evaluation"
    rows = [json.loads(line) for line in (found / "predictions.jsonl").read_text().splitlines()]
    metrics = json.loads((found / "metrics.json").read_text())
    kept = load_checkpoint(best(config)).unlike
    assert kept is not None
    assert metrics["unlike_share"] == sum(row["unlike"] for row in rows) / len(rows) == kept.limit_share
    assert not [line for line in metrics["cautions"] if line.startswith("UNLIKE")]
    write_manifest(folder / "strange.jsonl", LEAST, seed=3, telemetry=[50.0] * 8)
    done = simv0("evaluate", "--ckpt", best(config), "--no-baselines", "--data", folder / "strange.jsonl")
    assert done.exit_code == 0, done.output
    assert "UNLIKE: 100% of the windows are unlike the training data (by frames 0%, telemetry 100%)" in done.output


def test_inspect_shows_what_is_kept(config: Config, run: Config) -> None:
    facts = inspect_path(best(config))["unlike"]
    assert facts["windows"] == 4 * LEAST
    assert facts["limit_windows"] == 2 * LEAST
    assert inspect_path(best(run))["unlike"] == f"this checkpoint {NOTHING_KEPT}"  # of 40 windows


def test_real_rover_pictures_are_known_and_other_places_are_not(real: Path) -> None:
    """Frames by themselves, a few of each; whole windows: `python -m benchmarks.unlike`."""
    import simv0.runtime.torchvision_fix  # noqa: F401  before open_clip
    from simv0.config.schema import ModelConfig
    from simv0.vision.encoder import load_encoder

    names = ModelConfig(vision_encoder_name=f"local-dir:{real / 'vision/mobilenetv2_100'}", vision_pretrained=None)
    encoder = load_encoder(names, "fp32", torch.device("cpu"))

    def windows(name: str, first: float, last: float, n: int) -> tuple[Tensor, Tensor]:
        paths = sorted((real / "data" / name / "images").iterdir())
        picked = torch.linspace(first * (len(paths) - 1), last * (len(paths) - 1), n).round().int().tolist()
        with torch.no_grad():
            feats = torch.cat([encoder(load_image(paths[i])[None]) for i in picked])
        return feats.float()[:, None], torch.zeros(n, 8)

    train, held_out = windows("rover", 0, 0.7, 100), windows("rover", 0.72, 0.84, 60)
    std = train[0].flatten(0, 1).std(0).clamp(min=1e-6).numpy()
    both = [(window_means(feats), telemetry.numpy()) for feats, telemetry in (train, held_out)]
    unlike = fit_unlike(both[0], both[1], std)
    assert not (unlike.distances(*windows("rover", 0.86, 1, 25)).frames > 1).any()
    for place in ("autocar", "gopro_walk"):
        assert (unlike.distances(*windows(place, 0, 1, 20)).frames > 1).mean() >= 0.95
