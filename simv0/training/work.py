"""What the epochs of a run work with, resolved once, before the first of them."""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from simv0.config.schema import Config
from simv0.data.spacing import warn_of_spacing
from simv0.model.build import build_model
from simv0.model.checkpoint import Checkpoint
from simv0.model.network import SimV0Model
from simv0.runtime.device import pick_device
from simv0.runtime.distributed import check_same, share_of
from simv0.training.origin import about_origin, check_origin
from simv0.training.recipe import class_weights, make_optimizer, visual_dropout
from simv0.training.splits import Batches, Split, check_pair, eval_batches, open_split, split_digest, train_batches
from simv0.vision.encoder import Encoder, load_encoder


@dataclass(frozen=True)
class Work:
    """What the epochs of a run work with.

    Attributes:
        splits: by name, train first.
        digests: `split_digest` of each.
        scaler: loss scaling for fp16, else None.
        class_weights: head -> weight of each class; None where all weigh 1.
        batches: of train.
        judged_on: batches of the other splits.
        share: windows of a full batch that are this process's.
        origin: `about_origin` of the checkpoint that the run started from, if any.
    """

    config: Config
    device: torch.device
    splits: dict[str, Split]
    digests: dict[str, str]
    model: SimV0Model
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler | None
    class_weights: dict[str, Tensor] | None
    batches: Batches
    judged_on: dict[str, Batches]
    share: int
    origin: dict[str, Any] | None

    @property
    def encoder_identity(self) -> dict[str, Any] | None:
        """Of the encoder whose features are trained on; None where the dataset brings its own."""
        return encoder_identity(self.model.encoder, self.train)

    @property
    def train(self) -> Split:
        """The split that is trained on."""
        return self.splits["train"]

    @property
    def held_out_name(self) -> Literal["val", "calibration"]:
        """Of the split that temperatures and alarm come from."""
        return "calibration" if "calibration" in self.splits else "val"

    @property
    def held_out(self) -> Split:
        """That split."""
        return self.splits[self.held_out_name]

    @property
    def steps(self) -> int:
        """Of an epoch."""
        return -(-len(self.train.labels) // self.config.batch_size)


def encoder_identity(encoder: Encoder | None, train: Split) -> dict[str, Any] | None:
    """Of an encoder that encodes in every epoch, or of the one that made a split's features."""
    if train.identity is not None:
        return {key: value for key, value in train.identity.items() if key.startswith("vision_")}
    return None if encoder is None else encoder.identity


def open_work(config: Config, checkpoint: Checkpoint | None, origin: Checkpoint | None = None) -> Work:
    """Open the splits, load the frozen networks and put freshly seeded trainable modules around them.

    Args:
        config: the whole config.
        checkpoint: of a run to be resumed, whose encoder and prefix are those it was begun with.
        origin: what a new run starts from (`read_origin`).

    Raises:
        SimError: errors the user can fix.
    """
    device, raw = pick_device(config), not config.model.use_cached_vis_feats
    trained = None if checkpoint is None else checkpoint.meta.encoder
    encoder = load_encoder(config.model, config.cache.precision, device, trained, config.cache.decode) if raw else None
    splits = {name: open_split(config, name, encoder) for name in config.data.splits}
    train, *others = splits.values()
    for split in others:
        check_pair(config, (train.identity, split.identity), (train.dv, split.dv), split.name)
        warn_of_spacing(train.frame_spacing, split.frame_spacing, split.name)
    begun = checkpoint or (origin if config.model.bos is None else None)
    model = build_model(config, train.dv, encoder, device, None if begun is None else "bos" in begun.state)
    if origin is not None:
        check_origin(origin, str(config.training.init_from), model, encoder_identity(encoder, train))
    model.visual_dropout = visual_dropout(config.training, train)
    digests = {name: split_digest(split) for name, split in splits.items()}
    check_same(
        {
            "LLM": model.llm.identity,
            "type of the LLM (units for bf16)": str(model.llm.dtype),
            "vision encoder": None if encoder is None else encoder.identity,
            **{f"{name} split": digest for name, digest in digests.items()},
            "training": config.training,
            "data.batch_size": config.batch_size,
            "evaluation.batch_size": config.evaluation.batch_size,
        }
    )
    start, stop = share_of(config.batch_size)
    return Work(
        config,
        device,
        splits,
        digests,
        model,
        optimizer=make_optimizer(model, config.training, len(train.labels)),
        scaler=torch.amp.GradScaler(device.type) if model.llm.dtype is torch.float16 else None,
        class_weights=class_weights(config.training.class_weights, train, device),
        batches=train_batches(config, train),
        judged_on={split.name: eval_batches(config, split) for split in others},
        share=max(stop - start, 1),
        origin=about_origin(config, origin, checkpoint),
    )
