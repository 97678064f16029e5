"""The fast path of the frozen LLM against transformers' module, and the work that it does."""

import logging
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
import torch._inductor.config
import transformers as tf
from llm_world import DEPTH, HANDLED, HD, HEADS, KV, PER_TOKEN, SHAPE, D, reference, vectors
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

import simv0.llm.fast
import simv0.runtime.torchvision_fix
from simv0.cpu_step.packed import HalvedLinear, pack_linears
from simv0.cpu_step.prepare import prepare_llm
from simv0.llm.fast import TOLERANCE, FastLayer, FastStack, disagreement, outputs_of, unsupported_reason
from simv0.llm.frozen import LastHidden
from simv0.llm.load import load_llm

DYNAMIC = {"rope_type": "dynamic", "rope_theta": 500.0, "factor": 2.0}
HANDED_ON = {
    "its activation is gelu": tf.LlamaConfig(**SHAPE, hidden_act="gelu"),
    "its rope is dynamic": tf.LlamaConfig(**SHAPE, rope_parameters=DYNAMIC),
    "GemmaModel is not one of its families": tf.GemmaConfig(**SHAPE),
    "GPT2Model is not one of its families": tf.GPT2Config(vocab_size=50, n_embd=D, n_layer=2, n_head=4),
}


@pytest.mark.parametrize("case", HANDLED)
def test_agrees_with_transformers(case: str) -> None:
    """Outputs and input gradients; the prefix is longer than the windows; one token is a prefix too."""
    model = reference(HANDLED[case])
    assert unsupported_reason(model, 1.0) is None
    wanted = {tokens: outputs_of(LastHidden(model, torch.float32), vectors(tokens=tokens)) for tokens in (7, 1, 20)}
    fast = FastStack(model, torch.float32)
    for tokens, expected in wanted.items():
        assert disagreement(fast, expected, vectors(tokens=tokens)) < 2e-6


@pytest.mark.parametrize("case", HANDLED)
def test_bf16_is_no_further_from_fp32_than_transformers_own_bf16(case: str) -> None:
    config, x = HANDLED[case], vectors(batch=16)
    exact = outputs_of(LastHidden(reference(config), torch.float32), x)
    theirs = disagreement(LastHidden(reference(config, torch.bfloat16), torch.bfloat16), exact, x)
    ours = disagreement(FastStack(reference(config, torch.bfloat16), torch.bfloat16), exact, x)
    assert ours < 1.05 * theirs
    assert ours < 0.025


@pytest.mark.parametrize("case", HANDLED)
def test_one_prefix_without_gradients_agrees_too(case: str) -> None:
    """A robot's step takes another way through the attention."""
    fast = FastStack(reference(HANDLED[case]), torch.float32)
    for tokens in (7, 1, 20):
        x = vectors(batch=1, tokens=tokens)
        fast.predicting = True
        with torch.no_grad():
            alone = fast(x)
        torch.testing.assert_close(alone, fast(x), rtol=1e-5, atol=1e-5)
        assert not alone.is_inference()  # so that a caller may go on with gradients


needs_blocks = pytest.mark.skipif(
    not (torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()),
    reason="this CPU has no bf16 products of oneDNN",
)
needs_panels = pytest.mark.skipif(
    "fbgemm" not in torch.backends.quantized.supported_engines, reason="this PyTorch has no FBGEMM"
)
PACKED = [
    pytest.param(torch.bfloat16, 0.02, marks=needs_blocks),
    pytest.param(torch.float32, 1e-3, marks=needs_panels),
]


@pytest.mark.parametrize("case", ["qwen2", "biases everywhere"])
@pytest.mark.parametrize(("dtype", "error"), PACKED)
def test_packed_weights_give_the_same(
    case: str, dtype: torch.dtype, error: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "simv0.cpu_step.single", None)  # as without numba
    reference(HANDLED[case]).save_pretrained(tmp_path)
    plain, packed = (load_llm(str(tmp_path), dtype=dtype) for _ in range(2))
    assert prepare_llm(packed, 6)
    assert not any(type(module) is nn.Linear for module in packed.modules())
    for batch, tokens in ((1, 6), (1, 3), (4, 6)):
        with torch.no_grad():
            expected = plain(vectors(batch, tokens))
            assert (packed(vectors(batch, tokens)) - expected).norm() < error * expected.norm()
    with pytest.raises(AssertionError, match="for prediction only"):
        packed(vectors(1, 6).requires_grad_())


