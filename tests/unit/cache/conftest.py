"""One finished cache for all these tests."""

import pytest
from cache_world import make_world, train_file

from cache.pipeline import cache_vis
from simv0.config.schema import Config


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> tuple[Config, bytes]:
    """A config, its feature files made, and the bytes of train.h5."""
    config = make_world(tmp_path_factory.mktemp("world"))
    cache_vis(config)
    return config, train_file(config).read_bytes()
