"""The model of a config: its frozen LLM with freshly seeded trainable modules around it."""

import torch

from simv0.config.schema import Config, ModelConfig
from simv0.errors import ConfigError
from simv0.llm.load import load_llm
from simv0.model.network import SimV0Model
from simv0.runtime.device import compute_dtype
from simv0.runtime.distributed import world_size
from simv0.vision.encoder import Encoder


def build_model(
    config: Config, dv: int, encoder: Encoder | None, device: torch.device, bos: bool | None = None
) -> SimV0Model:
    """Load the frozen LLM and put freshly seeded trainable modules around it.

    `bos`: whether a checkpoint's prefix begins with the LLM's BOS; None: as the config says.

    Raises:
        ModelError: an LLM that cannot be loaded, or whose width is not `model.d`.
    """
    wanted = config.model
    sharded = config.training.shard_llm and world_size() > 1
    llm = load_llm(
        wanted.llm_name_or_path,
        wanted.llm_revision,
        dtype=compute_dtype(config.training, device),
        device="cpu" if sharded else device,
        trust_remote_code=wanted.trust_remote_code,
    )
    check_d(wanted, llm.d)
    if sharded:
        llm.shard(device)
    torch.manual_seed(config.training.seed)
    model = SimV0Model(
        llm,
        dv=dv,
        F=wanted.F,
        K=wanted.K,
        bos=wanted.bos is not False if bos is None else bos,
        confidence_head=wanted.confidence_head,
        encoder=encoder,
    )
    return model.to(device)


def check_d(model: ModelConfig, d: int) -> None:
    """Refuse a `model.d` that is not the LLM's embedding width.

    Raises:
        ConfigError: with both.
    """
    if model.d not in (None, d):
        raise ConfigError(f"model.d: the config says {model.d}, but {model.llm_name_or_path} has width {d}")
