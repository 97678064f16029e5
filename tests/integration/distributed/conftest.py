"""A run for several processes, and the same run of one."""

from pathlib import Path
from typing import Any

import pytest
from small_world import MakeConfig
from small_world import make_config as config_over

from simv0.config.schema import Config
from simv0.training.fit import fit
from simv0.training.rundir import RunDir


@pytest.fixture(scope="session")
def uneven(features: Path) -> dict[str, dict[str, Any]]:
    """40 windows in batches of 13, so that the last batch is one window: most processes have none of it."""
    return {
        "cache": {"dir": str(features)},
        "data": {"batch_size": 13},
        "training": {"checkpoint_every_steps": 1, "class_weights": "balanced"},
        "model": {"confidence_head": True},
        "evaluation": {"batch_size": 7},
    }


@pytest.fixture
def config(make_config: MakeConfig, uneven: dict[str, dict[str, Any]]) -> Config:
    return make_config(**uneven)


@pytest.fixture(scope="session")
def alone(
    models: Path, manifests: Path, uneven: dict[str, dict[str, Any]], tmp_path_factory: pytest.TempPathFactory
) -> RunDir:
    """The run of one process; to be read only."""
    return fit(config_over(models, manifests, tmp_path_factory.mktemp("alone"), **uneven))
