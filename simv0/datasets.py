"""A door that configs and feature files name: `simv0.datasets.ManifestDataset`."""

from simv0.data.images import load_image
from simv0.data.manifest import ManifestDataset, read_jsonl

__all__ = ["ManifestDataset", "load_image", "read_jsonl"]
