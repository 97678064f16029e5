"""Logits as predictions in plain values."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from simv0.labels import HEADS


def predictions(
    logits: dict[str, Tensor],
    sample_ids: list[str],
    alarm_threshold: float | None = None,
    temperatures: Mapping[str, float] | None = None,
) -> list[dict[str, Any]]:
    """Logits as the JSON that `SimV0Model.predict_json` describes."""
    # float64, as `alarm.choose_alarm` computes: a window must not change sides of the threshold by rounding.
    scaled = {head: logits[f"{head}_logits"].double() / (temperatures or {}).get(head, 1.0) for head in HEADS}
    probs = {head: scaled[head].softmax(-1).tolist() for head in HEADS}
    confidence = logits["confidence_logits"].sigmoid().tolist() if "confidence_logits" in logits else None
    rows = []
    for i, sample_id in enumerate(sample_ids):
        row: dict[str, Any] = {"sample_id": sample_id}
        for head, names in HEADS.items():
            row[head] = names[max(range(len(names)), key=probs[head][i].__getitem__)]
        row["probs"] = {head: dict(zip(names, probs[head][i], strict=True)) for head, names in HEADS.items()}
        row["alarm"] = None if alarm_threshold is None else row["probs"]["risk"]["high"] >= alarm_threshold
        row["confidence"] = None if confidence is None else confidence[i]
        rows.append(row)
    return rows
