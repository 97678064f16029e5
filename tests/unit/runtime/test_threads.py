"""Threads: rows of a batch each, the same bits whatever their number, and no core held in waiting."""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import commands
import pytest
import torch
from small_world import MakeConfig
from torch.optim.optimizer import register_optimizer_step_pre_hook
from transformers import GPT2Config, GPT2Model

import simv0.llm.frozen
from simv0.demo.networks import save_tiny_llm
from simv0.errors import ConfigError
from simv0.llm.load import load_llm
from simv0.model.network import SimV0Model
from simv0.runtime.threads import check_threads, limited_to, over_batch, sharing
from simv0.training.epoch import train_one_epoch
from simv0.training.fit import fit


@pytest.fixture
def two_threads() -> Iterator[None]:
    with limited_to(2):
        yield


def test_pieces_give_what_the_whole_batch_gives(two_threads: None) -> None:
    weight = torch.randn(16, 16, dtype=torch.float64)
    x = torch.randn(10, 16, dtype=torch.float64, requires_grad=True)
    seen: list[tuple[int, int]] = []
    both = threading.Barrier(2, timeout=10)  # no thread takes two pieces

    def network(rows: torch.Tensor) -> torch.Tensor:
        seen.append((threading.get_ident(), len(rows)))
        both.wait()
        return torch.tanh(rows @ weight)

    with sharing():
        assert torch.get_num_threads() == 1  # for all but the network
        out = over_batch(network, x, 6, pays=True)
    (gradient,) = torch.autograd.grad(out.square().sum(), x)
    assert sorted(rows for _, rows in seen) == [4, 6]
    assert len({thread for thread, _ in seen}) == 2
    wanted = torch.tanh(x @ weight)
    torch.testing.assert_close(out, wanted)
    torch.testing.assert_close(gradient, torch.autograd.grad(wanted.square().sum(), x)[0])
    assert torch.get_num_threads() == 2


def test_what_is_too_small_runs_as_it_is_on_one_thread(two_threads: None) -> None:
    threads = []

    def network(x: torch.Tensor) -> torch.Tensor:
        threads.append((threading.get_ident(), len(x), torch.get_num_threads()))
        return x

    with sharing():
        over_batch(network, torch.zeros(10, 2), 2, pays=False)
        over_batch(network, torch.zeros(10, 2), 2, pays=True, splits=False)  # all threads for each operation
    over_batch(network, torch.zeros(10, 2), 2, pays=True)  # nobody shares
    here = threading.get_ident()
    assert threads == [(here, 10, 1), (here, 10, 2), (here, 10, 2)]


def test_a_fault_in_a_piece_is_raised_and_the_threads_come_back(two_threads: None) -> None:
    def network(x: torch.Tensor) -> torch.Tensor:
        raise ValueError("a fault")

    with pytest.raises(ValueError, match="a fault"), sharing():
        over_batch(network, torch.zeros(10, 2), 2, pays=True)
    assert torch.get_num_threads() == 2


def trained_weights(folder: Path, threads: int) -> dict[str, torch.Tensor]:
    """After two steps beside an LLM wide enough for pieces (checked by the caller)."""
    with limited_to(threads), sharing():
        llm = load_llm(str(folder))
        torch.manual_seed(0)
        model = SimV0Model(llm, dv=16, F=8, K=8)
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
        draw = torch.Generator().manual_seed(1)
        batch = {
            "vis_feats": torch.randn(64, 8, 16, generator=draw),
            "telemetry": torch.randn(64, 8, generator=draw),
            **{f"{head}_id": torch.randint(0, 4, (64,), generator=draw) for head in ("risk", "reason", "action")},
            "weight": torch.ones(64),
            "sample_id": [str(i) for i in range(64)],
        }
        train_one_epoch(model, [batch, batch], optimizer, None, "cpu")  # type: ignore[list-item]
        return model.trainable_state()


