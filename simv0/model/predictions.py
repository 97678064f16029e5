"""Logits as predictions in plain values, and how far their windows are from those of training."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from simv0.alarm.unlike import Unlike
from simv0.data.contract import Batch
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
        row["unlike"] = row["distance"] = None
        rows.append(row)
    return rows


def note_distances(rows: list[dict[str, Any]], unlike: Unlike | None, batch: Batch) -> None:
    """Say in the predictions of a batch of features which windows are `unlike` the training data, and their `distance`.

    Both stay None where the checkpoint keeps no summary.
    """
    if unlike is None:
        return
    distances = unlike.distances(batch["vis_feats"], batch["telemetry"])
    for i, row in enumerate(rows):
        row["distance"] = {name: float(values[i]) for name, values in distances._asdict().items()}
        row["unlike"] = max(row["distance"].values()) > 1
