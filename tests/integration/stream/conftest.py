"""One trained run for all tests of the stream."""

from pathlib import Path

import pytest
from stream_world import best, trained

from simv0.config.schema import Config
from simv0.predict import Predictor


@pytest.fixture(scope="session")
def run(models: Path, manifests: Path, tmp_path_factory: pytest.TempPathFactory) -> Config:
    return trained(models, manifests, tmp_path_factory.mktemp("stream"))


@pytest.fixture(scope="session")
def predictor(run: Config) -> Predictor:
    return Predictor.load(best(run))
