"""States of a stream."""

from typing import Any

from simv0.labels import HEADS
from simv0.stream import State


def state(risk: str = "high", action: str = "stop", **changes: Any) -> State:
    probs = {head: dict.fromkeys(names, 0.1) for head, names in HEADS.items()}
    probs["risk"][risk] = 0.7
    prediction = {"sample_id": "0", "risk": risk, "reason": "human", "action": action, "probs": probs}
    fields: dict[str, Any] = {
        "outcome": "judged", "problem": None, "risk": risk, "unknown": None, "prediction": prediction,
        "alarm": False, "age": 0.0,
    }  # fmt: skip
    return State(**{**fields, **changes})
