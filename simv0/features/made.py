"""The features that cache-vis has made of a split: where they lie, whether they are those that the config wants."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from simv0.config.schema import Config
from simv0.data.user_class import load_dataset, windows_in, yields_features
from simv0.errors import SimError
from simv0.features.dataset import CachedDataset
from simv0.features.identity import differing_features, refuse_differing
from simv0.features.shards import Parts, parts_of


def features_at(config: Config, name: str) -> Path | None:
    """The split's feature file, else its folder of shards; None where there is neither."""
    path = config.feature_file(name)
    return next((there for there in (path, parts_of(path).folder) if there.exists()), None)


def cached_features(config: Config, name: str, in_memory: Literal["auto", "always", "never"]) -> CachedDataset | None:
    """The features that cache-vis has made of a split; None where there are none, or only others' and the dataset
    brings its own.

    Raises:
        CacheError: unfinished, damaged, or of other data or another encoder.
    """
    path = features_at(config, name)
    plan = Parts(path).read_plan() if path is not None and path.is_dir() else None
    if path is None or (plan is not None and are_others(config, name, plan.identity, path)):
        return None
    cached = CachedDataset(path, in_memory)
    return None if are_others(config, name, cached.identity, path) else cached


def are_others(config: Config, name: str, stored: Mapping[str, Any], path: Path) -> bool:
    """Whether features are not those that a split wants, and it needs none, since its dataset brings its own.

    Raises:
        CacheError: they are not, and it does need them.
    """
    lines = differing_features(config, name, stored)
    if lines and brings_features(config, name):
        return True
    refuse_differing(lines, path)
    return False


def brings_features(config: Config, name: str) -> bool:
    """Whether the dataset is here and yields `vis_feats` itself."""
    try:
        dataset = load_dataset(config.data, name)
        windows_in(dataset, name)
    except SimError:
        return False
    return yields_features(dataset, name)
