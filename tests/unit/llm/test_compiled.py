"""Compiled and captured blocks of the LLM: which shapes take them, and what happens where they cannot be made."""

from typing import Literal

import jaxtyping
import pytest
import torch
import torch._inductor.config
import transformers as tf
from llm_world import HD, HEADS, KV, PER_TOKEN, SHAPE, D, reference, vectors
from torch._dynamo.utils import counters

from simv0.cpu_step.prepare import prepare_llm
from simv0.llm.compile import LONG_RUN, compile_llm, worth_compiling
from simv0.llm.cuda_graphs import captured
from simv0.llm.fast import disagreement, outputs_of
from simv0.llm.load import load_llm


@pytest.fixture(scope="module")
def one_layer(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("one_layer")
    reference(tf.Qwen3Config(**SHAPE | {"num_hidden_layers": 1})).save_pretrained(folder)
    return str(folder)


def test_compiled_agrees_and_other_shapes_run_uncompiled(one_layer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # the compiler cannot see through its checks
    llm, exact = load_llm(one_layer), load_llm(one_layer)
    random_state = torch.get_rng_state()
    assert compile_llm(llm, "on", batch=5, tokens=6, steps=1) is not None
    assert torch.equal(torch.get_rng_state(), random_state)
    graphs = counters["stats"]["unique_graphs"]
    for batch, tokens in ((5, 6), (2, 6), (5, 3)):
        x = vectors(batch, tokens)
        assert disagreement(llm, outputs_of(exact, x), x) < 2e-6
        with torch.no_grad():
            torch.testing.assert_close(llm(x), exact(x), rtol=0, atol=0)  # evaluation runs uncompiled
    assert counters["stats"]["unique_graphs"] == graphs


def test_compiled_with_a_bos_that_is_computed_once(one_layer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    llm, exact, x = load_llm(one_layer), load_llm(one_layer), vectors(5, 7)
    x[:, 0] = bos = x[0, 0].clone()
    assert compile_llm(llm, "on", batch=5, tokens=7, steps=1, first=bos) is not None
    graphs = counters["stats"]["unique_graphs"]
    wanted, gradient = outputs_of(exact, x)
    gradient[:, 0] = 0  # nothing flows back to the BOS
    assert disagreement(lambda x: llm(x, bos), (wanted, gradient), x) < 2e-6
    assert counters["stats"]["unique_graphs"] == graphs


def test_runs_as_it_is_where_there_is_no_compiler(one_layer: str, caplog: pytest.LogCaptureFixture) -> None:
    llm, exact, x = load_llm(one_layer), load_llm(one_layer), vectors(4, 6)
    with torch._inductor.config.patch({"cpp.cxx": ("/no/such/compiler",), "fx_graph_cache": False}):
        assert compile_llm(llm, "on", batch=4, tokens=6, steps=1) is None
    assert "the LLM cannot be compiled here and runs uncompiled: " in caplog.text
    assert disagreement(llm, outputs_of(exact, x), x) == 0


def test_auto_compiles_long_runs_only(one_layer: str) -> None:
    llm = load_llm(one_layer)
    weights = PER_TOKEN + HD * (HEADS + KV)  # with the norms of queries and keys
    steps = int(LONG_RUN / (4 * weights * 64 * 6))
    assert compile_llm(llm, "auto", batch=64, tokens=6, steps=steps - 1) is None
    assert compile_llm(llm, "off", batch=64, tokens=6, steps=100 * steps) is None
    assert llm.compiled_for is None
    assert worth_compiling("auto", weights, 64 * 6 * (steps + 1))


def test_captured_graphs_serve_the_training_shape_with_gradients_only(one_layer: str) -> None:
    """What CUDA graphs would serve, with a plain function in their place."""
    llm, exact, served = load_llm(one_layer), load_llm(one_layer), []

    def graphs(x: torch.Tensor) -> torch.Tensor:
        served.append(tuple(x.shape[:2]))
        return llm.stack(x)  # type: ignore[no-any-return]

    llm.compiled_for, llm.captured = (5, 6), {(5, 6, True): graphs}
    for batch, tokens in ((5, 6), (2, 6), (5, 3)):
        x = vectors(batch, tokens)
        assert disagreement(llm, outputs_of(exact, x), x) == 0
        with torch.no_grad():
            assert torch.equal(llm(x), exact(x))
    assert served == [(5, 6)]


def test_runs_uncaptured_where_graphs_fail(one_layer: str, caplog: pytest.LogCaptureFixture) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is CUDA here, so the graphs do not fail")
    llm = load_llm(one_layer)
    assert captured(llm, vectors(5, 6).requires_grad_()) is None
    assert "the LLM cannot be captured as CUDA graphs: " in caplog.text


@pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need CUDA")
@pytest.mark.parametrize("wish", ["auto", "on"])  # a run this short is captured, but not worth compiling
def test_training_is_captured_on_cuda(
    one_layer: str, wish: Literal["auto", "on"], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # the compiler cannot see through its checks
    llm, exact = (load_llm(one_layer, device="cuda") for _ in range(2))
    assert (compile_llm(llm, wish, batch=5, tokens=6, steps=1) is not None) == (wish == "on")
    assert list(llm.captured) == [(5, 6, True)]
    for _ in range(3):
        x = torch.randn(5, 6, D, device="cuda")
        assert disagreement(llm, outputs_of(exact, x), x) < 1e-4


@pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need CUDA")
def test_single_prefixes_are_captured_on_cuda(one_layer: str) -> None:
    llm, exact = (load_llm(one_layer, device="cuda") for _ in range(2))
    with torch.inference_mode():  # as a caller may load it; what is captured outlives that
        prepare_llm(llm, 6)
    assert list(llm.captured) == [(1, 6, False)]
    with torch.no_grad():
        xs = torch.randn(3, 1, 6, D, device="cuda")
        hidden = [llm(x) for x in xs]  # of which none is overwritten by the next
        for x, found in zip(xs, hidden, strict=True):
            torch.testing.assert_close(found, exact(x), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(llm(xs[:, 0]), exact(xs[:, 0]), rtol=1e-4, atol=1e-5)
