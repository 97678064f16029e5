"""How fast is a training step on cached features, against the usual ways and against the limit of its matrix products?

    python -m benchmarks.train_step --arch qwen2.5-0.5b --json step.json

All variants share the trainable modules, the loss and the optimizer, and alternate in one process; each sample waits
for a quiet machine. `fraction` is that of the limit measured in the same run.
"""

import argparse
import functools
import gc
import json
import statistics
import tempfile
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import torch
import transformers as tf
from torch import Tensor, nn

from benchmarks.llms import Autocast, HiddenFromOutput, Limit, config_of, device_name, own_dtype, save_random
from benchmarks.quiet import DEVICE, measure
from simv0.data.contract import to_device
from simv0.labels import HEADS
from simv0.llm.compile import compile_llm
from simv0.llm.frozen import FrozenLLM, LastHidden
from simv0.llm.load import load_llm
from simv0.model.losses import loss_sums, objective
from simv0.model.network import TRAINABLE, SimV0Model

DV, F = 512, 8
VARIANTS = {
    "causal_fp32_not_frozen": "AutoModelForCausalLM in fp32, its weights' gradients computed too (ClipCap's way)",
    "causal_fp32": "the same, frozen",
    "auto_fp32": "AutoModel in fp32, frozen",
    "autocast": "the same under bf16 autocast",
    "reference": "simv0's reference path: AutoModel in simv0's type, eager attention",
    "simv0_uncompiled": "simv0",
    "simv0": "simv0, compiled; on CUDA its launches as graphs too",
    "simv0_bos_in_each": "simv0_uncompiled, the BOS computed in every sample: K + 3 tokens",
    "simv0_without_bos": "simv0_uncompiled without a BOS: K + 2 tokens",
}
if DEVICE.type == "cuda":
    VARIANTS["simv0_captured"] = "simv0, uncompiled, as graphs"
STEPS = 10 if DEVICE.type == "cuda" else 1
"""Timed together: a step on CUDA may begin while the one before it runs."""


class Bench:
    """One architecture in a temporary checkpoint, and steps of its variants."""

    def __init__(self, folder: Path, batch: int, K: int) -> None:
        self.folder, self.K, self.F = folder, K, max(F, K)
        generator = torch.Generator().manual_seed(2)
        self.batch: Any = {
            "vis_feats": torch.randn(batch, self.F, DV, generator=generator),
            "telemetry": torch.randn(batch, 8, generator=generator),
            "weight": torch.ones(batch),
            **{f"{h}_id": torch.randint(len(names), (batch,), generator=generator) for h, names in HEADS.items()},
        }
        self.batch = to_device(self.batch, DEVICE)
        self.compile_seconds: float | None = None

    @functools.cached_property
    def causal(self) -> Any:
        """One fp32 model for the four variants that need it."""
        return tf.AutoModelForCausalLM.from_pretrained(self.folder, dtype=torch.float32).eval().to(DEVICE)

    @functools.cached_property
    def reference(self) -> FrozenLLM:
        """The reference path."""
        return load_llm(str(self.folder), dtype=own_dtype(), device=DEVICE, fast=False)

    def llm(self, variant: str) -> FrozenLLM:
        """The LLM as the variant runs it."""
        if variant.startswith("simv0"):
            llm = load_llm(str(self.folder), dtype=own_dtype(), device=DEVICE)
            size, tokens = len(self.batch["telemetry"]), self.K + 3
            if variant == "simv0":
                self.compile_seconds = compile_llm(llm, "on", batch=size, tokens=tokens, steps=1, first=llm.bos)
            if variant == "simv0_captured":
                compile_llm(llm, "auto", batch=size, tokens=tokens, steps=1, first=llm.bos)
            return llm
        if variant == "reference":
            return self.reference
        stack: nn.Module = HiddenFromOutput(self.causal)
        if variant in ("auto_fp32", "autocast"):
            stack = LastHidden(self.causal.base_model, torch.float32)
            stack = Autocast(stack) if variant == "autocast" else stack
        width = self.causal.config.hidden_size
        return FrozenLLM(stack, d=width, hidden_size=width, embed_rms=0.02, identity={})

    def step_of(self, variant: str) -> Callable[..., dict[str, Tensor]]:
        """A training step of the variant; `update=False` returns each trained module's gradient and changes nothing."""
        llm = self.llm(variant)
        llm.embed_rms = 0.02
        torch.manual_seed(0)
        llm.bos = 0.02 * torch.randn(llm.d)  # whether the architecture's config names one or not
        if variant == "simv0_bos_in_each":
            llm._keep = lambda *_: None  # type: ignore[method-assign]
        model = SimV0Model(llm, dv=DV, F=self.F, K=self.K, bos=variant != "simv0_without_bos").to(DEVICE)
        named = [(name, weight) for name, weight in model.named_parameters() if not name.startswith("llm.")]
        trained = [weight for _, weight in named]
        optimizer = torch.optim.AdamW(trained, lr=1e-3, fused=DEVICE.type == "cuda" or None)

        def gradient(module: str) -> Tensor:
            return torch.cat([weight.grad.flatten() for name, weight in named if name.split(".")[0] == module])

        def step(update: bool = True) -> dict[str, Tensor]:
            llm.requires_grad_(variant == "causal_fp32_not_frozen")
            optimizer.zero_grad(set_to_none=True)
            loss = objective(loss_sums(model(self.batch), self.batch))["loss"]
            loss.backward()
            if not update:
                return {module: gradient(module) for module in TRAINABLE}
            nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            return {}

        return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", default="smollm2-135m", help="qwen2.5-0.5b, smollm2-135m, gpt2, or llama-WIDTH")
    parser.add_argument("--variants", default=",".join(VARIANTS), help="some of: %(default)s")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--K", type=int, default=4, help="visual tokens; the LLM reads K + 3")
    parser.add_argument("--layers", type=int, help="cut the LLM to so many layers (for a quick look)")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--patience", type=float, default=10.0, help="seconds to wait for a quiet machine")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--memory", action="store_true", help="no timing: the peak memory of one variant")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    tf.utils.logging.disable_progress_bar()
    torch.set_num_threads(args.threads)
    names = args.variants.split(",")
    if unknown := set(names) - set(VARIANTS):
        raise SystemExit(f"--variants: unknown {', '.join(sorted(unknown))}; known: {', '.join(VARIANTS)}")
    with tempfile.TemporaryDirectory() as folder:
        save_random(args.arch, Path(folder), args.layers)
        bench = Bench(Path(folder), args.batch, args.K)
        rows = [memory_row(bench, names[0])] if args.memory else timed_rows(bench, names, args)
    for row in rows:
        row.update(arch=args.arch, batch=args.batch, K=args.K, layers=args.layers)
        print("  ".join(f"{key} {value}" for key, value in row.items() if key not in ("arch", "batch", "K", "layers")))
    if args.json:
        about = {
            "date": str(date.today()),
            "torch": torch.__version__,
            "threads": args.threads,
            "device": device_name(),
        }
        about["dtype"] = str(own_dtype())
        args.json.write_text(json.dumps({**about, "compile_seconds": bench.compile_seconds, "rows": rows}, indent=1))


