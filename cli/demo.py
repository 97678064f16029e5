"""`simv0 demo`: world -> models -> cache-vis -> train -> evaluate, offline, in one folder."""

import json
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cache.pipeline import cache_vis
from cli.tables import print_evaluation
from simv0.config.load import load_config
from simv0.config.schema import Config
from simv0.demo.networks import save_tiny_llm, save_tiny_tower
from simv0.demo.world import write_world
from simv0.disk.files import write_atomically
from simv0.evaluation.run import evaluate_checkpoint
from simv0.training.fit import fit
from simv0.training.refusals import check_demo

log = logging.getLogger("simv0")

WORLD: dict[str, Any] = {"train_windows": 7500, "val_windows": 1500, "seed": 0}
LLM = {"d": 128}
TOWER = {"dv": 512, "image_size": 32}


def run_demo(out: Path, seed: int = 0) -> Path:
    """Make the demo in `out`; returns its best checkpoint. A second run reuses the world and the features."""
    config = demo_config(out, seed)
    world, models = out / "world", out / "models"
    check_demo(out)
    with _step("1/5 a rover world: frames, telemetry, labels"):
        done = world / "world.json"
        if not done.exists() or json.loads(done.read_text()) != WORLD:
            write_world(world, **WORLD)
            write_atomically(done, json.dumps(WORLD).encode())
    with _step("2/5 a tiny LLM and a tiny vision tower, random weights (no download)"):
        save_tiny_llm(models / "llm", **LLM)
        save_tiny_tower(models / "vision", **TOWER)
    with _step("3/5 cache-vis: every frame through the frozen vision tower, once"):
        for report in cache_vis(config):
            log.info(str(report))
    with _step("4/5 train: projector, telemetry MLP, task token, heads"):
        run = fit(config, overwrite=True)
    with _step("5/5 evaluate"):
        found, folder = evaluate_checkpoint(run.best)
        print_evaluation(found)
    page = folder / "report.html"  # needs matplotlib
    shown = f"  report           {page}\n" if page.exists() else ""
    log.info(
        f"\nthe run: {out}\n  best checkpoint  {run.best}\n  metrics          {run.val_metrics}\n"
        f"{shown}  predictions      {folder / 'predictions.jsonl'}\n  config           {run.config}\n"
        f"  predict          python {run.export / 'sim_v0_infer.py'} --help"
    )
    return run.best


def demo_config(out: Path, seed: int = 0) -> Config:
    """`configs/demo.yaml` with its folder moved to `out`."""
    here = Path(__file__).parent
    path = here.parent / "configs" / "demo.yaml"
    if not path.exists():
        path = here / "demo.yaml"  # an installed wheel carries it beside this file
    root = json.dumps(str(out.absolute()))[1:-1]
    return load_config(
        path,
        [
            f'data.train_split_path="{root}/world/train.jsonl"',
            f'data.val_split_path="{root}/world/val.jsonl"',
            f'cache.dir="{root}/cache"',
            f'model.llm_name_or_path="{root}/models/llm"',
            f'model.vision_encoder_name="local-dir:{root}/models/vision"',
            f'output.output_dir="{root}"',
            f"training.seed={seed}",
        ],
    )


@contextmanager
def _step(title: str) -> Iterator[None]:
    log.info(title)
    started = time.perf_counter()
    yield
    log.info(f"    {time.perf_counter() - started:.1f} s\n")
