"""Where a command computes, and in which type."""

import torch
from torch import Tensor

from simv0.config.schema import Config, TrainingConfig
from simv0.errors import ConfigError
from simv0.runtime.distributed import local_device, local_world_size, processes


def chosen_device(config: Config) -> torch.device:
    """This process's device, as `training.device` says.

    Raises:
        ConfigError: the machine has no such device; `cuda:N` for several processes.
    """
    wanted = config.training.device
    if wanted == "auto":
        return torch.device("mps") if _apple_gpu() and processes() == 1 else local_device()
    device = torch.device(wanted)
    if device.type == "mps":
        if not _apple_gpu():
            raise ConfigError("training.device: mps needs an Apple GPU, and torch finds none here; write auto")
        if processes() > 1:
            raise ConfigError("training.device: several processes cannot share an Apple GPU; start without torchrun")
    if device.type == "cuda":
        found = torch.cuda.device_count()
        if not torch.cuda.is_available() or found <= (device.index or 0):
            has = f"has {found} (cuda:0 to cuda:{found - 1})" if found else "has none, or a torch without CUDA"
            raise ConfigError(f"training.device: {wanted} needs a GPU that this machine lacks: it {has}; write auto")
        if wanted == "cuda":
            return local_device()
        if local_world_size() > 1:
            raise ConfigError(
                f"training.device: {wanted} is one GPU, but torchrun started {local_world_size()} processes; write "
                "cuda, and choose GPUs with CUDA_VISIBLE_DEVICES"
            )
        torch.cuda.set_device(device)  # graphs and compiled kernels are made on the current one
    return device


def pick_device(config: Config) -> torch.device:
    """`chosen_device`, for what trains and predicts.

    Raises:
        ConfigError: as `chosen_device`; fp16 without CUDA; more processes than GPUs, which NCCL does not connect.
    """
    device = chosen_device(config)
    if device.type == "cuda" and local_world_size() > torch.cuda.device_count():
        raise ConfigError(
            f"torchrun started {local_world_size()} processes on this machine, but its number of GPUs is "
            f"{torch.cuda.device_count()}: use --nproc-per-node {torch.cuda.device_count()}"
        )
    if config.training.amp and config.training.amp_dtype == "fp16" and device.type != "cuda":
        raise ConfigError("training.amp_dtype: fp16 needs CUDA; write bf16 here, or training.amp: false")
    return device


def compute_dtype(training: TrainingConfig, device: torch.device) -> torch.dtype:
    """Type of the frozen LLM's weights and of its matrix products on a device.

    bf16 only where the device has units for it: without, a CPU multiplies bf16 five to nine times slower than fp32.
    """
    if training.amp and training.amp_dtype == "fp16":
        return torch.float16
    return torch.bfloat16 if training.amp and has_bf16_units(device) else torch.float32


def has_bf16_units(device: torch.device | str) -> bool:
    """Whether bf16 matrix products run on units of their own (CUDA from compute capability 8, AMX or AVX512-BF16), or
    at all on an Apple GPU (macOS 14).
    """
    kind = torch.device(device).type
    if kind == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if kind == "mps":
        return torch.backends.mps.is_macos_or_newer(14, 0)
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("amx_bf16") or capabilities.get("amx_tile") or capabilities.get("avx512_bf16"))


def countable(values: Tensor) -> Tensor:
    """Values where they can be summed in float64 and int64: an Apple GPU's go to the CPU."""
    return values.cpu() if values.device.type == "mps" else values


def _apple_gpu() -> bool:
    return torch.backends.mps.is_available()
