"""Where a run computes, and in which type."""

import torch

from simv0.config.schema import Config, TrainingConfig
from simv0.errors import ConfigError
from simv0.runtime.distributed import local_device, local_world_size


def pick_device(config: Config) -> torch.device:
    """This process's GPU where there is one, else the CPU.

    Raises:
        ConfigError: fp16 without CUDA; more processes than GPUs, which NCCL does not connect.
    """
    device = local_device()
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
    """Whether bf16 matrix products run on units of their own (CUDA from compute capability 8, AMX or AVX512-BF16)."""
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("amx_bf16") or capabilities.get("amx_tile") or capabilities.get("avx512_bf16"))
