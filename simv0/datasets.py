"""A door that configs and feature files name: `simv0.datasets.ManifestDataset`, `simv0.datasets.LeRobotWindows`."""

from simv0.data.images import load_image
from simv0.data.jsonl import read_jsonl
from simv0.data.lerobot.windows import LeRobotWindows
from simv0.data.manifest import ManifestDataset

__all__ = ["LeRobotWindows", "ManifestDataset", "load_image", "read_jsonl"]
