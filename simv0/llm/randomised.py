"""A copy of an LLM with weights drawn anew: what is left when pretraining is taken away."""

import shutil
from pathlib import Path
from typing import Any

import torch

import simv0.runtime.torchvision_fix  # noqa: F401
from simv0.disk.files import sync_folder, told_plainly
from simv0.errors import ModelError
from simv0.llm.load import quiet_transformers, read_llm_config, weight_files

BESIDE = (".json", ".txt", ".model", ".jinja")
"""Ends of the names of small files that lie beside the weights: the tokenizer's."""


def save_randomised(name: str, revision: str | None, folder: Path, seed: int) -> None:
    """Write a copy of an LLM as a transformers folder, its weights drawn as its config says for a new one.

    Killed at any moment, it leaves no `folder`, or a complete one.

    Raises:
        ModelError: an LLM that cannot be loaded, or one that brings its own code.
    """
    from transformers import AutoModel

    with quiet_transformers(progress=False):
        config = read_llm_config(name, revision)
        dtype = config.dtype or torch.float32  # `from_config` changes it
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            try:
                model: Any = AutoModel.from_config(config, dtype=torch.float32)  # type: ignore[no-untyped-call]
            except Exception as error:  # whatever a foreign config can make its builder raise
                short = " ".join(str(error).split())[:150]
                raise ModelError(f"{name}: cannot be built anew: {type(error).__name__}: {short}") from error
        model = model.to(dtype)
        unfinished = folder.with_name(folder.name + ".unfinished")
        with told_plainly(folder):
            shutil.rmtree(unfinished, ignore_errors=True)
            unfinished.mkdir(parents=True)
            for path in weight_files(name, revision)[0].parent.iterdir():
                if path.suffix in BESIDE and path.is_file() and not path.name.endswith(".index.json"):
                    shutil.copyfile(path, unfinished / path.name)
            model.save_pretrained(unfinished)
            sync_folder(unfinished)
            unfinished.rename(folder)
            sync_folder(folder.parent)
