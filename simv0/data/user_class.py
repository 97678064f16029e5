"""The user's dataset class: found, built, and called so that its draws repeat and its faults name their place."""

import hashlib
import importlib
import logging
import os
import random
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch.utils.data import IterableDataset

from simv0.config.schema import DataConfig
from simv0.data.wrapped import unwrapped
from simv0.errors import ConfigError, DataError, SimError

log = logging.getLogger("simv0")


def load_dataset(data: DataConfig, split: str) -> Any:
    """Build the user's dataset for `split` ("train", "val" or "calibration") from its import path.

    Raises:
        ConfigError: the path does not lead to a class, or the class refuses its arguments.
        DataError: the class lacks `__len__` or `__getitem__`, or can only be iterated over.
    """
    cls = import_class(data.dataset_class_path)
    split_path = data.splits[split]
    try:
        with calling(f"{data.dataset_class_path}, built for {split}"):
            dataset = cls(split_path, **data.dataset_kwargs)
    except TypeError as error:
        if error.__traceback__ is not None and error.__traceback__.tb_next is None:  # the call itself, not inside it
            raise ConfigError(f"data.dataset_kwargs: {data.dataset_class_path}: {error}") from None
        raise
    lacking = [method for method in ("__len__", "__getitem__") if not hasattr(dataset, method)]
    if isinstance(dataset, IterableDataset) or ("__getitem__" in lacking and hasattr(dataset, "__iter__")):
        raise DataError(
            f"data.dataset_class_path: {data.dataset_class_path}: a dataset that can only be iterated over "
            f"({type(dataset).__name__}), but windows are read by number; give a class with __len__ and __getitem__ "
            "that keeps list(...) of it, not decoded yet, or write its windows to files and a manifest"
        )
    if lacking:
        raise DataError(f"{data.dataset_class_path}: a map-style dataset must define {lacking[0]}")
    return unwrapped(dataset)


def import_class(dotted: str) -> Any:
    """`package.module.Class` -> the class. A module that is not installed is taken from the current folder.

    Raises:
        ConfigError: no such module or no such class; an import error inside the user's module keeps its traceback.
    """
    module_name, _, class_name = dotted.rpartition(".")
    if not module_name or not all(name.isidentifier() for name in dotted.split(".")):
        raise ConfigError(f"data.dataset_class_path: expected package.module.Class, found {dotted!r}")
    if module_name.partition(".")[0] != "simv0":
        _see_current_folder()
    try:
        with naming(f"data.dataset_class_path: import of {module_name}"):
            module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name and (module_name == error.name or module_name.startswith(error.name + ".")):
            hidden = _hides_a_file_here(module_name)
            raise ConfigError(
                f"data.dataset_class_path: no module named {error.name!r}; "
                + (hidden or "install it, or start simv0 from the folder it is in")
            ) from None
        raise
    hidden = _hides_a_file_here(module_name)
    if not hasattr(module, class_name):
        raise ConfigError(f"data.dataset_class_path: {module_name} has no {class_name!r}" + (hidden and f"; {hidden}"))
    if hidden:
        log.warning(f"data.dataset_class_path: {dotted}: {hidden}")
    return getattr(module, class_name)


def _see_current_folder() -> None:
    """Let imports find modules of the current folder, after all others, so that none can shadow an installed one.

    Spawned workers get this path too.
    """
    if "" not in sys.path and os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())


def _hides_a_file_here(module_name: str) -> str:
    """A warning if an installed module has the name of one in the current folder, else an empty string."""
    top = module_name.partition(".")[0]
    here = Path.cwd().resolve()
    named = here.joinpath(*module_name.split("."))
    ours = next((path for path in (named.with_suffix(".py"), named / "__init__.py") if path.is_file()), None)
    if top not in sys.modules or ours is None or here in file_of(sys.modules[top]).parents:
        return ""
    return f"{top} is {file_of(sys.modules[top])}, not {ours}: rename yours"


def file_of(module: ModuleType) -> Path:
    """Where a module was imported from; a package without `__init__.py` is its folder."""
    place = getattr(module, "__file__", None) or next(iter(getattr(module, "__path__", [])), f"built-in {module}")
    return Path(place).resolve()


def windows_in(dataset: Any, split: str) -> int:
    """The length of the user's dataset.

    Raises:
        DataError: it is empty.
    """
    with calling(f"{split}, __len__"):
        windows = len(dataset)
    if windows == 0:
        raise DataError(f"{split}: the split is empty")
    return windows


@contextmanager
def calling(where: str, *draw: object) -> Iterator[None]:
    """For a `with` block that calls the user's class: name the place of an exception, make random draws repeat.

    Args:
        where: such as `train[40]`.
        draw: what the draws shall depend on; without any they stay as they are.
    """
    with draws_kept() if draw else nullcontext(), naming(where):
        if draw:
            seed_draws(*draw)
        yield


@contextmanager
def naming(where: str) -> Iterator[None]:
    """Note `where` on an exception that is not ours; the traceback, also a worker's, ends with it."""
    try:
        yield
    except SimError:
        raise
    except Exception as error:
        error.add_note(f"in {where}")
        raise


def of_user(error: Exception) -> bool:
    """Whether an exception comes from the user's class: `naming` has noted where."""
    return any(note.startswith("in ") for note in getattr(error, "__notes__", []))


_draws = threading.local()
"""`kept`: whether this thread is within `draws_kept`."""


@contextmanager
def draws_kept() -> Iterator[None]:
    """Restore the global generators of torch (CPU), numpy and random, so that a step's draws are unaffected.

    That takes some 60 us, so it is done once a batch: a nested `draws_kept` does nothing.
    """
    if getattr(_draws, "kept", False):
        yield
        return
    _draws.kept = True
    states = torch.default_generator.get_state(), np.random.get_state(legacy=False), random.getstate()
    try:
        yield
    finally:
        torch.default_generator.set_state(states[0])
        np.random.set_state(states[1])
        random.setstate(states[2])
        _draws.kept = False


def seed_draws(*draw: object) -> None:
    """Seed the global generators of torch (CPU), numpy and random by a digest of `draw`."""
    digest = hashlib.blake2b(repr(draw).encode(), digest_size=8).digest()
    seed = int.from_bytes(digest, "little")
    torch.default_generator.manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)


def yields_features(dataset: Any, name: str) -> bool:
    """Whether the first sample brings `vis_feats`; a dataset with frames of their own names does not."""
    if hasattr(dataset, "load_frame"):
        return False
    with calling(f"{name}[0]", 0, 0, 0):
        first = dataset[0]
    return isinstance(first, Mapping) and "vis_feats" in first