def test_training_gives_the_same_bits_on_one_thread_and_on_two(tmp_path: Path) -> None:
    save_tiny_llm(tmp_path, d=256, layers=1)
    one, two = trained_weights(tmp_path, 1), trained_weights(tmp_path, 2)
    assert any(thread.name.startswith("simv0-batch") for thread in threading.enumerate())  # it was cut
    assert all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize(
    ("llm", "pays", "threads"),
    [("gpt2", True, 2), ("gpt2", False, 1), ("llama", True, 1), ("llama", False, 1)],
)
def test_the_way_back_through_an_llm_that_cannot_be_cut_has_all_threads(
    llm: str, pays: bool, threads: int, make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(simv0.llm.frozen, "PAYS", 0.0 if pays else float("inf"))
    config = make_config(data={"dataset_class_path": "fit_world.VisFeats"}, training={"epochs": 1})
    if llm == "gpt2":
        shape = GPT2Config(n_embd=32, n_layer=2, n_head=2, vocab_size=64, n_positions=16)
        GPT2Model(shape).save_pretrained(tmp_path / "gpt2")
        model = config.model.model_copy(update={"llm_name_or_path": str(tmp_path / "gpt2")})
        config = config.model_copy(update={"model": model})
    seen: set[int] = set()
    hook = register_optimizer_step_pre_hook(lambda *_: seen.add(torch.get_num_threads()))
    try:
        with limited_to(2):
            fit(config)
            assert torch.get_num_threads() == 2
    finally:
        hook.remove()
    assert seen == {threads}  # those of the backward pass before


def test_a_core_that_waits_is_left_to_others() -> None:
    loop = pytest.importorskip("simv0.cpu_step.loop", reason="needs numba")
    import numpy as np

    counts = np.zeros((1, 2, 8), np.int64)
    counts[0, 0, 0] = 1  # another core has claimed the only piece
    empty = np.zeros(0, np.float32)
    board = loop.Workspace(empty.reshape(0, 0), empty.reshape(0, 0), empty, empty, counts, 0.5)
    loop.claim(loop.Workspace(*board[:4], np.ones_like(counts), 0.5), 0, 1)  # compile
    got: list[int] = []
    waiting = threading.Thread(target=lambda: got.append(loop.claim(board, 0, 1)))
    used = time.process_time()
    waiting.start()
    time.sleep(0.5)  # what it takes of the CPU meanwhile: a busy machine only makes it less
    used = time.process_time() - used
    counts[0, 1, 0] = 1  # and has done it
    waiting.join(10)
    assert got == [-1]
    assert used < 0.25


def run(code: str, **environment: str) -> str:
    kept = {k: v for k, v in os.environ.items() if k not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY", "KMP_BLOCKTIME")}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**kept, **environment},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    return done.stdout.strip()


def test_threads_are_asked_to_wait_briefly_before_torch_loads() -> None:
    show = (
        "print(os.environ.get('GOMP_SPINCOUNT'), os.environ.get('KMP_BLOCKTIME'), simv0.runtime.waiting.WAITS_BRIEFLY)"
    )
    assert run(f"import os, simv0; {show}") == "300 1 True"
    assert run(f"import os, simv0; {show}", OMP_WAIT_POLICY="PASSIVE") == "None None True"  # the user's own wish
    assert run(f"import os, simv0; {show}", GOMP_SPINCOUNT="7") == "7 None True"
    assert run(f"import os, torch, simv0; {show}") == "300 1 False"  # too late for this process


def test_importing_torch_first_is_told_once() -> None:
    code = (
        "import torch, simv0, logging, sys; torch.set_num_threads(2); "
        "from simv0.runtime.threads import tell_of_waiting; "
        "logging.basicConfig(level=logging.INFO, stream=sys.stdout, format='%(message)s'); "
        "tell_of_waiting(); tell_of_waiting()"
    )
    if torch.cuda.is_available():
        pytest.skip("of a CPU")
    assert run(code) == (
        "torch was imported before simv0, so its threads spin while they wait, which is slow where other programs need "
        "the CPU: import simv0 first, or set GOMP_SPINCOUNT=300"
    )


@pytest.mark.parametrize("threads", [0, -1, 2000, 1.5, True, "2"])
def test_a_number_of_threads_that_cannot_be_meant_is_refused(threads: object) -> None:
    with pytest.raises(ConfigError) as caught:
        check_threads(threads, "threads")  # type: ignore[arg-type]
    assert str(caught.value) == f"threads: expected a number of threads from 1 to 1024, found {threads!r}"


def test_threads_of_the_command_line_are_checked() -> None:
    result = commands.run("train", "--config", "x.yaml", "--threads", "0")
    assert result.exit_code == 2
    assert "Invalid value for '--threads': Input should be greater than or equal to 1" in result.stderr
