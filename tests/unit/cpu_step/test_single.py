"""The robot's step in one compiled loop, against the fast path that it is made of."""

import copy
import hashlib
import logging
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as tf
from llm_world import HANDLED, SHAPE, reference, vectors

pytest.importorskip("numba", reason="the extra `robot` is not installed")

import simv0.cpu_step.single
from simv0.cpu_step.loop import Workspace, begin, layout, pieces_of, silu
from simv0.cpu_step.prepare import prepare_llm
from simv0.cpu_step.single import SingleStack, single_stack
from simv0.cpu_step.tiles import can_widen, compiled, pack, tile
from simv0.llm.fast import FastStack
from simv0.llm.load import load_llm

pytestmark = pytest.mark.skipif(not can_widen(), reason="this CPU does not widen fp16")


def halves(config: tf.PreTrainedConfig) -> FastStack:
    """A stack whose weights are numbers of fp16, so that only sums are rounded."""
    stack = FastStack(reference(config), torch.float32)
    for weight in stack.layers.parameters():
        weight.copy_(weight.half().float())
    return stack


@pytest.mark.parametrize("rows", [1, 2, 3, 4, 5, 6])
def test_a_tile_is_a_product(rows: int) -> None:
    weight = torch.randn(16, 40).half()
    x = np.random.default_rng(rows).standard_normal((40, rows)).astype(np.float32)
    out = np.full((7, 16), 9, np.float32)
    packed = pack(weight.float())
    assert packed.shape == (1, 40, 16)
    tile(rows, x.ctypes.data, packed.ctypes.data, out.ctypes.data, 40)
    exact = x.T.astype(np.float64) @ weight.double().numpy().T
    np.testing.assert_allclose(out[:rows], exact, rtol=0, atol=1e-5)
    assert (out[rows:] == 9).all()


def test_silu_is_silu() -> None:
    x = torch.linspace(-40, 40, 8001)
    ours = torch.tensor([silu(np.float32(value)) for value in x.tolist()])
    exact = torch.nn.functional.silu(x.double())
    assert ((ours - exact).abs() <= 2**-22 * x.abs().double()).all()  # of what it is summed with, four units


@pytest.mark.parametrize("case", HANDLED)
def test_agrees_with_the_fast_path(case: str) -> None:
    """One token, a tile, tiles that do not come out even, three tiles; and a batch."""
    for tokens in (1, 6, 7, 18):
        stack, x = halves(HANDLED[case]), vectors(batch=2, tokens=tokens)
        with torch.no_grad():
            wanted = stack(x)
            single = single_stack(stack, tokens)
            assert single is not None
            torch.testing.assert_close(single(x), wanted, rtol=2e-5, atol=2e-5)
            torch.testing.assert_close(single(x[1:]), single(x)[1:], rtol=0, atol=0)


def test_one_layer_is_first_and_last() -> None:
    stack, x = halves(tf.LlamaConfig(**SHAPE | {"num_hidden_layers": 1})), vectors(batch=1, tokens=6)
    wanted = stack(x)
    assert single_stack(stack, 6) is not None
    torch.testing.assert_close(SingleStack(halves(tf.LlamaConfig(**SHAPE | {"num_hidden_layers": 1})), 6)(x), wanted)


def test_the_weights_are_held_once_and_in_16_bit(tmp_path: Path) -> None:
    reference(HANDLED["qwen2"]).save_pretrained(tmp_path)
    llm = load_llm(str(tmp_path))
    before = {name: weight for name, weight in llm.named_parameters() if weight.ndim == 2}
    assert prepare_llm(llm, 6)
    assert isinstance(llm.stack, SingleStack)
    assert not any(weight.ndim == 2 for weight in llm.parameters())
    held = sum(weights.nbytes for weights in llm.stack.whole[:4])
    assert held == 2 * sum(weight.numel() for weight in before.values())
    with pytest.raises(AssertionError, match="for prediction only"):
        llm(vectors(1, 6).requires_grad_())
    with pytest.raises(AssertionError, match="made for 6 vectors, got 7"):
        llm(vectors(1, 7))


@pytest.mark.parametrize("others", [0, 1, 5])
def test_any_number_of_cores_gives_the_same_bits(others: int) -> None:
    x = vectors(batch=30, tokens=6)
    alone, shared = (SingleStack(halves(HANDLED["qwen3"]), 6) for _ in range(2))
    alone.others, shared.others, shared.pool = 0, others, ThreadPoolExecutor(max(1, others))
    torch.testing.assert_close(shared(x), alone(x), rtol=0, atol=0)


def test_a_helper_that_never_comes_is_not_waited_for() -> None:
    single, x = SingleStack(halves(HANDLED["llama"]), 6), vectors(batch=1, tokens=6)
    wanted, let_go = single(x), threading.Event()
    single.others, single.pool = 1, ThreadPoolExecutor(1)
    single.pool.submit(let_go.wait, 60)
    torch.testing.assert_close(single(x), wanted, rtol=0, atol=0)
    assert not let_go.is_set()
    let_go.set()


def test_two_callers_at_once_do_not_mix() -> None:
    single, x = SingleStack(halves(HANDLED["llama"]), 6), vectors(batch=40, tokens=6)
    wanted = single(x)
    with ThreadPoolExecutor(4) as callers:
        found = list(callers.map(lambda i: single(x[i : i + 1])[0], range(40)))
    torch.testing.assert_close(torch.stack(found), wanted, rtol=0, atol=0)


