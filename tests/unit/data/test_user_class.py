"""The user's class, found by its import path, and what it says of its class weights."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_world import data

from simv0.data.class_weights import class_weights_of
from simv0.data.user_class import load_dataset
from simv0.errors import ConfigError, DataError
from simv0.labels import HEADS

USER_MODULE = """
class Windows:
    def __init__(self, split_path, size=1):
        self.split_path, self.size = split_path, size
    def __len__(self):
        return self.size
    def __getitem__(self, i):
        return {}
class NoLength:
    def __init__(self, split_path): pass
class Broken:
    def __init__(self, split_path):
        len(5)
"""


@pytest.fixture
def user_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "robot_windows.py").write_text(USER_MODULE)
    (tmp_path / "needs_more.py").write_text("import a_module_that_is_not_there\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in ("robot_windows", "needs_more"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return "robot_windows"


def test_the_users_class_is_built_with_its_split_and_arguments(user_module: str) -> None:
    dataset = load_dataset(data("robot_windows.Windows", size=3), "val")
    assert (dataset.split_path, len(dataset)) == ("/v", 3)


@pytest.mark.parametrize(
    ("path", "kwargs", "message"),
    [
        ("Windows", {}, "data.dataset_class_path: expected package.module.Class, found 'Windows'"),
        (
            "robot_windowz.Windows",
            {},
            "data.dataset_class_path: no module named 'robot_windowz'; install it",
        ),
        ("robot_windows.Window", {}, "data.dataset_class_path: robot_windows has no 'Window'"),
        ("robot_windows.Windows", {"sise": 1}, "data.dataset_kwargs: robot_windows.Windows: Windows.__init__() got an"),
    ],
)
def test_wrong_class_paths(user_module: str, path: str, kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        load_dataset(data(path, **kwargs), "train")
    assert str(error.value).startswith(message)


def test_bugs_in_the_users_code_keep_their_traceback(user_module: str) -> None:
    with pytest.raises(TypeError, match="object of type 'int' has no len"):
        load_dataset(data("robot_windows.Broken"), "train")
    with pytest.raises(ModuleNotFoundError, match="a_module_that_is_not_there"):
        load_dataset(data("needs_more.Windows"), "train")
    with pytest.raises(DataError, match=r"robot_windows.NoLength: a map-style dataset must define __len__"):
        load_dataset(data("robot_windows.NoLength"), "train")


def test_class_weights_are_checked() -> None:
    class Weighted:
        class_weights: Any = {"risk": [1, 1, 2, 4]}

    dataset = Weighted()
    for good in ([1, 1, 2, 4], (1.0, 1, 2, 4), np.array([1, 1, 2, 4]), torch.tensor([1, 1, 2, 4])):
        dataset.class_weights = {"risk": good}
        assert class_weights_of(dataset, HEADS) == {"risk": [1.0, 1.0, 2.0, 4.0]}
    assert class_weights_of(object(), HEADS) is None
    for weights, message in [
        ({"risc": [1]}, "class_weights: unknown head 'risc'; the heads are risk, reason, action"),
        ({"risk": [1, 2]}, "class_weights: risk: expected 4 floats, found 2"),
        ([1, 1, 2, 4], "class_weights: expected a dict of head -> floats, found list [1, 1, 2, 4]"),
        ({"risk": None}, "class_weights: risk: expected 4 floats, found None"),
        ({"risk": "1124"}, "class_weights: risk: expected 4 floats, found '1124'"),
        ({"risk": [1, [1, 2], 2, 4]}, "class_weights: risk: expected 4 floats, found [1, [1, 2], 2, 4]"),
        ({"risk": [1, None, 2, 4]}, "class_weights: risk: expected 4 floats, found [1, None, 2, 4]"),
        ({"risk": 2.0}, "class_weights: risk: expected 4 floats, found 2.0"),
        ({"risk": np.float64(2)}, "class_weights: risk: expected 4 floats, found np.float64(2.0)"),
        ({"risk": []}, "class_weights: risk: expected 4 floats, found 0"),
        ({"risk": [0, 0.0, 1e-50, 0]}, "class_weights: risk: all zero; nothing would be learned"),
        ({"risk": [1, 2, 3, 1e39]}, "class_weights: risk: expected finite floats >= 0, found [1.0, 2.0, 3.0, 1e+39]"),
        ({"risk": [1, 2, 3, -1]}, "class_weights: risk: expected finite floats >= 0, found [1.0, 2.0, 3.0, -1.0]"),
    ]:
        dataset.class_weights = weights
        with pytest.raises(DataError) as error:
            class_weights_of(dataset, HEADS)
        assert str(error.value) == message