@needs_panels
def test_bf16_weights_are_not_rounded_again_in_fp16() -> None:
    """So the product of packed fp16 is that of the bf16 weights in fp32, as float64 gives it."""
    linear = nn.Linear(40, 24).bfloat16().float()
    packed = HalvedLinear(linear)
    x = torch.randn(2, 6, 40)
    with torch.no_grad():
        exact = nn.functional.linear(x.double(), linear.weight.double(), linear.bias.double())
        torch.testing.assert_close(packed(x).double(), exact, rtol=0, atol=1e-5)


@needs_panels
@pytest.mark.parametrize(
    ("weight", "fault"), [(7e4, "a weight is too large for fp16"), (1e-7, "its packed product differs"), (0.0, None)]
)
def test_layers_that_fp16_cannot_hold_stay_as_they_are(
    weight: float, fault: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    """Too large, or so small that they lose their digits; the others are packed all the same."""
    layers = nn.Sequential(*(nn.Linear(8, 8, bias=False) for _ in range(3)))
    nn.init.constant_(layers[1].weight, weight)  # type: ignore[arg-type]
    with caplog.at_level(logging.DEBUG, "simv0"):
        assert pack_linears(layers, 6) == (fault is None)
    assert [type(layer) is nn.Linear for layer in layers] == [False, fault is not None, False]
    if fault:
        assert f"1 of 3 layers stay unpacked; 1: {fault}" in caplog.text


@pytest.mark.parametrize(
    ("dtype", "operators", "name"),
    [
        (torch.bfloat16, torch.ops.mkldnn, "_reorder_linear_weight"),
        (torch.float32, torch.ops.quantized, "linear_prepack_fp16"),
    ],
)
def test_nothing_is_packed_off_the_fast_path_or_without_the_operators(
    dtype: torch.dtype, operators: Any, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "simv0.cpu_step.single", None)  # as without numba
    reference(HANDLED["llama"]).save_pretrained(tmp_path)
    assert not prepare_llm(load_llm(str(tmp_path), dtype=dtype, fast=False), 6)
    monkeypatch.setattr(operators, name, None, raising=False)  # a PyTorch without it
    llm = load_llm(str(tmp_path), dtype=dtype)
    assert not prepare_llm(llm, 6)
    llm(vectors())


@pytest.mark.parametrize("reason", HANDED_ON)
def test_hands_on_what_it_cannot_do(reason: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert unsupported_reason(reference(HANDED_ON[reason]), 1.0) == reason
    reference(HANDED_ON[reason]).save_pretrained(tmp_path)
    with caplog.at_level(logging.INFO, "simv0"):
        assert load_llm(str(tmp_path)).path == "reference"
    assert f"runs on transformers' own implementation: {reason}" in caplog.text


def test_hands_on_layers_that_hold_more_than_it_knows() -> None:
    model = reference(HANDLED["llama"])
    model.layers[1].self_attn.sinks = nn.Parameter(torch.zeros(HEADS))
    assert unsupported_reason(model, 1.0) == "a layer holds self_attn.sinks"
    model = reference(HANDLED["llama"])
    model.layers[1].mlp.up_proj.__class__ = type("Quantised", (nn.Linear,), {})
    assert unsupported_reason(model, 1.0) == "mlp.up_proj is not a plain linear layer"


@pytest.mark.parametrize(("dtype", "fast"), [(torch.float32, True), (torch.bfloat16, True), (torch.float32, False)])
def test_load_takes_the_path_asked_for(dtype: torch.dtype, fast: bool, tmp_path: Path) -> None:
    reference(HANDLED["qwen3"]).save_pretrained(tmp_path)
    llm = load_llm(str(tmp_path), dtype=dtype, fast=fast)
    assert llm.path == ("fast" if fast else "reference")
    assert not any(weight.requires_grad for weight in llm.parameters())
    expected = outputs_of(LastHidden(reference(HANDLED["qwen3"]), torch.float32), vectors())
    assert disagreement(llm, expected, vectors()) < (2e-6 if dtype == torch.float32 else 0.025)


@pytest.mark.parametrize("broken", ["window", "bias", "rope", "norm", "layers"])
def test_check_at_load_sees_every_kind_of_error(broken: str) -> None:
    """Each fault alone is far outside the tolerance."""
    model = reference(HANDLED["mistral, a window" if broken == "window" else "qwen2"])
    expected = outputs_of(LastHidden(model, torch.float32), vectors(tokens=6))
    fast = FastStack(model, torch.float32)
    layer = fast.layers[1]
    assert isinstance(layer, FastLayer)
    match broken:
        case "window":
            fast.windows = [None] * DEPTH
        case "bias":
            layer.qkv.bias.data.zero_()
        case "rope":
            fast.rope.inv_freq.mul_(2)
        case "norm":
            fast.weight.data.fill_(1.0)
        case "layers":
            fast.layers = fast.layers[:1] + fast.layers[2:]
            fast.windows = fast.windows[1:]
    assert disagreement(fast, expected, vectors(tokens=6)) > 100 * TOLERANCE


def test_falls_back_and_says_so_when_the_paths_disagree(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    reference(HANDLED["llama"]).save_pretrained(tmp_path)
    monkeypatch.setattr(simv0.llm.fast, "TOLERANCE", 0.0)  # rounding alone is now too much
    llm = load_llm(str(tmp_path))
    assert llm.path == "reference"
    assert "the fast path differs from transformers' LlamaModel by" in caplog.text
    expected = outputs_of(LastHidden(reference(HANDLED["llama"]), torch.float32), vectors())
    assert disagreement(llm, expected, vectors()) < 2e-6


# A guard without timing: what a step may cost. Whoever makes it do more work must change these numbers knowingly.


def linear_flops(tokens: int, batch: int) -> int:
    """Forward of all GEMMs with weights: every position in all layers; in the last, for q, k, v only."""
    qkv = D * (HEADS + 2 * KV) * HD
    return 2 * batch * (tokens * (DEPTH - 1) * PER_TOKEN + tokens * qkv + (PER_TOKEN - qkv))


def attention_flops(tokens: int, batch: int) -> int:
    """Forward of scores and mixing."""
    return 2 * 2 * batch * HEADS * HD * ((DEPTH - 1) * tokens * tokens + tokens)


class CountCalls(TorchDispatchMode):
    """How often each kind of GEMM is called."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: Counter[Any] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.addmm, torch.ops.aten.bmm, torch.ops.aten.baddbmm):
            self.seen[func.overloadpacket] += 1
        return func(*args, **(kwargs or {}))


def test_a_step_does_no_more_work_than_it_must() -> None:
    fast = FastStack(reference(HANDLED["llama"]), torch.float32)
    x = vectors(batch=5, tokens=6).requires_grad_()
    fast(x)  # makes the tables of rope, by a matrix product in some versions of transformers
    with FlopCounterMode(display=False) as forward:
        out = fast(x)
    with FlopCounterMode(display=False) as backward:
        out.sum().backward()
    assert forward.get_total_flops() == linear_flops(6, 5) + attention_flops(6, 5)
    # Backward to the inputs alone: as much as forward for weights (no weight gradients), twice that for attention.
    assert backward.get_total_flops() == linear_flops(6, 5) + 2 * attention_flops(6, 5)
    with CountCalls() as count, torch.no_grad():
        fast(x)
    assert count.seen == {torch.ops.aten.mm: DEPTH * 4, torch.ops.aten.bmm: DEPTH * 2}


def test_a_robots_step_makes_no_more_calls_than_it_must() -> None:
    """At one prefix without gradients the calls cost more than the work between the products."""

    class CountAll(TorchDispatchMode):
        calls = 0

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            CountAll.calls += not func.is_view
            return func(*args, **(kwargs or {}))

    fast, x = FastStack(reference(HANDLED["llama"]), torch.float32), vectors(batch=1, tokens=6)
    fast.predicting = True
    with torch.no_grad():
        fast(x)
        with CountAll():
            fast(x)
    assert CountAll.calls <= 73  # 23 a layer


def test_bytes_held_are_the_layers_in_the_compute_dtype(tmp_path: Path) -> None:
    reference(HANDLED["llama"]).save_pretrained(tmp_path)
    llm = load_llm(str(tmp_path), dtype=torch.bfloat16)
    held = sum(tensor.nbytes for tensor in [*llm.parameters(), *llm.buffers()])
    rope = 2 * 4 * HD // 2  # inverse frequencies, twice in transformers' module
    assert held == 2 * DEPTH * PER_TOKEN + 4 * D + rope


def test_a_failed_trial_leaves_the_model_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = reference(HANDLED["llama"]), vectors()
    wanted = model(inputs_embeds=x).last_hidden_state

    def failing(self: nn.Module) -> nn.Module:
        raise MemoryError

    monkeypatch.setattr(nn.Module, "float", failing)
    with pytest.raises(MemoryError):
        unsupported_reason(model, 1.0)
    assert len(model.layers) == DEPTH
    torch.testing.assert_close(model(inputs_embeds=x).last_hidden_state, wanted, rtol=0, atol=0)
