"""Seconds from a command to its first useful work, and what they are spent on (`benchmarks.startup_marks`).

    python -m benchmarks.startup --run runs/demo [--other CHECKOUT] [--only cache-vis,train] [--rounds 3]
    python -m benchmarks.startup --make runs/large --llm FOLDER

`--run` is a finished run of a manifest of pictures, such as that of `simv0 demo`. `--make` makes one of larger
networks: ViT-B-32 with random weights, an LLM of yours, 400 windows of the demo's world, one epoch. `--other`
alternates with another checkout in the same rounds. CPU seconds of the process, not of loaders' workers; medians.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from simv0.config.load import load_config

MARKS = Path(__file__).with_name("startup_marks.py")
PARTS = ("python", "import torch", "import torch's compiler", "other imports", "networks", "digests", "data", "rest")


def commands(run: Path, scratch: Path) -> dict[str, list[str]]:
    """Name -> what `startup_marks.py` runs."""
    config = run / "config_resolved.yaml"
    best, data = str(run / "checkpoints" / "best.pt"), load_config(config)
    manifest = Path(data.data.val_split_path)
    first = json.loads(manifest.read_text(encoding="utf-8").splitlines()[0])
    frames = [str(manifest.parent / name) for name in first["frames"]]
    told = [str(number) for number in first["telemetry"]]
    drawn = ["--out", str(scratch / "overlay.mp4"), "--spacing", "0.3333"]
    with_config, cli = ["--config", str(config)], ["-m", "cli"]
    load = f"from simv0 import Predictor; Predictor.load({best!r})"
    return {
        "--help": [*cli, "--help"],
        "check": [*cli, "check", *with_config],
        "inspect": [*cli, "inspect", best],
        "split": [*cli, "split", str(manifest), "--out", str(scratch / "split")],
        "cache-vis": [*cli, "cache-vis", *with_config, "--set", f"cache.dir={scratch / 'cache'}"],
        "cache-vis, complete": [*cli, "cache-vis", *with_config],
        "train": [*cli, "train", *with_config, "--set", f"output.output_dir={scratch / 'run'}", "--overwrite"],
        "evaluate": [*cli, "evaluate", "--ckpt", best, "--no-baselines", "--out", str(scratch / "evaluation")],
        "predict, features": [*cli, "predict", "--ckpt", best, "--data", str(data.feature_file("val"))],
        "predict, frames": [*cli, "predict", "--ckpt", best, "--data", str(manifest)],
        "overlay": [*cli, "overlay", "--ckpt", best, "--frames", sequence(scratch, frames, told), *drawn],
        "export": [*cli, "export", str(run), "--to", str(scratch / "export")],
        "sim_v0_infer.py": [str(run / "export" / "sim_v0_infer.py"), *frames, "--telemetry", *told],
        "Predictor.load": ["-c", load],
    }


def sequence(scratch: Path, frames: list[str], telemetry: list[str]) -> str:
    """A `sequence.jsonl` of some frames."""
    lines = []
    for i, frame in enumerate(frames):
        name = f"{i}{Path(frame).suffix}"
        shutil.copy(frame, scratch / name)
        lines.append(json.dumps({"image": name, "t": i / 3, "telemetry": [float(x) for x in telemetry]}))
    path = scratch / "sequence.jsonl"
    path.write_text("\n".join(lines), encoding="utf-8")
    return str(path)


def seconds(checkout: Path, run: Path, name: str) -> dict[str, float]:
    """CPU seconds by part, and their sum; every command has a folder of its own, which is empty before it."""
    with tempfile.TemporaryDirectory() as folder:
        arguments, report = commands(run, Path(folder))[name], Path(folder) / "report.json"
        done = subprocess.run(
            [sys.executable, str(MARKS), str(report), *arguments],
            cwd=checkout,
            env=os.environ | {"PYTHONPATH": str(checkout)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
        if not report.exists():
            raise SystemExit(f"{name} in {checkout}: {done.stderr[-500:]}")
        spent: dict[str, Any] = json.loads(report.read_text())["cpu"]
    parts = dict.fromkeys(PARTS, 0.0)
    for kind, share in spent.items():
        parts[kind if kind in parts else "other imports"] += share
    packages = {kind: share for kind, share in spent.items() if kind.startswith("import ") and kind not in parts}
    return {"all": sum(spent.values()), **parts, **packages}


def medians(rounds: list[dict[str, float]]) -> dict[str, float]:
    """Of each part."""
    return {kind: statistics.median([one.get(kind, 0.0) for one in rounds]) for kind in rounds[0]}


def shown(found: Mapping[str, float]) -> str:
    """A row of the table, and the packages whose imports take longest."""
    packages = {kind.removeprefix("import "): share for kind, share in found.items() if kind not in (*PARTS, "all")}
    most = sorted(packages, key=lambda name: -packages[name])[:4]
    said = ", ".join(f"{name} {packages[name]:.2f}" for name in most if packages[name] >= 0.05)
    return " | ".join(f"{found[kind]:.2f}" for kind in ("all", *PARTS)) + f" | {said}"


def make(folder: Path, llm: str) -> None:
    """A run of ViT-B-32 with random weights and `llm`, on the demo's world."""
    import torch
    from safetensors.torch import save_file

    import simv0.runtime.torchvision_fix  # noqa: F401
    from cache import cache_vis
    from simv0 import fit
    from simv0.demo.world import write_world

    import open_clip  # isort: skip  after the fix

    tower = folder / "models" / "vision"
    tower.mkdir(parents=True)
    torch.manual_seed(0)
    described = {"model_cfg": open_clip.get_model_config("ViT-B-32")}
    preprocess = {"preprocess_cfg": {"mean": open_clip.OPENAI_DATASET_MEAN, "std": open_clip.OPENAI_DATASET_STD}}
    (tower / "open_clip_config.json").write_text(json.dumps({**described, **preprocess}))
    save_file(open_clip.create_model("ViT-B-32").state_dict(), tower / "open_clip_model.safetensors")
    write_world(folder / "world", train_windows=300, val_windows=100, seed=0)
    paths = {f"{split}_split_path": str(folder / "world" / f"{split}.jsonl") for split in ("train", "val")}
    config = {
        "data": {**paths, "frame_spacing": 0.3333},
        "cache": {"dir": str(folder / "cache")},
        "model": {"llm_name_or_path": llm, "vision_encoder_name": f"local-dir:{tower}", "vision_pretrained": None},
        "training": {"epochs": 1},
        "output": {"output_dir": str(folder)},
    }
    cache_vis(config)
    fit(config, overwrite=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path)
    parser.add_argument("--other", type=Path, help="another checkout, alternating with this one")
    parser.add_argument("--only", help="commands whose names contain one of these, separated by semicolons")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--make", type=Path, help="make a run of ViT-B-32 and --llm in this folder")
    parser.add_argument("--llm", help="an LLM's folder")
    args = parser.parse_args()
    if args.make:
        make(args.make.resolve(), args.llm)
        return
    checkouts = [*([args.other.resolve()] if args.other else []), Path(__file__).parents[1]]
    print(f"| command | checkout | all | {' | '.join(PARTS)} | longest other imports |", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        names = list(commands(args.run.resolve(), Path(folder)))
    for name in names:
        if args.only and not any(part in name for part in args.only.split(";")):
            continue
        found: dict[Path, list[dict[str, float]]] = {checkout: [] for checkout in checkouts}
        for _ in range(args.rounds):
            for checkout in checkouts:
                found[checkout].append(seconds(checkout, args.run.resolve(), name))
        for checkout, rounds in found.items():
            print(f"| {name} | {checkout.name} | {shown(medians(rounds))} |", flush=True)


if __name__ == "__main__":
    main()
