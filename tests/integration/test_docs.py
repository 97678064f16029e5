"""Docs, configs and code agree."""

import importlib.util
import re
from pathlib import Path

import pytest

from simv0.config.load import load_config

ROOT = Path(__file__).parents[2]
spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
assert spec is not None
assert spec.loader is not None
generate = importlib.util.module_from_spec(spec)
spec.loader.exec_module(generate)


@pytest.mark.parametrize("name", generate.FILES)
def test_generated_files_are_up_to_date(name: str) -> None:
    assert (ROOT / name).read_text() == generate.FILES[name](), "run: python docs/generate.py"


def test_the_recommended_config_is_the_defaults(tmp_path: Path) -> None:
    bare = tmp_path / "bare.yaml"
    bare.write_text("data: {train_split_path: data/train.jsonl, val_split_path: data/val.jsonl}")
    assert load_config(ROOT / "configs/sim_v0.yaml") == load_config(bare)


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda path: path.name)
def test_every_recipe_is_a_config(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SIMV0_REAL", "/real")
    config = load_config(path)
    assert config.model.K <= config.model.F


def test_the_rover_recipe_is_the_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SIMV0_REAL", "/real")
    assert "training:" not in (ROOT / "configs/rover.yaml").read_text()


def test_readme_names_every_room_and_no_other() -> None:
    tree = re.search(r"```\n(simv0/  labels.py.*?)cache/  ", (ROOT / "README.md").read_text(), re.S)
    assert tree
    rooms = {path.parent.name for path in (ROOT / "simv0").glob("*/__init__.py")}
    assert re.findall(r"^ {8}(\w+)/ ", tree[1], re.M) == sorted(rooms, key=lambda room: tree[1].index(f" {room}/"))
    files = {path.name for path in (ROOT / "simv0").glob("*.py")} - {"__init__.py"}
    assert set(re.findall(r"\b(\w+\.py)\b", tree[1])) == files


def test_links_in_docs_lead_somewhere() -> None:
    for page in [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\((?!http|#)([^)#]+)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"
