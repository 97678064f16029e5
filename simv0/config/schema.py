"""The config, section by section: frozen, typed, with the rules between its fields. Imports no torch.

`docs/config.md` is generated from the field docstrings below; a test holds the two together.
"""

import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue, field_validator, model_validator
from pydantic_core import PydanticCustomError

from simv0.config.fields import NOfM, Workers


class Section(BaseModel):
    """What all sections share: unknown keys refused, no silent conversions, frozen."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )

    @field_validator("*")
    @classmethod
    def _is_a_name(cls, value: Any) -> Any:
        """Refuse empty text, and characters that no path or name can contain (NUL, line ends, lone surrogates)."""
        if isinstance(value, str) and not (value and value.isprintable()):
            raise PydanticCustomError("name", "Expected text without control characters, not empty")
        return value


class DataConfig(Section):
    """Where the windows come from."""

    dataset_class_path: str = "simv0.datasets.ManifestDataset"
    """Import path of the map-style dataset class, or of a function that makes one, called as
    `Class(split_path, **dataset_kwargs)`. This is the one place where a config names code: run only configs that you
    trust."""
    dataset_kwargs: dict[str, JsonValue] = {}
    """Keyword arguments for that class."""
    train_split_path: str
    """The training split; passed to the dataset class."""
    val_split_path: str
    """The validation split, which selects the best epoch; passed to the dataset class."""
    calibration_split_path: str | None = None
    """A third split, of recordings that are in neither of the others, which sets the temperatures and the alarm's
    threshold: the alarm's promise then rests on data that selected nothing else. Unset: val does both, and the alarm
    says so.
    """
    batch_size: int | None = Field(default=None, ge=1, le=1_000_000)
    """Windows per training step; unset: 64 on cached features, 8 on raw frames."""
    num_workers: Workers = "auto"
    """Processes that read and decode frames while others are encoded; 0 reads in the main process. `auto` measures how
    long a frame takes to read and to encode, and starts as many as keep pace with the encoder, at most one a core; in
    `cache-vis` on a CPU one a core, which read in turns with the encoder."""
    frame_spacing: float | None = Field(default=None, gt=0, le=3600)
    """Seconds between the frames of a window. The checkpoint keeps it, so that a robot's windows can be like those of
    training; unset: what the dataset says (`timestamps` of a manifest's videos, its `frame_spacing`), else unknown."""
    telemetry_norm: Literal["train", "none"] = "train"
    """`train` standardises each telemetry channel with the train split's mean and std; `none` for a dataset that does
    so already."""

    @property
    def splits(self) -> dict[str, str]:
        """Name -> path of every configured split, in order of use."""
        paths = {"train": self.train_split_path, "val": self.val_split_path, "calibration": self.calibration_split_path}
        return {name: path for name, path in paths.items() if path is not None}


class CacheConfig(Section):
    """The feature files that `simv0 cache-vis` makes and `simv0 train` reads."""

    dir: str = "runs/cache"
    """Folder of `train.h5` and `val.h5`, and of `calibration.h5` where there is such a split."""
    batch_size: int = Field(default=64, ge=1, le=65_536)
    """Frames per encoder call. Part of the plan: batches are padded to it, so that resuming changes no bit."""
    dtype: Literal["float16", "float32"] = "float16"
    """Type of the stored features."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Weights of the encoder: `auto` takes bf16 where the machine has bf16 matrix units, fp32 elsewhere."""
    decode: Literal["full", "scaled"] = "full"
    """`scaled` decodes a JPEG at the smallest of its own scales (1/2, 1/4, 1/8) that leaves no side below twice the
    encoder's: faster where both sides are four times the encoder's or more, but other pixels, by a little. Recorded
    with the features, and in the checkpoint. For manifests of pictures."""
    shard_windows: int | None = Field(default=None, ge=1, le=1_000_000)
    """Windows per shard, the unit of work that survives when a run is stopped; unset: a 64th of the split, between 64
    and 1024, or the size that an unfinished folder of shards was started with.
    """
    publish: Literal["file", "shards"] = "file"
    """Final form of a split: `file` copies the shards into one file, `<split>.h5`; `shards` leaves them in their
    folder, `<split>.h5.parts`, which every command reads too, so that the disk never holds a second copy.
    """
    in_memory: Literal["auto", "always", "never"] = "auto"
    """Whether training loads the features into RAM: `auto` does so if they take less than half of the free memory,
    counting one copy for each process on the machine.
    """


class ModelConfig(Section):
    """The two frozen networks and the shape of what is trained between them."""

    llm_name_or_path: str = "HuggingFaceTB/SmolLM2-135M"
    """Hub name or local folder of a decoder-only LLM, as transformers' `from_pretrained` takes it."""
    llm_revision: str | None = None
    """Branch, tag or commit on the hub."""
    trust_remote_code: bool = False
    """Let transformers run code from the LLM's repository. Only ever read from your own config."""
    vision_encoder_name: str = "ViT-B-32"
    """open_clip model name, or `local-dir:PATH` of a folder with `open_clip_config.json` and weights."""
    vision_pretrained: str | None = "laion2b_s34b_b79k"
    """open_clip's pretrained tag; `null` for `local-dir:` and `hf-hub:` names, which come with their weights."""
    vision_weights: str | None = None
    """A local file of weights, used instead of downloading those of the tag `vision_pretrained`; the tag still
    determines how images are preprocessed.
    """
    vision_resize_mode: Literal["squash", "longest", "shortest"] = "squash"
    """How a frame is resized to the encoder's square: `squash` keeps the whole view but distorts the aspect ratio,
    `longest` keeps the whole view and pads, `shortest` keeps the ratio and crops the sides.
    """
    use_cached_vis_feats: bool = True
    """Train on feature files (fast), or encode the frames again in every epoch."""
    dv: int | None = Field(default=None, ge=1, le=1_000_000)
    """Feature width; read from the encoder or the files. If given, it is checked."""
    d: int | None = Field(default=None, ge=1, le=1_000_000)
    """Embedding width of the LLM; read from the LLM. If given, it is checked."""
    F: int = Field(default=8, ge=1, le=4096)
    """Frames per window."""
    K: int = Field(default=4, ge=1, le=4096)
    """Visual tokens: the F frame features are averaged over K segments."""
    bos: bool | None = None
    """Put the LLM's own first token (BOS) before the prefix; unset: where the LLM has one. A pretrained LLM makes its
    first position an attention sink, which without a BOS swallows the first visual token (docs/design/recipe.md)."""
    confidence_head: bool = False
    """Also train a head that predicts how likely risk and action are both to be right."""

    @model_validator(mode="after")
    def _segments_fit(self) -> "ModelConfig":
        if self.K > self.F:
            raise ValueError(f"model.K is {self.K} but a window has only model.F = {self.F} frames; make K <= F")
        if self.vision_weights and not self.vision_pretrained:
            raise ValueError(
                "model.vision_weights is set without model.vision_pretrained; write the tag that the file was trained "
                "as, or for a folder with open_clip_config.json `vision_encoder_name: local-dir:PATH` alone"
            )
        if self.vision_pretrained and self.vision_encoder_name.startswith(("local-dir:", "hf-hub:")):
            raise ValueError(
                f"model.vision_pretrained is {self.vision_pretrained!r} but {self.vision_encoder_name.split(':')[0]}: "
                "names bring their own weights; write `vision_pretrained: null`"
            )
        return self


Module = Literal["projector", "telemetry_mlp", "task_token", "heads"]
LR_SCALE: dict[Module, float] = {"telemetry_mlp": 10.0, "task_token": 10.0}


class TrainingConfig(Section):
    """How the projector, the telemetry MLP, the task token and the heads are trained."""

    epochs: int = Field(default=10, ge=1, le=1_000_000)
    """Passes over the train split."""
    lr: float = Field(default=1e-3, gt=0, le=10)
    """Peak learning rate of AdamW, reached after 30 % of the steps; it rises and falls along a cosine."""
    lr_scale: dict[Module, Annotated[float, Field(gt=0, le=1000)]] = LR_SCALE
    """Factor on `lr` per module: the wide projector overfits, the others are small and slow (docs/design/recipe.md).
    A map that names some modules leaves the others as they are. Unset: `projector` 1.5 x windows / (dv + windows) of
    the train split; `heads` 640 / the LLM's hidden width, at most 10."""
    visual_dropout: float | None = Field(default=None, ge=0, lt=1)
    """Share of the training samples whose images are replaced by the average image, so that telemetry is learned too;
    in the rest, the same share of single features is hidden. Unset: dv / (dv + windows of the train split), since wide
    features of few windows are memorised (docs/design/recipe.md).
    """
    class_weights: Literal["none", "dataset", "balanced", "sqrt_balanced"] | None = None
    """Class weights in the loss: `dataset` uses the dataset's own, `balanced` gives every class the same total weight,
    `sqrt_balanced` goes halfway; unset: the dataset's own if it has any, else `sqrt_balanced`.
    """
    weight_decay: float = Field(default=0.01, ge=0, le=100)
    """AdamW's weight decay, for matrices; biases and the task token are not decayed."""
    grad_clip: float = Field(default=1.0, gt=0)
    """Maximum norm of the gradient over all trained weights."""
    device: str = "auto"
    """Where every command computes: `auto` (the GPU, also Apple's, where torch finds one, else the CPU), `cpu`, `cuda`,
    `cuda:N` or `mps`. Under torchrun `auto` and `cuda` give each process a GPU of its own. May differ on resume."""
    amp: bool = True
    """Store and run the frozen LLM in 16 bit where the hardware supports it; a CPU without AMX or AVX512-BF16, as in
    most laptops, and bf16 on a GPU older than Ampere fall back to fp32. A robot's CPU stores its weights, and those of
    the encoder's linear layers, in fp16 even then. The trained modules stay in fp32 either way.
    """
    amp_dtype: Literal["bf16", "fp16"] = "bf16"
    """fp16 needs CUDA and uses loss scaling; it is for GPUs older than Ampere, which lack bf16 units."""
    compile: Literal["auto", "on", "off"] = "auto"
    """torch.compile for the frozen LLM's blocks: about a minute, then faster steps; `auto` does so for long runs.
    On CUDA training also replays the LLM as CUDA graphs, unless this is `off`."""
    shard_llm: bool = False
    """Under torchrun: split the frozen LLM's weights over the processes (FSDP2), for an LLM larger than one GPU."""
    seed: int = Field(default=0, ge=0, lt=2**31)
    """Seed of the initial weights, the order of the samples and every random draw."""
    best_metric: Literal["composite", "risk_high_recall"] = "composite"
    """The metric that selects `best.pt`: `composite` is the harmonic mean of risk_high_recall, risk_macro_f1 and
    action_macro_f1. Recall alone is won by a model that always says "high"; ties go to macro_f1.
    """
    patience: int | None = Field(default=None, ge=1, le=1_000_000)
    """Stop after this many epochs without a new best; unset: never."""
    confidence_weight: float = Field(default=0.1, ge=0, le=1000)
    """Weight of the confidence head's loss."""
    checkpoint_every_steps: int | None = Field(default=None, ge=1, le=1_000_000_000)
    """Steps between additional saves of last.pt within an epoch; unset: it is saved at the end of each epoch only."""
    init_from: str | None = None
    """A checkpoint of another robot, or a folder of `simv0 export`, around the same LLM and encoder, from which the
    trained modules start; unset: from random weights."""
    llm_control: bool = False
    """Then train the same again around a copy of the LLM with random weights, in `output_dir/llm_control`: `evaluate`
    says what pretraining is worth on this data. Takes as long again, and the disk space of the LLM."""
    keep_epochs: bool = False
    """Also keep last.pt as it was after each epoch, as `checkpoints/epoch_001.pt` and so on."""
    trackers: list[Literal["tensorboard", "wandb", "mlflow", "trackio"]] = []
    """Experiment trackers that receive the metrics too; each is an extra of that name. All stay on this machine unless
    their own variables say otherwise (`WANDB_MODE`, `MLFLOW_TRACKING_URI`, `TRACKIO_SPACE_ID`)."""
    tensorboard: bool = False
    """The older way to say `trackers: [tensorboard]`."""

    @field_validator("device")
    @classmethod
    def _a_device(cls, value: str) -> str:
        if not re.fullmatch(r"auto|cpu|cuda(:\d{1,3})?|mps", value):
            raise PydanticCustomError("device", "Expected auto, cpu, cuda, cuda:N or mps")
        return value

    @model_validator(mode="after")
    def _fits_together(self) -> "TrainingConfig":
        if self.shard_llm and self.compile == "on":
            raise ValueError("training.shard_llm and training.compile: on exclude each other; write compile: auto")
        if self.llm_control and self.init_from:
            raise ValueError(
                "training.llm_control and training.init_from exclude each other: weights that were trained around the "
                "LLM mean nothing to its randomised copy; write llm_control: false"
            )
        return self

    @field_validator("lr_scale")
    @classmethod
    def _others_keep_theirs(cls, value: dict[Module, float]) -> dict[Module, float]:
        return {**LR_SCALE, **value}


class EvaluationConfig(Section):
    """How a model is evaluated, and what its alarm must achieve."""

    batch_size: int = Field(default=256, ge=1, le=1_000_000)
    """Windows per evaluation step."""
    target_recall: float = Field(default=0.95, gt=0, lt=1)
    """Share of the "high" windows that the alarm must find on new data of the same kind; its threshold is the highest
    that keeps this."""
    confidence: float = Field(default=0.9, gt=0, lt=1)
    """How sure that promise is: of runs like this one, the share whose alarm keeps it."""
    max_false_alarm_rate: float = Field(default=0.05, gt=0, lt=1)
    """The recall that is left when at most this share of the other windows may raise the alarm is reported too."""
    confirm: NOfM = [2, 3]
    """[N, M]: a robot's alarm is raised when N of the last M windows reach the threshold. Recordings are replayed so,
    and `Stream` takes it from the checkpoint."""
    release: float = Field(default=0.8, gt=0, le=1)
    """And taken back when too few of them to raise it reach this share of the threshold."""


class OutputConfig(Section):
    """Where a run is written."""

    output_dir: str = "runs/sim_v0"
    """Folder of one run: checkpoints, metrics, logs, export."""


class Config(Section):
    """The whole config; `configs/sim_v0.yaml` shows it with its defaults."""

    data: DataConfig
    cache: CacheConfig = CacheConfig()
    model: ModelConfig = ModelConfig()
    training: TrainingConfig = TrainingConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    output: OutputConfig = OutputConfig()

    @model_validator(mode="after")
    def _no_control_of_foreign_code(self) -> "Config":
        if self.training.llm_control and self.model.trust_remote_code:
            raise ValueError(
                "training.llm_control is set with model.trust_remote_code, but only an LLM of transformers' own "
                "families can be randomised; write llm_control: false"
            )
        return self

    @property
    def batch_size(self) -> int:
        """Windows per training step, the default filled in."""
        return self.data.batch_size or (64 if self.model.use_cached_vis_feats else 8)

    def feature_file(self, split: str) -> Path:
        """Where cache-vis puts the features of a split."""
        return Path(self.cache.dir) / f"{split}.h5"
