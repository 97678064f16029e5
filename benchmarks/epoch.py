"""Whole epochs on cached features, the cold cache included, against raw frames in every epoch.

    python -m benchmarks.epoch [--train 48] [--val 16] [--epochs 10] [--arch smollm2-135m] [--apart] [--json epoch.json]

The library's own `cache_vis` and `fit`, on windows of the demo world, beside ViT-B-32 and an LLM of real size, random
weights. A raw epoch encodes every frame of every window; the cache encodes each frame once, and neighbouring windows
share frames. `--apart` keeps every eighth window, so that no two share a frame.
"""

import argparse
import json
import tempfile
import time
from datetime import date
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

import simv0.runtime.torchvision_fix  # noqa: F401  before open_clip and transformers
from benchmarks.llms import device_name, save_random
from cache.pipeline import cache_vis
from simv0.config.load import build_config
from simv0.config.schema import Config
from simv0.demo.world import write_world
from simv0.training.fit import fit

F = 8


def save_vit_b_32(folder: Path) -> None:
    """ViT-B-32 with random weights as an open_clip folder."""
    import open_clip

    text = {"context_length": 8, "vocab_size": 16, "width": 16, "heads": 1, "layers": 1}
    vision = {"image_size": 224, "patch_size": 32, "layers": 12, "width": 768}
    model = {"embed_dim": 512, "vision_cfg": vision, "text_cfg": text}
    folder.mkdir()
    (folder / "open_clip_config.json").write_text(
        json.dumps({"model_cfg": model, "preprocess_cfg": {"mean": [0.5] * 3, "std": [0.5] * 3}})
    )
    torch.manual_seed(0)
    save_file(open_clip.CLIP(**model).state_dict(), folder / "open_clip_model.safetensors")


def write_windows(world: Path, train: int, val: int, apart: bool) -> None:
    """The demo world's windows, which start at every frame; `apart`: every eighth of them."""
    step = F if apart else 1
    write_world(world, train_windows=train * step, val_windows=val * step, seed=0)
    for name in ("train", "val"):
        path = world / f"{name}.jsonl"
        rows = path.read_text(encoding="utf-8").splitlines(keepends=True)
        path.write_text("".join(rows[::step]), encoding="utf-8")


def config_for(root: Path, cached: bool, epochs: int) -> Config:
    """The defaults (batch 64 cached, 8 raw) on these networks and windows."""
    tree = {
        "data": {"train_split_path": f"{root}/world/train.jsonl", "val_split_path": f"{root}/world/val.jsonl"},
        "cache": {"dir": f"{root}/cache"},
        "model": {
            "llm_name_or_path": f"{root}/llm",
            "vision_encoder_name": f"local-dir:{root}/vision",
            "vision_pretrained": None,
            "use_cached_vis_feats": cached,
        },
        "training": {"epochs": epochs},
        "output": {"output_dir": f"{root}/{'cached' if cached else 'raw'}"},
    }
    return build_config(tree, "benchmark")


def seconds_of(work: Any, *args: Any) -> float:
    started = time.perf_counter()
    work(*args)
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", type=int, default=48, help="training windows")
    parser.add_argument("--val", type=int, default=16)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--arch", default="smollm2-135m", help="as for train_step")
    parser.add_argument("--layers", type=int, help="cut the LLM to so many layers")
    parser.add_argument("--apart", action="store_true", help="windows that share no frame")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        write_windows(root / "world", args.train, args.val, args.apart)
        save_vit_b_32(root / "vision")
        save_random(args.arch, root / "llm", args.layers)
        cache = seconds_of(cache_vis, config_for(root, True, args.epochs))
        cached = seconds_of(fit, config_for(root, True, args.epochs))
        raw = seconds_of(fit, config_for(root, False, args.epochs))
        frames = sum(path.is_file() for path in (root / "world" / "images").rglob("*"))
    row = {
        "arch": args.arch, "train": args.train, "val": args.val, "epochs": args.epochs, "apart": args.apart,
        "cache_vis_s": round(cache, 1), "cached_s": round(cached, 1), "raw_s": round(raw, 1),
        "ratio": round(raw / (cache + cached), 2), "ratio_warm": round(raw / cached, 2),
    }  # fmt: skip
    print("  ".join(f"{key} {value}" for key, value in row.items()), f" ({frames} frames on disk)")
    if args.json:
        about = {"date": str(date.today()), "torch": torch.__version__, "threads": torch.get_num_threads()}
        args.json.write_text(json.dumps({**about, "device": device_name(), "rows": [row]}, indent=1))


if __name__ == "__main__":
    main()