def timed_rows(bench: Bench, names: list[str], args: argparse.Namespace) -> list[dict[str, Any]]:
    """samples/s, fraction of the limit, and error of the gradients, that of the worst trained module (against the
    fp32 variant, where it runs).
    """
    limit = Limit(config_of(args.arch, args.layers), args.batch * (args.K + 3))
    limit.run()  # warm up
    limit.best.clear()
    limit.plain.clear()
    steps: dict[str, Any] = {name: bench.step_of(name) for name in names}
    gradients = {name: step(update=False) for name, step in steps.items()}
    seconds: dict[str, list[float]] = {name: [] for name in names}
    unclean = dict.fromkeys(names, 0)
    for _ in range(args.rounds):
        for name, step in steps.items():
            took, clean = measure(lambda step=step: [step() for _ in range(STEPS)], args.patience)
            seconds[name].append(took / STEPS)
            unclean[name] += not clean
        limit.run()
    rows = [
        {
            "variant": name,
            "samples_per_s": round(args.batch / seconds, 1),
            "fraction": round(limit.seconds / seconds, 3),
        }
        for name, seconds in (("limit", limit.seconds), ("its products with plain weights", limit.plain_seconds))
    ]
    exact = gradients.get("auto_fp32")
    for name in names:
        median = statistics.median(seconds[name])
        row = {
            "variant": name,
            "samples_per_s": round(args.batch / median, 1),
            "fraction": round(limit.seconds / median, 3),
            "unclean": f"{unclean[name]}/{args.rounds}",
        }
        if exact is not None:
            pairs = [(gradients[name][module], exact[module]) for module in TRAINABLE]
            row["gradient_error"] = round(max(float((a - b).norm() / b.norm()) for a, b in pairs), 4)
            row["gradient_cosine"] = round(
                min(float(nn.functional.cosine_similarity(a, b, dim=0)) for a, b in pairs), 5
            )
        rows.append(row)
    return rows


def memory_row(bench: Bench, name: str) -> dict[str, Any]:
    """Peak memory of loading one variant, and of a few steps of it (Linux)."""
    forget_peak()
    step = bench.step_of(name)
    if name in ("auto_fp32", "autocast"):
        del bench.causal  # with the head that AutoModel does not have
    loading = peak_mib()
    forget_peak()
    for _ in range(4):
        step()
    return {"variant": name, "load_peak_mib": loading, "peak_mib": peak_mib()}


def forget_peak() -> None:
    """Count the peak memory anew."""
    gc.collect()
    if DEVICE.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        return
    Path("/proc/self/clear_refs").write_text("5")


def peak_mib() -> int:
    """Largest resident memory since then; on CUDA what tensors took of the device's."""
    if DEVICE.type == "cuda":
        return torch.cuda.max_memory_allocated() // 2**20
    peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(peak.split()[1]) // 1024


if __name__ == "__main__":
    main()
