"""LLMs of real shapes with random weights, and the speed limit that their matrix products set."""

import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import transformers as tf
from torch import Tensor, nn

import simv0.runtime.torchvision_fix  # noqa: F401  before transformers looks for torchvision
from benchmarks.quiet import DEVICE, synchronize
from simv0.config.schema import TrainingConfig
from simv0.runtime.device import compute_dtype


def config_of(arch: str, layers: int | None = None) -> Any:
    """`qwen2.5-0.5b`, `smollm2-135m`, `gpt2`, or `llama-D`: 8 layers of width D. `layers` cuts the depth."""
    if arch == "gpt2":
        return tf.GPT2Config(**({"n_layer": layers} if layers else {}))
    if arch == "qwen2.5-0.5b":
        shape = {"hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24, "vocab_size": 151936}
        heads = {"num_attention_heads": 14, "num_key_value_heads": 2}
    elif arch == "smollm2-135m":
        shape = {"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "vocab_size": 49152}
        heads = {"num_attention_heads": 9, "num_key_value_heads": 3}
    elif match := re.fullmatch(r"llama-(\d+)", arch):
        d = int(match[1])
        shape = {"hidden_size": d, "intermediate_size": 4 * d, "num_hidden_layers": 8, "vocab_size": 1000}
        heads = {"num_attention_heads": max(1, d // 64), "num_key_value_heads": max(1, d // 64)}
    else:
        raise SystemExit(f"--arch {arch}: expected qwen2.5-0.5b, smollm2-135m, gpt2 or llama-D")
    kind = tf.Qwen2Config if arch.startswith("qwen") else tf.LlamaConfig
    return kind(**shape | heads | ({"num_hidden_layers": layers} if layers else {}))


def save_random(arch: str, folder: Path, layers: int | None) -> None:
    """A checkpoint in bf16; norms are not 1 and biases not 0, so that no variant may skip them."""
    torch.manual_seed(0)
    model = tf.AutoModelForCausalLM.from_config(config_of(arch, layers), dtype=torch.bfloat16)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim == 1:
                weight.add_(torch.randn_like(weight) * 0.1)
    model.save_pretrained(folder)


def own_dtype() -> torch.dtype:
    """What simv0 computes in on this device."""
    return compute_dtype(TrainingConfig(), DEVICE)


def device_name() -> str:
    """As its driver or Linux has it."""
    if DEVICE.type == "cuda":
        return torch.cuda.get_device_name()
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "unknown")


class Limit:
    """The matrix products of one step, forward and back to the inputs, in simv0's type on this device, in the fastest
    layout of those tried. On CUDA every layer has weights of its own, and one graph launches them all.
    """

    def __init__(self, config: Any, rows: int) -> None:
        dtype = own_dtype()
        self.layers = config.num_hidden_layers
        self.weights = self.layers if DEVICE.type == "cuda" else 8  # too many for the caches, as in a real stack
        self.best: dict[str, float] = {}  # seconds of one product
        self.plain: dict[str, float] = {}  # with the weight as `nn.Linear` holds it, as a step multiplies
        d = config.hidden_size
        if config.model_type == "gpt2":
            shapes = [(d, 3 * d), (d, d), (d, 4 * d), (4 * d, d)]
        else:
            head = d // config.num_attention_heads
            kv, wide = head * config.num_key_value_heads, config.intermediate_size
            shapes = [(d, d + 2 * kv), (d, d), (d, 2 * wide), (wide, d)]
        self.work = {}
        for k, n in shapes:
            x, g = (torch.randn(rows, width).to(DEVICE, dtype) for width in (k, n))
            weights = [torch.randn(n, k).to(DEVICE, dtype) for _ in range(self.weights)]
            turned = [weight.t().contiguous() for weight in weights]
            self.work[f"forward {k}x{n}"] = _layouts(x, weights, turned)
            self.work[f"backward {k}x{n}"] = _layouts(g, turned, weights)

    def run(self) -> None:
        """One round: the best of all rounds counts."""
        for product, layouts in self.work.items():
            plain = 0 if product.startswith("forward") else 1
            for number, layout in enumerate(layouts):
                synchronize()
                started = time.perf_counter()
                layout()
                synchronize()
                seconds = (time.perf_counter() - started) / self.weights
                self.best[product] = min(seconds, self.best.get(product, seconds))
                if number == plain:
                    self.plain[product] = min(seconds, self.plain.get(product, seconds))

    @property
    def seconds(self) -> float:
        """Of one step."""
        return self.layers * sum(self.best.values())

    @property
    def plain_seconds(self) -> float:
        """Of one step with plain weights: what another layout could save."""
        return self.layers * sum(self.plain.values())


def _layouts(x: Tensor, weights: list[Tensor], turned: list[Tensor]) -> list[Any]:
    """Ways to multiply x by each of the weights [n,k] (turned: [k,n])."""
    ways = [
        lambda: [F.linear(x, weight) for weight in weights],
        lambda: [torch.mm(x, weight) for weight in turned],
    ]
    if DEVICE.type == "cuda":
        return [as_graph(way) for way in ways]
    if x.dtype is torch.float32 and "fbgemm" in torch.backends.quantized.supported_engines:
        half = [torch.ops.quantized.linear_prepack_fp16(weight, None) for weight in weights]
        ways.append(lambda: [torch.ops.quantized.linear_dynamic_fp16(x, w) for w in half])
    if torch.backends.mkldnn.is_available():
        packed = [torch.ops.mkldnn._reorder_linear_weight(weight, len(x)) for weight in weights]
        ways.append(lambda: [torch.ops.mkldnn._linear_pointwise(x, w, None, "none", [], "") for w in packed])
    return ways


def as_graph(work: Callable[[], object]) -> Callable[[], object]:
    """The launches of `work` as one CUDA graph."""
    with torch.cuda.stream(torch.cuda.Stream()):
        work()
    synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()

    def replay() -> object:
        graph.replay()
        return work  # which holds what the graph reads

    return replay


class HiddenFromOutput(nn.Module):
    """Read out as most code does it: all hidden states of the CausalLM, logits computed and thrown away."""

    def __init__(self, causal: Any) -> None:
        super().__init__()
        self.causal = causal

    def forward(self, x: Tensor) -> Tensor:
        """The last position's."""
        hidden: Tensor = self.causal(inputs_embeds=x, output_hidden_states=True).hidden_states[-1]
        return hidden[:, -1]


class Autocast(nn.Module):
    """bf16 by autocast over fp32 weights."""

    def __init__(self, stack: nn.Module) -> None:
        super().__init__()
        self.stack = stack

    def forward(self, x: Tensor) -> Tensor:
        """The stack under autocast."""
        with torch.autocast(DEVICE.type, torch.bfloat16):
            hidden: Tensor = self.stack(x)
        return hidden
