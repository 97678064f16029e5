"""How much disk and memory cache-vis and train would take, and whether there is room."""

import logging
import shutil
from pathlib import Path

import numpy as np
import torch

from simv0.checks.collector import ErrorCollector
from simv0.checks.data import Facts, SplitOutline
from simv0.checks.networks import EncoderOutline, LLMOutline, outline_trained
from simv0.config.schema import Config
from simv0.data.loading import SHARED_MEMORY
from simv0.disk.files import check_room
from simv0.errors import ConfigError
from simv0.features.dataset import available_memory, is_read_into_ram
from simv0.features.shards import parts_of, shard_windows_of
from simv0.features.writer import file_bytes
from simv0.llm.compile import worth_compiling
from simv0.runtime.device import chosen_device
from simv0.runtime.distributed import local_world_size, processes
from simv0.vision.encoder import resolve_precision

log = logging.getLogger("simv0")

SAVED_STATES = 10
"""Trained weights kept on disk at once: last.pt, last.prev.pt and the one being written with AdamW's two moments each,
and best.pt."""

BACKWARD = 1.5
"""Memory of a step beside what the forward pass keeps: the gradients under way, and what the allocator holds on to.
Llama and GPT-2 shapes of 0.1 billion weights, batch 256, fp32 and bf16 on a CPU: the sum is within 12 % of the peak."""


def check_cache(config: Config, splits: list[SplitOutline], dv: int, errors: ErrorCollector) -> Facts:
    """Room for the feature files that cache-vis has yet to make."""
    facts: Facts = {}
    need = 0
    for split in splits:
        if split.source == "frames":
            size = _feature_bytes(config, split, dv)
            facts[f"{split.name}_frames"] = split.frames
            facts[f"{split.name}_file_bytes"] = size
            parts = parts_of(config.feature_file(split.name))
            done = [shard.stat().st_size for shard in parts.folder.glob("shard-*.h5")]
            if done:
                with errors:
                    plan = parts.read_plan()
                    facts[f"{split.name}_shards_there"] = f"{len(done)} of {len(plan) if plan else 'unknown'}"
            need += max(0, size - sum(done))
    with errors:
        facts["free_on_disk_bytes"] = check_room(Path(config.cache.dir), need, "cache.dir", "the features need")
    return facts


def _feature_bytes(config: Config, split: SplitOutline, dv: int) -> int:
    """Size of the feature file that cache-vis would make."""
    cache, labels = config.cache, split.seen
    text_bytes = sum(max(len(text.encode()) for text in texts) for texts in (labels.sample_id, labels.group or [""]))
    block_windows = shard_windows_of(split.windows, cache.shard_windows)
    return file_bytes(split.windows, config.model.F, dv, cache.dtype, block_windows, text_bytes)


def check_training(
    config: Config,
    llm: LLMOutline,
    encoder: EncoderOutline | None,
    splits: list[SplitOutline],
    dv: int,
    errors: ErrorCollector,
) -> Facts:
    """Weights, steps, memory and disk that training takes."""
    device, trained = chosen_device(config), sum(outline_trained(config, llm, dv).values())
    steps = -(-splits[0].windows // config.batch_size)
    share = -(-config.batch_size // processes())
    vectors = config.training.epochs * steps * share * llm.tokens
    sharded = config.training.shard_llm and processes() > 1
    compiled = not sharded and worth_compiling(config.training.compile, llm.matrix_weights, vectors)
    features = features_in_ram(config, splits, dv)
    tower = 0
    if encoder is not None and not config.model.use_cached_vis_feats:
        precision = resolve_precision(config.cache.precision, device)
        tower = encoder.weights * (2 if precision == "bf16" else 4)
    # What loading has taken, a CPU's allocator seldom gives back; AdamW: weight, gradient, two moments, in fp32.
    on_device = llm.weights_bytes // processes() if sharded else llm.weights_bytes
    llm_bytes = on_device if device.type == "cuda" else llm.loading_bytes
    peak = llm_bytes + tower + int(BACKWARD * (llm.step_bytes or 0)) + 16 * trained
    with errors:
        check_memory(peak, features, device)
    saved = 4 * trained * (SAVED_STATES + 3 * config.training.epochs * config.training.keep_epochs)
    if config.training.llm_control:
        saved = 2 * saved + llm.loading_bytes  # and the copy of the LLM
    with errors:
        check_room(Path(config.output.output_dir), saved, "output.output_dir", "the checkpoints need")
    return {
        "trained weights": trained,
        "steps per epoch": steps,
        "epochs": config.training.epochs,
        "LLM compiled": compiled,
        "peak_memory_beyond_python_bytes": peak,
        "features_in_RAM_bytes": features,
        "free_RAM_bytes": available_memory() or None,
        "checkpoints_on_disk_bytes": saved,
    }


def features_in_ram(config: Config, splits: list[SplitOutline], dv: int) -> int:
    """Bytes of the feature files that `cache.in_memory` would hold in RAM."""
    sizes = (
        split.windows * config.model.F * dv * np.dtype(config.cache.dtype).itemsize
        for split in splits
        if config.model.use_cached_vis_feats and split.source != "vis_feats"
    )
    free = available_memory()
    return sum(size for size in sizes if is_read_into_ram(size, config.cache.in_memory, free))


def check_shared_memory(config: Config, splits: list[SplitOutline], picture: tuple[int, int]) -> None:
    """Compare what workers hand over, two batches each ahead, with the room for it.

    Args:
        config: `data.num_workers` and the batch sizes.
        splits: those from frames have workers.
        picture: height and width at which frames are handed over.

    Raises:
        ConfigError: too little, with the way out.
    """
    workers = config.data.num_workers
    if workers == "auto":  # stays within the room
        return
    if not workers or not SHARED_MEMORY.is_dir() or all(split.source != "frames" for split in splits):
        return
    cached = config.model.use_cached_vis_feats
    frames = config.cache.batch_size if cached else -(-config.batch_size // processes()) * config.model.F
    need = 2 * workers * local_world_size() * frames * 3 * picture[0] * picture[1]
    free = shutil.disk_usage(SHARED_MEMORY).free
    if need > free:
        raise ConfigError(
            f"data.num_workers: {workers} processes hold up to {need / 1e6:.1f} MB of frames in {SHARED_MEMORY}, where "
            f"{free / 1e6:.1f} MB are free; enlarge it (docker run --shm-size=8g), or set data.num_workers=0"
        )


def check_memory(peak: int, features: int, device: torch.device) -> None:
    """Compare what one machine's processes hold with what is free.

    Raises:
        ConfigError: too much, with the way out.
    """
    local = local_world_size()
    room = available_memory()
    if not room:
        log.warning("machine: free memory is unknown on this system; not checked whether training fits")
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        if peak > free:
            raise ConfigError(
                f"model.llm_name_or_path: training takes about {peak / 1e9:.1f} GB, but {free / 1e9:.1f} GB of the GPU "
                "are free; choose a smaller LLM or data.batch_size"
            )
    elif 0 < room < local * peak:
        raise ConfigError(
            f"model.llm_name_or_path: training takes about {local * peak / 1e9:.1f} GB, but {room / 1e9:.1f} GB of "
            "memory are free; choose a smaller LLM or data.batch_size"
        )
    if 0 < room < local * features:
        raise ConfigError(
            f"cache.in_memory: the features take {local * features / 1e9:.1f} GB, but {room / 1e9:.1f} GB of memory "
            "are free; write auto or never"
        )
