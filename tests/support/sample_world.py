"""One sample, and what is said of a wrong one."""

from typing import Any

import pytest
import torch

from simv0.data.contract import check_sample
from simv0.errors import DataError

F = 4


def refusal(value: Any, **options: Any) -> str:
    with pytest.raises(DataError) as error:
        check_sample(value, "train", 7, F=F, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


def sample(**changes: Any) -> dict[str, Any]:
    good = {
        "frames": torch.zeros(F, 3, 8, 8, dtype=torch.uint8),
        "telemetry": [0.0] * 8,
        "risk_id": 3,
        "reason_id": 0,
        "action_id": 5,
    }
    return {key: value for key, value in {**good, **changes}.items() if value is not None}
