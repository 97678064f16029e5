"""SimV0Model: tensors in, logits out.

    vis_feats [B,F,dv] -> K segment means -> projector -> K visual tokens   |
    telemetry [B,8]    -> standardise -> MLP -----------> 1 telemetry token +-> frozen LLM -> last position -> heads
    learned task token ---------------------------------> 1 task token      |

Projector, MLP, task token and heads train. The encoder and the LLM never do, but the LLM stays in the graph: gradients
pass through it to the projector.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as nnf
from jaxtyping import Float
from torch import Tensor, nn

from simv0.data.contract import Batch
from simv0.errors import ModelError
from simv0.labels import HEADS, TELEMETRY
from simv0.llm.frozen import FrozenLLM
from simv0.model.predictions import predictions
from simv0.vision.encoder import Encoder

TRAINABLE = ("projector", "telemetry_mlp", "task_token", "heads")
TELEMETRY_HIDDEN = 128
START_RMS = 3.0
"""RMS of a trained token at the start, beside the LLM's own tokens' 1. To a pretrained LLM, vectors of any direction
with the RMS of its own tokens are attention sinks at times, and a run with such a token hardly learns; from twice that
on none was seen (docs/design/recipe.md)."""
PICTURE_SHARE = 0.1
"""The picture's part of a visual token at the start, beside the learned token."""


