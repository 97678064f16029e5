"""The stream gives what cache + evaluate give, each frame encoded once."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from stream_world import GOOD, SPACING, F, best, recording
from torch import Tensor

from cache.pipeline import cache_vis
from simv0.config.load import build_config
from simv0.config.schema import Config
from simv0.data.images import load_image
from simv0.data.jsonl import read_jsonl
from simv0.labels import HEADS
from simv0.model.checkpoint import load_checkpoint
from simv0.predict import Predictor, load_model
from simv0.stream import Stream
from simv0.training.epoch import LogitsKept, evaluate
from simv0.training.fit import fit
from simv0.training.splits import eval_batches, open_split


def logits_of_stream(stream: Stream, frames: list[Any], telemetry: list[Any], times: list[float]) -> dict[float, Any]:
    """t -> logits of the window that ends there."""
    seen: list[dict[str, Tensor]] = []
    hook = stream.predictor.model.register_forward_hook(lambda module, args, output: seen.append(output))
    found = {}
    for frame, measured, t in zip(frames, telemetry, times, strict=True):
        if stream.push(frame, measured, t).outcome == "judged":
            found[t] = {head: seen[-1][f"{head}_logits"][0].detach() for head in HEADS}
    hook.remove()
    return found


def logits_of_evaluate(config: Config, split: str) -> dict[str, Tensor]:
    checkpoint = load_checkpoint(best(config))
    model = load_model(checkpoint, best(config), config)
    kept = LogitsKept()
    batches = eval_batches(config, open_split(config, split))
    evaluate(model, batches, model.task_token.device, on_batch=kept.keep)
    return {head: torch.from_numpy(values) for head, values in kept.arrays().items()}


def test_parity_with_cache_and_evaluate(run: Config, predictor: Predictor, manifests: Path) -> None:
    rows = read_jsonl(manifests / "train.jsonl")
    names = [*rows[0]["frames"][:-1], *(row["frames"][-1] for row in rows)]
    telemetry = [[0.0] * 8] * (F - 1) + [row["telemetry"] for row in rows]  # a window's telemetry is its last frame's
    frames = [load_image(manifests / name) for name in names]
    encoded = 0

    def count(module: Any, args: Any, output: Any) -> None:
        nonlocal encoded
        encoded += len(output)

    assert predictor.model.encoder is not None
    hook = predictor.model.encoder.register_forward_hook(count)
    stream = recording(predictor)
    found = logits_of_stream(stream, frames, telemetry, [i * SPACING for i in range(len(names))])
    hook.remove()
    expected = logits_of_evaluate(run, "train")
    assert len(found) == len(rows) == 40
    for head in HEADS:
        torch.testing.assert_close(
            torch.stack([logits[head] for logits in found.values()]), expected[head], atol=1e-5, rtol=0
        )
        assert expected[head].std(0).min() > 1e-2  # the windows differ
    assert encoded == len(frames) == stream.stats()["encoded"]


def test_parity_on_real_frames_at_six_times_the_window_rate(real: Path, tmp_path: Path) -> None:
    """30 Hz frames, windows of every sixth: the stream picks the frames that the windows were made of."""
    walk = real / "data" / "gopro_walk"
    sequence = read_jsonl(walk / "sequence.jsonl")[:48]
    (tmp_path / "images").mkdir()
    for row in sequence:
        shutil.copy(walk / row["image"], tmp_path / row["image"])
    rows = [
        {
            "sample_id": f"walk-{end}",
            "frames": [sequence[end - 6 * k]["image"] for k in reversed(range(8))],
            "telemetry": sequence[end]["telemetry"],
            **{f"{head}_id": end % len(names) for head, names in HEADS.items()},
        }
        for end in range(42, 48)
    ]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "val.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = build_config(
        {
            "data": {"train_split_path": str(tmp_path / "train.jsonl"), "val_split_path": str(tmp_path / "val.jsonl")},
            "cache": {"dir": str(tmp_path / "cache"), "batch_size": 16, "precision": "fp32"},
            "model": {
                "llm_name_or_path": str(real / "llm" / "stories260K"),
                "vision_encoder_name": f"local-dir:{real / 'vision' / 'mobilenetv2_100'}",
                "vision_pretrained": None,
            },
            "training": {"epochs": 1, "amp": False},
            "output": {"output_dir": str(tmp_path / "run")},
        },
        "test",
    )
    cache_vis(config)
    fit(config)
    stream = Stream(Predictor.load(best(config)), 0.2, live=False)
    found = logits_of_stream(
        stream,
        [load_image(walk / row["image"]) for row in sequence],
        [row["telemetry"] for row in sequence],
        [row["t"] for row in sequence],
    )
    assert 1.4 > min(found) > 1.2  # the first windows make do with what there is, within half a spacing
    expected = logits_of_evaluate(config, "val")
    for head in HEADS:
        streamed = torch.stack([found[row["t"]][head] for row in sequence[42:]])
        torch.testing.assert_close(streamed, expected[head], atol=2e-3, rtol=0)
    assert stream.stats()["encoded"] == 48


def test_the_exported_script_shows_the_stream(run: Config, manifests: Path, predictor: Predictor) -> None:
    root = Path(__file__).parents[3]
    images = [str(path) for path in sorted((manifests / "val_images").iterdir())[:6]]
    script = [sys.executable, str(Path(run.output.output_dir) / "export" / "sim_v0_infer.py"), *images]
    done = subprocess.run(
        [*script, "--spacing", "0.2", "--telemetry", *"00000000"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(root)},
        check=True,
    )
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    unknown = "the window is not full yet: 1 of 4 frames"
    assert lines[0] == {"calm": False, "risk": "unknown", "unknown": unknown, "alarm": None}
    last = predictor.predict(torch.stack([load_image(Path(path)) for path in images[2:]]), GOOD)
    assert [line["risk"] == "unknown" for line in lines] == [True] * 3 + [False] * 3
    assert lines[5] == {"calm": False, "risk": last["risk"], "unknown": None, "alarm": None}  # val gave no threshold
