"""A new robot from an old one (`training.init_from`): a checkpoint's trained modules, and the new data's statistics.

The telemetry MLP reads standardised numbers, z = (x - m) / s. With the new statistics its first layer W z + b becomes

    W' = W diag(s2 / s1),   b' = b + W (m2 - m1) / s1,

since (x - m1) / s1 = (s2 / s1) z2 + (m2 - m1) / s1: on equal raw telemetry it computes what it did. A channel of which
that says nothing (one that one of the robots does not measure, or that is far from all that the old one has seen)
starts with weights of zero, so that it counts as the old robot's average.
"""

import logging
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from simv0.config.schema import Config
from simv0.disk.files import is_exported
from simv0.errors import CheckpointError, ConfigError
from simv0.labels import TELEMETRY
from simv0.model.checkpoint import Checkpoint, check_fits, check_frozen, load_checkpoint
from simv0.model.exported import WEIGHTS
from simv0.model.network import TRAINABLE, SimV0Model
from simv0.runtime.digests import files_digest
from simv0.training.refusals import check_init_from

log = logging.getLogger("simv0")

REACH = 10.0
"""Standard deviations of the old robot's channel within which the new robot's must lie for its weights to mean
anything there."""

Stats = tuple[Float[Tensor, "8"], Float[Tensor, "8"]]
"""Mean and std of each channel; std 1 of one that does not vary."""


def read_origin(config: Config) -> Checkpoint | None:
    """The checkpoint that a new run starts from, if any.

    Raises:
        CheckpointError: missing, damaged, or trained on telemetry of another kind.
        ConfigError: the new run would replace it.
    """
    check_init_from(config)
    if config.training.init_from is None:
        return None
    origin = load_checkpoint(config.training.init_from)
    before, now = origin.meta.config.get("data", {}).get("telemetry_norm", "train"), config.data.telemetry_norm
    if before != now:
        raise CheckpointError(
            f"training.init_from: {config.training.init_from}: was trained with data.telemetry_norm {before}, but it "
            f"is {now} here: its telemetry was of another kind; train from scratch"
        )
    return origin


def about_origin(config: Config, origin: Checkpoint | None, resumed: Checkpoint | None) -> dict[str, Any] | None:
    """What a run keeps of where it came from: read off its own checkpoint where it is resumed."""
    if resumed is not None:
        kept = resumed.meta.provenance.get("init_from")
        return kept if isinstance(kept, dict) else None
    if origin is None:
        return None
    path = Path(str(config.training.init_from))
    file = _weights_in(path)
    return {"file": f"{path.name}/{WEIGHTS}" if file != path else path.name, "sha256": files_digest([file])}


def check_begun_from(config: Config, resumed: Checkpoint) -> None:
    """Refuse to resume a run from another checkpoint than it began with, as far as that file can be read; say that a
    changed one counts for nothing where the path is the same, for the old robot may have been trained on since.

    Raises:
        ConfigError: `training.init_from` names another checkpoint now.
    """
    named, kept = config.training.init_from, resumed.meta.provenance.get("init_from")
    if named is None or not isinstance(kept, dict):
        return
    file = _weights_in(Path(named))
    if not file.is_file() or files_digest([file]) == kept.get("sha256"):
        return
    if named != resumed.meta.config.get("training", {}).get("init_from"):
        raise ConfigError(
            f"training.init_from: {named} is another checkpoint than the run was started from ({kept.get('file')}, "
            f"sha256 {str(kept.get('sha256'))[:16]}): a run that has begun goes on from its own; give the same, or "
            "another output.output_dir for a run from this one"
        )
    log.info(
        f"training.init_from: {named} has changed since the run was started from it, which changes nothing here: the "
        "run continues from its own checkpoint"
    )


def _weights_in(path: Path) -> Path:
    """The file whose digest a run keeps: the checkpoint, or the weights of an exported folder."""
    return path / WEIGHTS if is_exported(path) else path


def check_origin(origin: Checkpoint, path: str, model: SimV0Model, encoder: dict[str, Any] | None) -> None:
    """Refuse a checkpoint around another LLM, or on features of another encoder.

    Raises:
        CheckpointError: naming what differs.
    """
    where, meta = f"training.init_from: {path}", origin.meta
    check_frozen("LLM", meta.llm, model.llm.identity_like(meta.llm), where)
    if encoder is not None and meta.encoder is not None:
        check_frozen("vision encoder", meta.encoder, encoder, where)
    elif encoder is not meta.encoder:
        own, made = "a dataset's own vis_feats", "features of an encoder"
        before, now = (made, own) if encoder is None else (own, made)
        raise CheckpointError(f"{where}: was trained on {before}, but this run trains on {now}")
    check_fits(*_both(origin, model), "the model", where)


def start_from(origin: Checkpoint, model: SimV0Model) -> None:
    """Give the model the trained modules of a checkpoint that `check_origin` has let pass; its statistics are set.

    A confidence head that only one of them has is left as it is.
    """
    taken, own = _both(origin, model)
    names = "telemetry_mlp.0.weight", "telemetry_mlp.0.bias"
    if origin.meta.config.get("data", {}).get("telemetry_norm", "train") == "train":
        old = origin.state["telemetry_mean"], origin.state["telemetry_std"]
        new = model.telemetry_mean.cpu(), model.telemetry_std.cpu()
        known = shared_channels(old, new)
        taken |= dict(zip(names, adapted(taken[names[0]], taken[names[1]], old, new, known), strict=True))
        unknown = [name for name, kept in zip(TELEMETRY, known.tolist(), strict=True) if not kept]
        if unknown:
            log.info(
                f"telemetry {', '.join(unknown)}: starts without weight: it does not vary for one of the two robots, "
                f"or the new one's lies {REACH:g} standard deviations away from the old one's"
            )
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(taken[name])


def shared_channels(old: Stats, new: Stats) -> Bool[Tensor, "8"]:
    """Which channels vary for both robots, the new one's within reach of the old one's."""
    (m1, s1), (m2, s2) = old, new
    return (s1 != 1) & (s2 != 1) & ((m2 - m1).abs() + s2 <= REACH * s1)


def adapted(
    weight: Float[Tensor, "h 8"], bias: Float[Tensor, " h"], old: Stats, new: Stats, known: Bool[Tensor, "8"]
) -> tuple[Float[Tensor, "h 8"], Float[Tensor, " h"]]:
    """A first layer on telemetry standardised by `old`, as one on telemetry standardised by `new`; without the channels
    that are not `known`.
    """
    weight = weight.double() * known
    (m1, s1), (m2, s2) = ((mean.double(), std.double()) for mean, std in (old, new))
    return (weight * (s2 / s1)).float(), (bias.double() + weight @ ((m2 - m1) / s1)).float()


def _both(origin: Checkpoint, model: SimV0Model) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The trained weights that the checkpoint gives, and those of the model that take them."""
    given, own = (
        {name: tensor for name, tensor in state.items() if name.split(".")[0] in TRAINABLE}
        for state in (origin.state, model.trainable_state())
    )
    optional = {name for name in given.keys() ^ own.keys() if name.startswith("heads.confidence.")}
    for state in (given, own):
        for name in optional & state.keys():
            del state[name]
    return given, own