def test_not_a_number_stays_one() -> None:
    single, x = SingleStack(halves(HANDLED["qwen2"]), 6), vectors(batch=1, tokens=6)
    x[0, 2, 1] = float("nan")
    assert single(x).isnan().all()
    assert single(vectors(batch=1, tokens=6)).isfinite().all()  # the next step knows nothing of it


@pytest.mark.parametrize("cores", [1, 2, 3, 16])
def test_pieces_cover_each_block_once(cores: int) -> None:
    empty = np.zeros((1, 1), np.float32)
    board = Workspace(empty, empty, empty[0], empty[0], np.zeros((1, 2, 8), np.int64), 1 / (2 * cores))
    for n in (1, 2, 7, 60, 304):
        pieces = pieces_of(board, n)
        covered = [i for p in range(pieces) for i in range(begin(board, p, n), begin(board, p + 1, n))]
        assert covered == list(range(n))
    assert [layout(n) for n in (1, 6, 7, 13, 18)] == [(1, 1), (1, 6), (2, 4), (3, 5), (3, 6)]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"intermediate_size": 40}, "gate_up has 80 outputs, not a multiple of 16"),
        ({}, "a weight is too large for fp16"),
    ],
)
def test_hands_on_what_it_cannot_do(change: dict[str, int], reason: str, caplog: pytest.LogCaptureFixture) -> None:
    stack = FastStack(reference(tf.LlamaConfig(**SHAPE | change)), torch.float32)
    if not change:
        stack.layers[1].down.weight[0, 0] = 7e4  # type: ignore[union-attr, index]
    wanted = stack(vectors(1, 6))
    with caplog.at_level(logging.INFO, "simv0"):
        found = single_stack(stack, 6)
    assert found is None
    assert reason in caplog.text
    torch.testing.assert_close(stack(vectors(1, 6)), wanted, rtol=0, atol=0)  # left whole


def test_a_step_that_differs_is_refused(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(simv0.cpu_step.single, "pack", lambda weight: pack(weight * 1.01))  # a mistake of ours
    with caplog.at_level(logging.INFO, "simv0"):
        assert single_stack(halves(HANDLED["llama"]), 6) is None
    assert "it differs from the fast path by" in caplog.text


@pytest.mark.parametrize("dtype", [np.uint16, np.float32])
def test_without_memory_the_stack_stays_whole(
    dtype: type, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Whichever allocation fails, in the trial or after it: the same predictions, of all layers, and a word."""
    stack, x, empty, zeros = halves(HANDLED["llama"]), vectors(1, 6), np.empty, np.zeros
    wanted = stack(x)
    assert single_stack(halves(HANDLED["llama"]), 6) is not None  # everything is compiled
    for fails_at in range(100):
        calls = iter(range(100))

        def failing(make: Any, shape: Any, kind: Any = float, calls: Any = calls, n: int = fails_at) -> Any:
            if kind == dtype and next(calls) == n:
                raise MemoryError
            return make(shape, kind)

        monkeypatch.setattr(np, "empty", partial(failing, empty))
        monkeypatch.setattr(np, "zeros", partial(failing, zeros))
        caplog.clear()
        found = single_stack(stack, 6)
        monkeypatch.undo()
        if found is not None:
            break
        assert "the LLM runs without the compiled step" in caplog.text
        torch.testing.assert_close(stack(x), wanted, rtol=0, atol=0)
    assert fails_at >= 8
    torch.testing.assert_close(found(x), wanted, rtol=2e-5, atol=2e-5)


def test_a_stack_that_lost_weights_is_never_used(monkeypatch: pytest.MonkeyPatch) -> None:
    stack, calls = halves(HANDLED["llama"]), iter(range(100))

    def failing(weight: torch.Tensor) -> Any:
        if next(calls) == 10:  # the trial packs 8
            raise MemoryError
        return pack(weight)

    monkeypatch.setattr(simv0.cpu_step.single, "pack", failing)  # as where memory ends in the middle of the move
    with pytest.raises(MemoryError):
        single_stack(stack, 6)
    with pytest.raises(TypeError):
        stack(vectors(1, 6))


@pytest.mark.parametrize("travel", [copy.deepcopy, lambda stack: pickle.loads(pickle.dumps(stack))])
def test_a_copy_steps_by_itself(travel: Any) -> None:
    single, x = SingleStack(halves(HANDLED["qwen3"]), 6), vectors(batch=2, tokens=6)
    wanted = single(x)
    there = travel(single)
    torch.testing.assert_close(there(x), wanted, rtol=0, atol=0)
    assert there.lock is not single.lock
    assert not np.shares_memory(there.board.x, single.board.x)


def test_what_is_kept_compiled_follows_both_sources(monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Path(simv0.cpu_step.single.__file__).parent
    both = hashlib.sha256(b"".join((folder / name).read_bytes() for name in ("tiles.py", "loop.py"))).hexdigest()
    for function in (tile, layout, silu):
        assert both[:16] in function._cache._cache_file._index_name  # what is kept of others is not even read
    monkeypatch.setattr("numba.config.CACHE_LOCATOR_CLASSES", "IPythonCacheLocator")  # as where nothing can be written

    def double(x: int) -> int:
        return 2 * x

    assert compiled(double)(21) == 42


def test_compiling_is_told_where_it_was_done(caplog: pytest.LogCaptureFixture) -> None:
    single_stack(halves(HANDLED["llama"]), 6)
    caplog.clear()
    with caplog.at_level(logging.INFO, "simv0"):
        single_stack(halves(HANDLED["llama"]), 6)
    assert "compiled a robot's step" not in caplog.text
