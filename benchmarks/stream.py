"""Milliseconds a step of the stream: each frame encoded once, against encoding the whole window at every step.

    python benchmarks/stream.py            # the demo's sizes
    python benchmarks/stream.py --large    # ViT-B-32 with SmolLM2-135M's and Qwen2.5-0.5B's sizes, random weights

The LLM's step at batch 1 reads every weight once, so it stands beside the time that a copy of as many bytes takes, the
time that its multiplications take at the rate of a large product, and the same LLM without the extra `robot`; they
alternate.
"""

import argparse
import copy
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

import simv0.runtime.torchvision_fix  # noqa: F401  before open_clip and transformers
from benchmarks.quiet import DEVICE, synchronize
from simv0.config.schema import ModelConfig, TrainingConfig
from simv0.cpu_step.packed import PackedLinear, pack_linears
from simv0.demo.networks import save_tiny_llm, save_tiny_tower
from simv0.llm.fast import FastStack
from simv0.llm.frozen import FrozenLLM
from simv0.llm.load import load_llm
from simv0.model.checkpoint import Checkpoint, Meta
from simv0.model.network import SimV0Model
from simv0.predict import Predictor
from simv0.runtime.device import compute_dtype, has_bf16_units
from simv0.stream import Stream
from simv0.vision.encoder import Encoder, load_encoder

F, K, SPACING = 8, 4, 0.2
ROUNDS = 5
FRAME = (3, 480, 640)
LARGE = {
    "SmolLM2-135M": dict(  # noqa: C408
        hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9, num_key_value_heads=3
    ),
    "Qwen2.5-0.5B": dict(  # noqa: C408
        hidden_size=896, intermediate_size=4864, num_hidden_layers=24, num_attention_heads=14, num_key_value_heads=2
    ),
}


def median_ms(step: Callable[[int], object], n: int) -> float:
    times = []
    for i in range(n + 3):
        synchronize()
        started = time.perf_counter()
        step(i)
        synchronize()
        times.append(time.perf_counter() - started)
    return 1e3 * statistics.median(times[3:])


def copy_bandwidth() -> float:
    """Bytes a second, read and written, of a copy far larger than any cache."""
    source = torch.ones(256 * 2**20, dtype=torch.uint8, device=DEVICE)
    target = torch.empty_like(source)
    return 2 * source.numel() / (median_ms(lambda _: target.copy_(source), 10) / 1e3)


def multiply_rate() -> float:
    """Operations a second of a large product of matrices in fp32 (on a GPU in bf16): what the units do just now."""
    a = torch.randn(1024, 1024, device=DEVICE, dtype=torch.bfloat16 if DEVICE.type == "cuda" else torch.float32)
    return 2 * len(a) ** 3 / (median_ms(lambda _: a @ a, 5) / 1e3)


def demo_models(folder: Path) -> tuple[Encoder, FrozenLLM]:
    save_tiny_llm(folder / "llm")
    save_tiny_tower(folder / "vision", dv=128, image_size=64)
    names = ModelConfig(vision_encoder_name=f"local-dir:{folder / 'vision'}", vision_pretrained=None)
    return load_encoder(names, "fp32", DEVICE), load_llm(str(folder / "llm"), device=DEVICE)


def large_encoder() -> Encoder:
    import open_clip

    visual = open_clip.create_model("ViT-B-32", pretrained=None).visual
    preprocess = {
        "size": 224, "resize_mode": "squash", "interpolation": "bicubic", "mean": [0.5] * 3, "std": [0.5] * 3,
    }  # fmt: skip
    encoder = Encoder(visual, preprocess, "ViT-B-32", None, "bf16").to(DEVICE)
    if not has_bf16_units(DEVICE):
        encoder.widen()
    return encoder


def large_llm(name: str, folder: Path) -> FrozenLLM:
    from transformers import AutoModel, LlamaConfig, Qwen2Config

    kind = Qwen2Config if name.startswith("Qwen") else LlamaConfig
    config = kind(vocab_size=256, max_position_embeddings=64, **LARGE[name])  # the vocabulary takes no part
    AutoModel.from_config(config, dtype=torch.bfloat16).save_pretrained(folder)
    return load_llm(str(folder), dtype=compute_dtype(TrainingConfig(), DEVICE), device=DEVICE)


