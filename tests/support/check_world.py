"""What check says of a config."""

from pathlib import Path
from typing import Any

import numpy as np

from simv0.checks.run import check
from simv0.config.schema import Config


class VisFeats:
    """12 windows with features of their own, and what the tests want to be wrong."""

    def __init__(self, split: str, wrong: dict[str, Any] | None = None, dv: dict[str, int] | None = None) -> None:
        self.wrong, self.dv = wrong or {}, (dv or {}).get(Path(split).stem, 6)

    def __len__(self) -> int:
        return 12

    def __getitem__(self, i: int) -> dict[str, Any]:
        feats = np.full((4, self.dv), i, np.float32)
        labels = {"risk_id": i % 4, "reason_id": 0, "action_id": 1}
        return {"vis_feats": feats, "telemetry": [0.5] * 8, **labels, **self.wrong}


def own(**kwargs: Any) -> dict[str, Any]:
    return {"dataset_class_path": "check_world.VisFeats", "dataset_kwargs": kwargs}


def problems_of(config: Config) -> list[str]:
    return [str(problem) for problem in check(config).problems]
