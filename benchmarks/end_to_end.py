"""`cache-vis` from files to features, against the perfect pipeline: called by `benchmarks.cache_vis --json`.

The perfect pipeline keeps every core busy and does nothing twice: cores / (core seconds an image to decode + to resize
+ to encode, each measured alone in the same run). `before` reads in the main process, with the copies of whole pictures
that reading once made; `end_to_end` is the default config.
"""

import json
import os
import statistics
import time
from collections.abc import Callable
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps

import simv0.data.manifest
from benchmarks.quiet import measure
from cache.pipeline import cache_split, open_job, start_over
from simv0.config.load import build_config
from simv0.config.schema import Config
from simv0.data.images import load_image
from simv0.data.recordings.video import VideoReader, VideoWriter
from simv0.data.workers import cores
from simv0.runtime.threads import sharing
from simv0.vision.encoder import Encoder

F, SPACING, RATE = 8, 0.2, 30
SIZES = {"480p": (640, 480), "720p": (1280, 720), "1080p": (1920, 1080)}


def scene(width: int, height: int, i: int) -> Image.Image:
    """A picture with structure of many sizes and a sensor's noise, moving with `i`."""
    rng = np.random.default_rng(0)
    coarse = [rng.integers(0, 256, (height // step + 20, width // step + 20, 3), np.uint8) for step in (16, 64)]
    big = [np.asarray(Image.fromarray(one).resize((width + 200, height), Image.Resampling.BICUBIC)) for one in coarse]
    mixed = (big[0].astype(np.float32) + big[1])[:, i % 200 : i % 200 + width] / 2
    return Image.fromarray((mixed + rng.normal(0, 4, mixed.shape)).clip(0, 255).astype(np.uint8))


def write_inputs(folder: Path, windows: int) -> dict[str, Path]:
    """A manifest for each kind of input: JPEGs of quality 90, and H.264 at 30 Hz of which every sixth frame is used."""
    labels = {"telemetry": [0.0] * 8, "risk_id": 0, "reason_id": 0, "action_id": 0}
    manifests = {}
    for size, (width, height) in SIZES.items():
        names = [f"{size}-{i:04d}.jpg" for i in range(windows * F)]
        few = [scene(width, height, 7 * i) for i in range(8)]
        for i, name in enumerate(names):
            few[i % 8].save(folder / name, quality=90)
        rows = [{**labels, "frames": names[at : at + F]} for at in range(0, len(names), F)]
        manifests[f"{size} JPEG"] = folder / f"{size}.jsonl"
        manifests[f"{size} JPEG"].write_text("".join(json.dumps(row) + "\n" for row in rows))
    with VideoWriter(folder / "720p.mp4") as writer:
        few = [np.asarray(scene(1280, 720, i)) for i in range(48)]
        for i in range(int(windows * F * SPACING * RATE)):
            writer.write(few[i % 48], i / RATE)
    starts = [window * F * SPACING for window in range(windows)]
    rows = [
        {**labels, "video": "720p.mp4", "timestamps": [round(t + i * SPACING, 3) for i in range(F)]} for t in starts
    ]
    manifests["720p H.264"] = folder / "video.jsonl"
    manifests["720p H.264"].write_text("".join(json.dumps(row) + "\n" for row in rows))
    os.sync()
    return manifests


def core_seconds(work: Callable[[], object]) -> float:
    """Seconds of all cores that this process spends on `work`."""
    began = time.process_time()
    work()
    return time.process_time() - began


def alone(manifest: Path, encoder: Encoder, images: int) -> dict[str, float]:
    """Core seconds an image of each step by itself, medians of three."""
    rows = [json.loads(line) for line in manifest.read_text().splitlines()][: max(1, images // F)]
    batch = torch.zeros(64, 3, *encoder.image_size, dtype=torch.uint8)

    def decode() -> list[torch.Tensor]:
        if "video" in rows[0]:
            reader = VideoReader(manifest.parent / rows[0]["video"])
            return [reader.frame_at(t) for row in rows for t in row["timestamps"]]
        return [load_image(manifest.parent / name) for row in rows for name in row["frames"]]

    frames = decode()[:8]
    steps: dict[str, tuple[Callable[[], object], int]] = {
        "decode": (decode, len(rows) * F),
        "resize": (lambda: [encoder.resize(frame[None]) for frame in frames], len(frames)),
        "encode": (lambda: encoder(batch), len(batch)),
    }
    with sharing():
        return {name: statistics.median(core_seconds(f) / n for _ in range(3)) for name, (f, n) in steps.items()}


def read_with_copies(path: Path, smallest: int | None = None) -> torch.Tensor:
    """As pictures were read until 2026-11-26."""
    return torch.from_numpy(np.array(ImageOps.exif_transpose(Image.open(path)).convert("RGB"))).permute(2, 0, 1)


@contextmanager
def reading_as_before() -> Any:
    """For a `with` block, manifests read pictures with copies."""
    simv0.data.manifest.load_image = read_with_copies  # type: ignore[assignment]
    try:
        yield
    finally:
        simv0.data.manifest.load_image = load_image


def config_for(manifest: Path, workers: int | str) -> Config:
    tree = {
        "data": {"train_split_path": str(manifest), "val_split_path": str(manifest), "num_workers": workers},
        "cache": {"dir": str(manifest.parent / "cache")},
        "model": {"F": F},
    }
    return build_config(tree, "benchmark")


def cached(manifest: Path, encoder: Encoder, before: bool, spent: list[float]) -> None:
    """One run of cache-vis on files that are not in memory; adds the core seconds that it took to `spent`."""
    for path in manifest.parent.iterdir():
        if path.is_file():
            with path.open("rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    began = sum(os.times()[:4])
    config = config_for(manifest, 0 if before else "auto")
    job = open_job(config, "train")
    start_over([job])
    with sharing(), reading_as_before() if before else nullcontext():
        cache_split(config, job, encoder)
    spent.append(sum(os.times()[:4]) - began)


def end_to_end(folder: Path, encoder: Encoder, windows: int, rounds: int, patience: float) -> list[dict[str, Any]]:
    """The rows of every input; wall times, each of which waits for a quiet machine for up to `patience` seconds.

    `core_ms`, what an image took of all cores, workers and writing included, also tells on a busy machine.
    """
    rows = []
    for name, manifest in write_inputs(folder, windows).items():
        steps = alone(manifest, encoder, images=64)
        perfect = cores() / sum(steps.values())
        rates: dict[str, list[float]] = {"before": [], "end_to_end": []}
        spent: dict[str, list[float]] = {"before": [], "end_to_end": []}
        unclean = 0
        for _ in range(rounds):
            for variant, found in rates.items():
                run = partial(cached, manifest, encoder, variant == "before", spent[variant])
                seconds, clean = measure(run, patience)
                found.append(windows * F / seconds)
                unclean += not clean
        for variant, found in rates.items():
            rate = statistics.median(found)
            rows.append(
                {
                    "variant": variant, "input": name, "images_per_s": round(rate, 1),
                    "fraction": round(rate / perfect, 3), "perfect_images_per_s": round(perfect, 1),
                    "core_ms": round(1000 * statistics.median(spent[variant]) / (windows * F), 2),
                    **{f"{step}_core_ms": round(1000 * value, 2) for step, value in steps.items()},
                    "unclean": f"{unclean} of {2 * rounds}",
                }
            )  # fmt: skip
            print("  ".join(f"{key} {value}" for key, value in rows[-1].items()), flush=True)
    return rows
