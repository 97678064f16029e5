"""Logits as predictions."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float
from torch import Tensor

from simv0.alarm.unlike import Unlike
from simv0.data.contract import Batch
from simv0.labels import HEADS, HIGH, RISKS
from simv0.runtime.device import countable


@dataclass(frozen=True)
class Prediction:
    """What the model says of one window.

    Attributes:
        probs: head -> class -> probability.
        alarm: P(high) >= the threshold, of this window alone; None without one.
        confidence: None without its head.
        distance: from the windows of training, over the limits; None where the checkpoint keeps no summary of them.
    """

    sample_id: str
    probs: dict[str, dict[str, float]]
    alarm: bool | None
    confidence: float | None
    distance: dict[str, float] | None

    def choice(self, head: str) -> str:
        """The most probable class."""
        probs = self.probs[head]
        return max(probs, key=probs.__getitem__)

    @property
    def p_high(self) -> float:
        """Of the risk."""
        return self.probs["risk"][RISKS[HIGH]]

    @property
    def unlike(self) -> bool | None:
        """Whether the window is unlike those of training."""
        return None if self.distance is None else max(self.distance.values()) > 1

    def as_json(self) -> dict[str, Any]:
        """What users get, as `SimV0Model.predict_json` describes it."""
        return {
            "sample_id": self.sample_id,
            **{head: self.choice(head) for head in HEADS},
            "probs": self.probs,
            "alarm": self.alarm,
            "confidence": self.confidence,
            "unlike": self.unlike,
            "distance": self.distance,
        }


def predictions(
    logits: Mapping[str, Tensor],
    sample_ids: list[str],
    alarm_threshold: float | None = None,
    temperatures: Mapping[str, float] | None = None,
    distances: Mapping[str, Float[np.ndarray, " B"]] | None = None,
) -> list[Prediction]:
    """Logits as predictions."""
    # float64, as `alarm.choose_alarm` computes: a window must not change sides of the threshold by rounding.
    scaled = {
        head: countable(logits[f"{head}_logits"]).double() / (temperatures or {}).get(head, 1.0) for head in HEADS
    }
    probs = {head: scaled[head].softmax(-1).tolist() for head in HEADS}
    confidence = logits["confidence_logits"].sigmoid().tolist() if "confidence_logits" in logits else None
    found = []
    for i, sample_id in enumerate(sample_ids):
        own = {head: dict(zip(names, probs[head][i], strict=True)) for head, names in HEADS.items()}
        alarm = None if alarm_threshold is None else own["risk"][RISKS[HIGH]] >= alarm_threshold
        far = None if distances is None else {name: float(values[i]) for name, values in distances.items()}
        found.append(Prediction(sample_id, own, alarm, None if confidence is None else confidence[i], far))
    return found


def distances_of(batch: Batch, unlike: Unlike | None) -> dict[str, Float[np.ndarray, " B"]] | None:
    """How far windows of features are from those of training; None where the checkpoint keeps no summary of them."""
    return None if unlike is None else unlike.distances(batch["vis_feats"], batch["telemetry"])._asdict()
