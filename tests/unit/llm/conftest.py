"""Saved models that the tests of the LLM share."""

from pathlib import Path

import pytest
import transformers as tf
from llm_families import FAMILIES, shaken


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One saved CausalLM of every family."""
    folders = {}
    for family, config in FAMILIES.items():
        folders[family] = tmp_path_factory.mktemp("llm") / family
        shaken(tf.AutoModelForCausalLM.from_config(config)).save_pretrained(folders[family])
    return folders
