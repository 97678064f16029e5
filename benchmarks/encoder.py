"""Images a second of simv0's encoder against the same tower as open_clip gives it, in the same type; random weights.

    python -m benchmarks.encoder [--towers RN50,MobileCLIP2-S0,ViT-B-32,ViT-B-16] [--batches 1,32] [--int8]

Beside them the encoder as a `Predictor` holds it, and with --int8 its linear layers in PyTorch's dynamic int8. All
alternate in one process; every sample waits for a quiet machine.
"""

import argparse
import copy
import logging
import statistics
import warnings
from collections.abc import Callable
from functools import partial

import torch
from torch import nn

import simv0.runtime.torchvision_fix  # noqa: F401  before open_clip
from benchmarks.quiet import measure
from simv0.cpu_step.packed import OpenAttention
from simv0.cpu_step.prepare import prepare_encoder
from simv0.vision.encoder import Encoder, resolve_precision


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--towers", default="RN50,MobileCLIP2-S0,ViT-B-32,ViT-B-16")
    parser.add_argument("--batches", default="1,32")
    parser.add_argument("--int8", action="store_true", help="also in torch.ao.quantization's dynamic int8 (deprecated)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--patience", type=float, default=10.0, help="seconds to wait for a quiet machine")
    args = parser.parse_args()
    logging.disable(logging.WARNING)  # open_clip tells that there are no weights
    columns = ["tower", "batch", "as open_clip gives it", "simv0", "", "in a Predictor", "", "unclean"]
    columns[-1:-1] = ["int8", ""] * args.int8
    print(f"| {' | '.join(columns)} |\n" + "|---" * len(columns) + "|")
    for name in args.towers.split(","):
        for batch in map(int, args.batches.split(",")):
            (plain, *others), unclean = rates(ways(name, batch, args.int8), batch, args.rounds, args.patience)
            cells = " | ".join(f"{ours:.1f} | {ours / plain:.2f} times" for ours in others)
            print(f"| {name} | {batch} | {plain:.1f} | {cells} | {unclean} |", flush=True)


def ways(name: str, batch: int, int8: bool) -> list[Callable[[], object]]:
    """A call of the tower as it is, one of the encoder, one of a Predictor's encoder, and one of an encoder in int8 if
    asked for, on frames of its own size.
    """
    import open_clip

    tower = open_clip.create_model(name, load_weights=False).visual.eval().requires_grad_(False)
    size = tower.image_size if isinstance(tower.image_size, int) else tower.image_size[0]
    preprocess = {
        "size": size,
        "mean": [0.5] * 3,
        "std": [0.5] * 3,
        "interpolation": "bicubic",
        "resize_mode": "squash",
    }
    encoder = Encoder(copy.deepcopy(tower), preprocess, name, None, resolve_precision("auto"))
    robots = copy.deepcopy(encoder)
    prepare_encoder(robots)
    encoders = [encoder, robots]
    if int8:
        encoders.append(Encoder(copy.deepcopy(tower), preprocess, name, None, "fp32"))
        encoders[-1].visual = in_int8(copy.deepcopy(tower))
    tower = tower.to(encoder.dtype)
    frames = torch.randint(0, 256, (batch, 3, size, size), dtype=torch.uint8)

    @torch.no_grad()
    def plain() -> None:
        tower(((frames.float() / 255 - 0.5) / 0.5).to(encoder.dtype))

    return [plain, *(partial(each, frames) for each in encoders)]


def in_int8(tower: nn.Module) -> nn.Module:
    """Its linear layers in int8: weights by channel, activations as they come; those of its attention too."""
    for name, module in list(tower.named_modules()):
        if isinstance(module, nn.MultiheadAttention):
            tower.set_submodule(name, OpenAttention(module))
    with warnings.catch_warnings(action="ignore"):  # deprecated since 2025
        quantised: nn.Module = torch.ao.quantization.quantize_dynamic(tower, {nn.Linear})  # type: ignore[no-untyped-call]
    return quantised


def rates(ways: list[Callable[[], object]], batch: int, rounds: int, patience: float) -> tuple[list[float], int]:
    """Images a second of each, medians, and how many samples had no quiet machine."""
    seconds: list[list[float]] = [[] for _ in ways]
    unclean = 0
    for turn in range(rounds + 1):  # the first warms up
        for way, kept in zip(ways, seconds, strict=True):
            took, clean = measure(way, patience if turn else 0.0)
            if turn:
                kept.append(took)
                unclean += not clean
    return [batch / statistics.median(kept) for kept in seconds], unclean


if __name__ == "__main__":
    main()
