"""`training.device`: one meaning for every command, refused in one line where the machine lacks it."""

import pytest
import torch
from small_world import MakeConfig

from simv0.errors import ConfigError
from simv0.runtime.device import chosen_device, has_bf16_units, pick_device


def on(make_config: MakeConfig, device: str) -> torch.device:
    return chosen_device(make_config(training={"device": device}))


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> list[torch.device]:
    """A machine with two of them; the list holds what was made the current one."""
    chosen: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    return chosen


@pytest.fixture
def apple(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)


def test_without_a_gpu_the_cpu_is_taken(make_config: MakeConfig) -> None:
    assert on(make_config, "auto") == on(make_config, "cpu") == torch.device("cpu")


@pytest.mark.usefixtures("two_gpus")
def test_a_gpu_is_taken_unless_the_cpu_is_asked_for(make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    assert on(make_config, "auto") == on(make_config, "cuda") == torch.device("cuda", 0)
    assert on(make_config, "cpu") == torch.device("cpu")
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert on(make_config, "auto") == on(make_config, "cuda") == torch.device("cuda", 1)


def test_a_gpu_by_number_becomes_the_current_one(make_config: MakeConfig, two_gpus: list[torch.device]) -> None:
    assert on(make_config, "cuda:1") == torch.device("cuda", 1)
    assert two_gpus == [torch.device("cuda", 1)]


@pytest.mark.usefixtures("apple")
def test_an_apple_gpu_is_taken_by_one_process(make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    assert on(make_config, "auto") == on(make_config, "mps") == torch.device("mps")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert on(make_config, "auto") == torch.device("cpu")
    with pytest.raises(ConfigError, match="several processes cannot share an Apple GPU; start without torchrun"):
        on(make_config, "mps")


@pytest.mark.parametrize("new", [True, False])
def test_an_apple_gpu_computes_in_bf16_where_macos_can(new: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mps, "is_macos_or_newer", lambda major, minor: new and (major, minor) <= (14, 0))
    assert has_bf16_units("mps") is new


@pytest.mark.usefixtures("apple")
def test_fp16_is_of_cuda_alone(make_config: MakeConfig) -> None:
    with pytest.raises(ConfigError, match="fp16 needs CUDA"):
        pick_device(make_config(training={"amp": True, "amp_dtype": "fp16"}))


@pytest.mark.parametrize(
    ("device", "said"),
    [
        ("cuda", "cuda needs a GPU that this machine lacks: it has none, or a torch without CUDA; write auto"),
        ("cuda:3", "cuda:3 needs a GPU that this machine lacks: it has none, or a torch without CUDA; write auto"),
        ("mps", "mps needs an Apple GPU, and torch finds none here; write auto"),
    ],
)
def test_what_the_machine_lacks_is_refused(device: str, said: str, make_config: MakeConfig) -> None:
    with pytest.raises(ConfigError) as error:
        on(make_config, device)
    assert str(error.value) == f"training.device: {said}"


@pytest.mark.usefixtures("two_gpus")
def test_a_number_beyond_the_last_gpu_says_which_there_are(make_config: MakeConfig) -> None:
    with pytest.raises(ConfigError, match=r"cuda:2 needs a GPU that this machine lacks: it has 2 \(cuda:0 to cuda:1\)"):
        on(make_config, "cuda:2")


@pytest.mark.usefixtures("two_gpus")
def test_one_gpu_is_not_for_several_processes(make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="cuda:1 is one GPU, but torchrun started 2 processes; write cuda, and"):
        on(make_config, "cuda:1")


@pytest.mark.parametrize("device", ["gpu", "cuda:x", "CUDA", "cuda:-1"])
def test_other_words_are_refused(device: str, make_config: MakeConfig) -> None:
    with pytest.raises(ConfigError, match="training.device: expected auto, cpu, cuda, cuda:N or mps, found"):
        on(make_config, device)
