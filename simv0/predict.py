"""From a checkpoint to predictions: `Predictor` for frames in memory, `load_model` for everything that holds a .pt."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Num
from torch import Tensor

from simv0.alarm.unlike import NOTHING_KEPT
from simv0.arguments import require
from simv0.config.load import build_config, known_keys
from simv0.config.schema import Config
from simv0.cpu_step.prepare import prepare_encoder, prepare_llm
from simv0.data.contract import Batch, check_sample, collate, to_device
from simv0.disk.files import DIGESTS
from simv0.errors import CheckpointError, shown
from simv0.model.build import build_model
from simv0.model.checkpoint import Checkpoint, check_frozen, load_checkpoint, load_state
from simv0.model.exported import CHECKED
from simv0.model.network import SimV0Model
from simv0.model.predictions import Prediction, distances_of, predictions
from simv0.runtime.device import has_bf16_units, pick_device
from simv0.runtime.hub import pretrained_folder
from simv0.runtime.threads import check_threads, limited_to, tell_of_waiting
from simv0.vision.encoder import Encoder, load_encoder

log = logging.getLogger("simv0")


class Predictor:
    """A checkpoint with its frozen networks, ready to judge windows; the model passed in cannot be trained afterwards.

    Args:
        model: from `load_model`.
        checkpoint: its checkpoint.
        amp: whether a CPU may hold the frozen weights in 16 bit (`training.amp`), even where it computes in fp32.
        threads: of the CPU, to predict with; by default as many as torch has.

    >>> predictor = Predictor.load("runs/sim_v0/checkpoints/best.pt")
    >>> predictor.predict(frames, telemetry)["risk"]
    'none'
    """

    def __init__(self, model: SimV0Model, checkpoint: Checkpoint, *, amp: bool, threads: int | None = None) -> None:
        loads = f"; load it with Predictor.load({str(model)!r})" if isinstance(model, (str, Path)) else ""
        require(isinstance(model, SimV0Model), "model", "a SimV0Model", model, loads)
        require(isinstance(checkpoint, Checkpoint), "checkpoint", "a Checkpoint", checkpoint)
        check_threads(threads, "threads")
        tell_of_waiting()
        self.model, self.meta, self.threads = model.eval(), checkpoint.meta, threads or torch.get_num_threads()
        self.unlike = checkpoint.unlike
        if self.unlike is None:
            log.info(f"this checkpoint {NOTHING_KEPT}")
        with limited_to(self.threads):
            prepare_llm(model.llm, model.tokens, sixteen_bit=amp)
            if amp and model.encoder is not None:
                prepare_encoder(model.encoder)

    @classmethod
    def load(
        cls,
        ckpt: str | Path,
        config: Config | None = None,
        *,
        overrides: Sequence[str] = (),
        threads: int | None = None,
    ) -> "Predictor":
        """Load a checkpoint, and the LLM and the encoder that it was trained with.

        A checkpoint that was trained on a dataset's own `vis_feats` has no encoder: then `predict_features` it is.

        Args:
            ckpt: path of `best.pt`, of another checkpoint, or of a folder of `simv0 export`.
            config: where to find the frozen networks, if not where the checkpoint's own config says.
            overrides: `section.key=value` on the checkpoint's own config, where there is no `config`.
            threads: of the CPU, to predict with; by default as many as torch has.

        Raises:
            ConfigError: an argument of another type.
            CheckpointError: damaged, or beside another LLM or encoder than the one trained with.
            ModelError: the LLM or the encoder cannot be loaded.
        """
        require(isinstance(ckpt, (str, Path)), "ckpt", "the path of a checkpoint", ckpt)
        hint = f"; load it with load_config({str(config)!r})" if isinstance(config, (str, Path)) else ""
        require(config is None or isinstance(config, Config), "config", "a Config", config, hint)
        check_threads(threads, "threads")
        checkpoint = load_checkpoint(ckpt)
        config = config or config_of(checkpoint, ckpt, overrides)
        encoder = load_trained_encoder(checkpoint, ckpt, config) if checkpoint.meta.encoder is not None else None
        model = load_model(checkpoint, ckpt, config, encoder)
        return cls(model, checkpoint, amp=config.training.amp, threads=threads)

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        config: Config | None = None,
        *,
        revision: str | None = None,
        overrides: Sequence[str] = (),
        threads: int | None = None,
    ) -> "Predictor":
        """`load` what `simv0 export` wrote: bit for bit the predictor that the exported checkpoint gives.

        Nothing in it is executed: weights are safetensors, the rest is JSON, and all of it is checked against its
        digests. Of a repository nothing but these files is downloaded.

        Args:
            source: a folder, or "user/name" on the Hugging Face Hub.
            config: as for `load`.
            revision: branch, tag or commit on the hub; a commit stays what it is.
            overrides: as for `load`.
            threads: as for `load`.

        Raises:
            CheckpointError: naming the file that is missing, damaged or changed; and as `load`.
            ModelError: not on the hub, or neither cached nor reachable; and as `load`.
        """
        require(isinstance(source, (str, Path)), "source", "a folder or the name of a hub repository", source)
        folder = pretrained_folder(str(source), revision, (*CHECKED, DIGESTS))
        return cls.load(folder, config, overrides=overrides, threads=threads)

    def predict(
        self, frames: Num[Tensor, "F 3 H W"], telemetry: Float[Tensor, "8"], sample_id: str = "0"
    ) -> dict[str, Any]:
        """Judge one window: frames uint8 0..255 or float 0..1 of any size, raw telemetry.

        Returns:
            The JSON of `SimV0Model.predict_json`.

        Raises:
            DataError: frames or telemetry that break the sample contract.
            CheckpointError: it takes no frames.
        """
        self.check_takes_frames()
        return self._judge({"frames": frames, "telemetry": telemetry, "sample_id": sample_id})

    def predict_features(
        self, vis_feats: Float[Tensor, "F dv"], telemetry: Float[Tensor, "8"], sample_id: str = "0"
    ) -> dict[str, Any]:
        """Judge one window by its features: of the kind that the checkpoint was trained on, or of `encode`.

        Returns:
            The JSON of `SimV0Model.predict_json`.

        Raises:
            DataError: features or telemetry that break the sample contract.
        """
        return self._judge({"vis_feats": vis_feats, "telemetry": telemetry, "sample_id": sample_id})

    def _judge(self, sample: dict[str, Any]) -> dict[str, Any]:
        checked = check_sample(sample, "window", 0, F=self.meta.F, dv=self.meta.dv, labels=False)
        return self.predict_batch(collate([checked]))[0]

    def check_takes_frames(self) -> None:
        """Refuse frames where there is no encoder for them.

        Raises:
            CheckpointError: with what it takes instead.
        """
        if self.model.encoder is None:
            raise CheckpointError(
                f"this checkpoint was trained on a dataset's own vis_feats [{self.meta.F},{self.meta.dv}] and takes no "
                "frames: use Predictor.predict_features, or simv0 predict --config with the class that yields them"
            )

    @property
    def smallest(self) -> int | None:
        """How the pictures of training were decoded, for `load_image(path, smallest=...)`; None: in full."""
        return None if self.model.encoder is None else self.model.encoder.smallest

    def encode(self, frames: Num[Tensor, "N 3 H W"]) -> Float[Tensor, "N dv"]:
        """Features of frames, uint8 0..255 or float 0..1 of any size.

        Raises:
            CheckpointError: there is no encoder.
        """
        self.check_takes_frames()
        assert self.model.encoder is not None
        with limited_to(self.threads if self.model.encoder.wide else 1):
            feats: Tensor = self.model.encoder(frames)
        return feats

    def predict_batch(self, batch: Batch) -> list[dict[str, Any]]:
        """Judge a collated batch of checked samples."""
        return [prediction.as_json() for prediction in self.judge(batch)]

    def judge(self, batch: Batch) -> list[Prediction]:
        """`predict_batch` before it is JSON."""
        alarm = self.meta.alarm
        with limited_to(self.threads), torch.no_grad():
            batch = self.model.encoded(to_device(batch, self.model.task_token.device))
            logits, distances = self.model(batch), distances_of(batch, self.unlike)
        threshold, temperatures = (alarm.threshold, alarm.temperatures) if alarm else (None, None)
        return predictions(logits, batch["sample_id"], threshold, temperatures, distances)


def load_model(checkpoint: Checkpoint, path: str | Path, config: Config, encoder: Encoder | None = None) -> SimV0Model:
    """Build a checkpoint's model around its LLM, with `encoder` (from `load_trained_encoder`) if it is to take frames.

    Raises:
        CheckpointError: another LLM, or weights that do not fit.
        ModelError: the LLM cannot be loaded.
    """
    meta, device = checkpoint.meta, pick_device(config)
    weight = checkpoint.state.get("projector.weight")
    if weight is None or list(weight.shape) != [meta.d, meta.dv]:  # before anything of that size is made
        raise CheckpointError(f"{path}: its projector is not {meta.dv} -> {meta.d} as its metadata says")
    wanted = config.model.model_copy(
        update={"F": meta.F, "K": meta.K, "confidence_head": meta.confidence_head, "d": None, "dv": None}
    )
    model = build_model(
        config.model_copy(update={"model": wanted}), meta.dv, encoder, device, "bos" in checkpoint.state
    )
    check_frozen("LLM", meta.llm, model.llm.identity_like(meta.llm), path)
    load_state(model, checkpoint.state, path)
    return model.eval()


def load_trained_encoder(checkpoint: Checkpoint, path: str | Path, config: Config) -> Encoder:
    """The encoder at the precision and with the preprocessing that the checkpoint was trained with.

    Where the device has no units for bf16, bf16 weights compute in fp32.

    Raises:
        CheckpointError: it is not the encoder that the checkpoint was trained with.
    """
    trained = checkpoint.meta.encoder
    if trained is None:
        raise CheckpointError(
            f"{path}: was trained on a dataset's own vis_feats; without an encoder it takes no frames"
        )
    if trained.get("vision_precision") not in ("fp32", "bf16"):
        raise CheckpointError(f"{path}: does not record the precision of its features")
    device = pick_device(config)
    encoder = load_encoder(config.model, str(trained["vision_precision"]), device, trained)
    if not has_bf16_units(device):
        encoder.widen()
    check_frozen("vision encoder", trained, encoder.identity, path)
    return encoder


def check_features(checkpoint: Checkpoint, path: str | Path, identity: Mapping[str, Any], dv: int, F: int) -> None:
    """Refuse the features of a feature file that a checkpoint was not trained on.

    Raises:
        CheckpointError: of another encoder, width or number of frames.
    """
    meta = checkpoint.meta
    if meta.encoder is None:
        raise CheckpointError(
            f"{path}: was trained on a dataset's own vis_feats, not on features of "
            f"{identity.get('vision_encoder_name')}: give --config with the class that yields them"
        )
    present = {key: value for key, value in identity.items() if key.startswith("vision_")}
    check_frozen("vision encoder", meta.encoder, present, path)
    if dv != meta.dv:
        raise CheckpointError(f"{path}: was trained on features of width {meta.dv}, found {dv}")
    if F != meta.F:
        raise CheckpointError(f"{path}: takes {meta.F} frames a window, found {F}")


def config_of(checkpoint: Checkpoint, path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """The config inside a checkpoint, for its paths and names only: what it would import or run is reset.

    So is the recipe, and keys unknown to this simv0 are ignored: a checkpoint outlives them. `overrides` are
    the user's own words.

    Raises:
        ConfigError: it is not a config that this simv0 reads.
    """
    tree, unknown = known_keys(checkpoint.meta.config)
    if unknown:
        log.info(f"{path}: keys unknown to this simv0 are ignored: {shown(', '.join(unknown))}")
    tree["model"] = {**tree.get("model", {}), "trust_remote_code": False}
    tree["data"] = {
        **tree.get("data", {}),
        "dataset_class_path": "simv0.datasets.ManifestDataset",
        "dataset_kwargs": {},
    }
    kept = ("amp", "amp_dtype", "shard_llm")  # how the LLM is held
    tree["training"] = {key: value for key, value in tree.get("training", {}).items() if key in kept}
    if not torch.cuda.is_available():
        tree["training"].pop("amp_dtype", None)  # fp16 is of the GPU that trained
    return build_config(tree, f"{path} (the config inside)", environment=False, overrides=overrides)