class SimV0Model(nn.Module):
    """The trainable modules around a frozen LLM (and, for frames, a frozen encoder).

    Args:
        llm: the frozen decoder.
        dv: width of the vision features.
        F: frames per window.
        K: visual tokens, at most F.
        bos: put the LLM's own first token before the prefix, if it has one.
        confidence_head: also say how likely risk and action are both right.
        encoder: needed only to take `frames`.
        start_rms: RMS of a trained token at the start, in units of `llm.embed_rms`.

    Raises:
        ModelError: K > F, or an encoder whose features are not `dv` wide.
    """

    segments: Tensor
    telemetry_mean: Tensor
    telemetry_std: Tensor
    feats_mean: Tensor
    feats_std: Tensor
    bos: Tensor | None

    def __init__(
        self,
        llm: FrozenLLM,
        *,
        dv: int,
        F: int,
        K: int,
        bos: bool = True,
        confidence_head: bool = False,
        encoder: Encoder | None = None,
        start_rms: float = START_RMS,
    ) -> None:
        super().__init__()
        if not 1 <= K <= F:
            raise ModelError(f"model.K: expected 1..F ({F}), found {K}")
        if encoder is not None and encoder.dv != dv:
            raise ModelError(f"model.dv: expected {dv}, but the encoder gives features of width {encoder.dv}")
        self.llm, self.encoder = llm, encoder
        self.dv, self.F, self.K = dv, F, K
        self.visual_dropout = 0.0  # of training alone: `build.visual_dropout`
        self.register_buffer("segments", segment_means(F, K), persistent=False)
        # Standardisation with the train split's stats; identities until `set_stats`.
        self.register_buffer("telemetry_mean", torch.zeros(len(TELEMETRY)))
        self.register_buffer("telemetry_std", torch.ones(len(TELEMETRY)))
        self.register_buffer("feats_mean", torch.zeros(dv))
        self.register_buffer("feats_std", torch.ones(dv))
        # In the checkpoint, like all else in the prefix: whatever config.json will say then.
        self.register_buffer("bos", llm.bos.clone() if bos and llm.bos is not None else None)

        # Tokens are scaled by `llm.embed_rms`, the RMS of the LLM's own, so that a learning rate means the same beside
        # any LLM.
        # A visual token starts as one learned token (the bias) with a little of the picture in it: an LLM normalises
        # what it reads, so a random projection alone would be noise as loud as the telemetry, and would be memorised.
        self.projector = nn.Linear(dv, llm.d)
        nn.init.normal_(self.projector.weight, std=start_rms * PICTURE_SHARE * dv**-0.5)
        nn.init.normal_(self.projector.bias, std=start_rms)
        last = nn.Linear(TELEMETRY_HIDDEN, llm.d)
        first = nn.Linear(len(TELEMETRY), TELEMETRY_HIDDEN)
        nn.init.normal_(first.weight, std=len(TELEMETRY) ** -0.5)
        nn.init.zeros_(first.bias)
        # E[gelu(z)^2] = 0.425 for z ~ N(0,1)
        nn.init.normal_(last.weight, std=start_rms * (0.425 * TELEMETRY_HIDDEN) ** -0.5)
        nn.init.zeros_(last.bias)
        self.telemetry_mlp = nn.Sequential(first, nn.GELU(), last)
        self.task_token = nn.Parameter(start_rms * torch.randn(llm.d))
        self.heads = nn.ModuleDict({head: nn.Linear(llm.hidden_size, len(names)) for head, names in HEADS.items()})
        if confidence_head:
            self.heads["confidence"] = nn.Linear(llm.hidden_size, 1)
        for head in self.heads.values():
            assert isinstance(head, nn.Linear)
            nn.init.normal_(head.weight, std=0.1 * llm.hidden_size**-0.5)  # nearly uniform predictions at first
            nn.init.zeros_(head.bias)
        self.train()

    def train(self, mode: bool = True) -> "SimV0Model":
        """Switch the trainable modules; the frozen networks stay in eval mode by themselves."""
        super().train(mode)
        return self

    def set_stats(
        self,
        telemetry: tuple[Float[Tensor, "8"], Float[Tensor, "8"]] | None,
        feats: tuple[Float[Tensor, " dv"], Float[Tensor, " dv"]] | None,
    ) -> None:
        """Set the train split's (mean, std) of the telemetry channels and of the features; None keeps the old ones."""
        if telemetry is not None:
            self.telemetry_mean.copy_(telemetry[0])
            self.telemetry_std.copy_(telemetry[1])
        if feats is not None:
            self.feats_mean.copy_(feats[0])
            self.feats_std.copy_(feats[1])

    @property
    def tokens(self) -> int:
        """Vectors that the LLM reads: K visual, one telemetry, one task token, and the BOS before them."""
        return self.K + 2 + (self.bos is not None)

    def encode(self, batch: Batch) -> Float[Tensor, "B F dv"]:
        """The batch's features: as they come, or from its frames.

        Raises:
            ModelError: frames without an encoder.
        """
        if "vis_feats" in batch:
            return batch["vis_feats"].float()
        if self.encoder is None:
            raise ModelError("the batch holds frames, but this model was built without an encoder")
        frames = batch["frames"]
        return self.encoder(frames.flatten(0, 1)).unflatten(0, frames.shape[:2])  # type: ignore[no-any-return]

    def encoded(self, batch: Batch) -> Batch:
        """The batch with its features in place of frames."""
        rest: Any = {key: value for key, value in batch.items() if key != "frames"}
        return rest | {"vis_feats": self.encode(batch)}  # type: ignore[no-any-return]

    def prefix(
        self,
        vis_feats: Float[Tensor, "B F dv"],
        telemetry: Float[Tensor, "B 8"],
        share: tuple[int, int, int] | None = None,
    ) -> Float[Tensor, "B {self.tokens} d"]:
        """The vectors that the LLM reads (see `tokens`). `share`: see `contract.Batch`."""
        means = torch.einsum("kf,bfv->bkv", self.segments, vis_feats)
        visual = self.projector(self._hide((means - self.feats_mean) / self.feats_std, share))
        measured = self.telemetry_mlp((telemetry - self.telemetry_mean) / self.telemetry_std)
        task = self.task_token.expand(len(visual), 1, -1)
        tokens: Tensor = torch.cat([visual, measured.unsqueeze(1), task], 1) * self.llm.embed_rms
        if self.bos is None:
            return tokens
        return torch.cat([self.bos.expand(len(tokens), 1, -1), tokens], 1)

    def _hide(
        self, feats: Float[Tensor, "B K dv"], share: tuple[int, int, int] | None = None
    ) -> Float[Tensor, "B K dv"]:
        """In training, hide a share `visual_dropout` of the samples' pictures, and as large a share of the features of
        the others: else wide features are memorised before the eight numbers of the telemetry are understood. 0 is the
        average picture.

        Drawn for the whole batch, of which this may be a share: how many processes there are changes nothing.
        """
        if not (self.training and self.visual_dropout):
            return feats
        start, _, total = share or (0, len(feats), len(feats))
        rows = slice(start, start + len(feats))
        shown = torch.rand(total, 1, 1) >= self.visual_dropout  # drawn on the CPU: the same on every device
        kept = nnf.dropout(feats.new_ones(total, *feats.shape[1:]), self.visual_dropout)
        return feats * shown[rows].to(feats.device) * kept[rows]

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """`vis_feats` [B,F,dv] or `frames` [B,F,3,H,W], and raw `telemetry` [B,8] -> logits.

        Returns:
            `risk_logits` [B,4], `reason_logits` [B,4], `action_logits` [B,6], and `confidence_logits` [B] if built with
            the confidence head, all float32.
        """
        hidden = self.llm(self.prefix(self.encode(batch), batch["telemetry"], batch.get("share")), self.bos)
        # LLMs end at very different scales (final norm weights of 0.1 to 10): the heads see mean 0 and variance 1.
        hidden = nnf.layer_norm(hidden, hidden.shape[-1:])
        logits = {f"{head}_logits": self.heads[head](hidden) for head in HEADS}
        if "confidence" in self.heads:
            # Detached: whether the model is right must not change what it says.
            logits["confidence_logits"] = self.heads["confidence"](hidden.detach()).squeeze(-1)
        return logits

    @torch.no_grad()
    def predict_json(
        self,
        batch: Batch,
        alarm_threshold: float | None = None,
        temperatures: Mapping[str, float] | None = None,
    ) -> list[dict[str, Any]]:
        """Predictions as plain values, one dict a sample: `sample_id`, the names under `risk`, `reason` and `action`,
        `probs` of every class (of logits divided by the head's temperature), `alarm` (P(high) >= threshold, of this
        window alone; None without one), `confidence` (None without its head), `unlike` and `distance`
        (None: `Predictor` knows them).
        """
        training = self.training
        self.eval()
        logits = self(batch)
        self.train(training)
        found = predictions(logits, batch["sample_id"], alarm_threshold, temperatures)
        return [prediction.as_json() for prediction in found]

    def trainable_parameters(self) -> dict[str, int]:
        """Trained module -> number of its parameters.

        Raises:
            ModelError: something else would train, or one of them would not.
        """
        counts = dict.fromkeys(TRAINABLE, 0)
        for name, parameter in self.named_parameters():
            module = name.split(".")[0]
            if parameter.requires_grad != (module in TRAINABLE):
                raise ModelError(f"{name}: {'is frozen but must train' if module in TRAINABLE else 'must stay frozen'}")
            if parameter.requires_grad:
                counts[module] += parameter.numel()
        return counts

    def trainable_state(self) -> dict[str, Tensor]:
        """What a checkpoint holds of the model: trained weights and the standardisation."""
        return {
            name: value for name, value in self.state_dict().items() if name.split(".")[0] not in ("llm", "encoder")
        }


def segment_means(F: int, K: int) -> Float[Tensor, "K F"]:
    """The matrix that averages F frames over K segments; segment k is frames floor(kF/K) up to floor((k+1)F/K)."""
    matrix = torch.zeros(K, F)
    for k in range(K):
        start, stop = math.floor(k * F / K), math.floor((k + 1) * F / K)
        matrix[k, start:stop] = 1 / (stop - start)
    return matrix