def make_predictor(encoder: Encoder, llm: FrozenLLM) -> Predictor:
    model = SimV0Model(llm, dv=encoder.dv, F=F, K=K, encoder=encoder).to(DEVICE)
    meta = Meta(
        dv=encoder.dv, d=llm.d, F=F, K=K, confidence_head=False, labels={}, llm={}, encoder={}, epoch=0, metrics={},
        config={}, provenance={},
    )  # fmt: skip
    return Predictor(model, Checkpoint(meta=meta, state={}), amp=True)


@torch.no_grad()
def measure(name: str, encoder: Encoder, llm: FrozenLLM, steps: int) -> None:
    packed = packed_only(llm)
    predictor = make_predictor(encoder, llm)
    frames = torch.randint(0, 256, (F, *FRAME), dtype=torch.uint8)
    telemetry = torch.zeros(8)
    stream = Stream(predictor, SPACING, live=False)
    for i in range(F):
        stream.push(frames[i], telemetry, i * SPACING)
    before = stream.counts["encoded"]
    step = median_ms(lambda i: stream.push(frames[i % F], telemetry, (F + i) * SPACING), steps)
    encoded = (stream.counts["encoded"] - before) / (steps + 3)
    plain = median_ms(lambda _: predictor.predict(frames, telemetry), max(3, steps // 4))
    prefix = torch.randn(1, predictor.model.tokens, llm.d, device=DEVICE)
    limits, with_robot, without, multiplying = [], [], [], []
    for _ in range(ROUNDS):
        limits.append(1e3 * weight_bytes(llm) / copy_bandwidth())
        multiplying.append(1e3 * weight_bytes(llm) * len(prefix[0]) / multiply_rate())  # 2 bytes, 2 operations a row
        with_robot.append(median_ms(lambda _: llm(prefix), steps))
        without.append(median_ms(lambda _: packed(prefix), steps))
    llm_ms, limit = statistics.median(with_robot), statistics.median(limits)
    ratio = statistics.median(ms / least for ms, least in zip(with_robot, limits, strict=True))
    print(
        f"{name:28} {step:9.2f} {encoded:7.0f} {plain:9.2f} {F:7d} {plain / step:7.1f}x "
        f"{llm_ms:9.2f} {statistics.median(without):9.2f} {weight_bytes(llm) / 2**20:8.1f} {limit:9.2f} {ratio:7.2f} "
        f"{statistics.median(multiplying):9.2f}"
    )


def packed_only(llm: FrozenLLM) -> FrozenLLM:
    """The same LLM as a robot without numba has it."""
    twin = copy.deepcopy(llm)
    if isinstance(twin.stack, FastStack):
        twin.stack.predicting = True
        pack_linears(twin.stack, K + 3)
    return twin


def weight_bytes(llm: FrozenLLM) -> int:
    """What one step reads of the products' weights."""
    if hasattr(llm.stack, "whole"):  # a `SingleStack`, which needs numba
        return sum(weights.nbytes for weights in llm.stack.whole[:4])
    linears = [module for module in llm.modules() if isinstance(module, nn.Linear | PackedLinear)]
    sizes = [2 if isinstance(linear, PackedLinear) else linear.weight.element_size() for linear in linears]
    return sum(size * m.in_features * m.out_features for size, m in zip(sizes, linears, strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--large", action="store_true", help="the sizes of real models too; needs 3 GB of memory")
    parser.add_argument("--steps", type=int, default=40)
    args = parser.parse_args()
    print(f"{DEVICE}, {torch.get_num_threads()} threads, copy {copy_bandwidth() / 1e9:.1f} GB/s, {F} frames of 640x480")
    print(
        f"{'':28} {'stream ms':>9} {'encodes':>7} {'plain ms':>9} {'encodes':>7} {'gain':>8} "
        f"{'LLM ms':>9} {'without':>9} {'MiB':>8} {'limit ms':>9} {'ratio':>7} {'multiply':>9}"
    )
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        measure("demo models", *demo_models(root), args.steps)
        for name in LARGE if args.large else ():
            measure(f"ViT-B-32 + {name}", large_encoder(), large_llm(name, root / name), args.steps)


if __name__ == "__main__":
    main()
