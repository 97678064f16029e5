"""The config: defaults, every kind of mistake with its text, environment, paths, YAML's traps."""

import math
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simv0.config.load import all_keys, build_config, dump_config, load_config
from simv0.config.schema import Config
from simv0.config.yaml import dump_yaml, parse_yaml
from simv0.errors import ConfigError

DATA = {"data": {"train_split_path": "/t.jsonl", "val_split_path": "/v.jsonl"}}


def refusal(tree: dict[str, Any]) -> str:
    with pytest.raises(ConfigError) as error:
        build_config({**DATA, **tree}, "c.yaml")
    return str(error.value)


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"training": {"lrr": 1}}, "c.yaml: training.lrr: unknown key; did you mean training.lr?"),
        ({"training": {"dir": "x"}}, "c.yaml: training.dir: unknown key; did you mean cache.dir?"),
        ({"output": {"learning_rat": 1}}, "c.yaml: output.learning_rat: unknown key; known here: output_dir"),
        (
            {"training": {"lr_scale": {"heads": -5}}},
            "c.yaml: training.lr_scale.heads: input should be greater than 0, found -5",
        ),
        (
            {"training": {"lr_scale": {"projektor": 1}}},
            "c.yaml: training.lr_scale.projektor: expected 'projector', 'telemetry_mlp', 'task_token' or 'heads', "
            "found 'projektor'",
        ),
        ({"trainig": {}}, "c.yaml: trainig: unknown key; did you mean training?"),
        ({"training": {"amp": "no"}}, "c.yaml: training.amp: expected true or false, found 'no'"),
        ({"training": {"lr": "fast"}}, "c.yaml: training.lr: input should be a valid number, found 'fast'"),
        ({"training": {"epochs": 0}}, "c.yaml: training.epochs: input should be greater than or equal to 1, found 0"),
        ({"training": None}, "c.yaml: training: expected a section with keys, found None"),
        (
            {"output": {"output_dir": "~a\0b"}},
            "c.yaml: output.output_dir: expected text without control characters, not empty, found '~a\\x00b'",
        ),
        (
            {"output": {"output_dir": ""}},
            "c.yaml: output.output_dir: expected text without control characters, not empty, found ''",
        ),
        (
            {"model": {"vision_resize_mode": "crop"}},
            "c.yaml: model.vision_resize_mode: expected 'squash', 'longest' or 'shortest', found 'crop'",
        ),
        (
            {"evaluation": {"confirm": [3, 2]}},
            "c.yaml: evaluation.confirm: expected [N, M] with 1 <= N <= M, found [3, 2]",
        ),
        (
            {"model": {"K": 9}},
            "c.yaml: model.K is 9 but a window has only model.F = 8 frames; make K <= F",
        ),
        (
            {"model": {"vision_encoder_name": "local-dir:/m"}},
            "c.yaml: model.vision_pretrained is 'laion2b_s34b_b79k' but local-dir: names bring their own weights; "
            "write `vision_pretrained: null`",
        ),
        (
            {"cache": {"dir": "${NOT_SET_ANYWHERE}/x"}},
            "c.yaml: cache.dir: the environment variable NOT_SET_ANYWHERE is not set; set it or write the path",
        ),
    ],
)
def test_each_mistake_names_its_key_and_the_way_out(tree: dict[str, Any], message: str) -> None:
    assert refusal(tree) == message


def test_lr_scale_of_one_module_leaves_the_others() -> None:
    default = build_config(DATA, "c").training.lr_scale
    given = build_config({**DATA, "training": {"lr_scale": {"heads": 2}}}, "c").training.lr_scale
    assert given == {**default, "heads": 2}


def test_several_mistakes_are_told_at_once() -> None:
    with pytest.raises(ConfigError) as error:
        build_config({"data": {"train_split_path": "x"}, "training": {"lrr": 1, "seed": -1}}, "c.yaml")
    assert str(error.value).splitlines() == [
        "c.yaml: data.val_split_path: missing; it has no default",
        "c.yaml: training.seed: input should be greater than or equal to 0, found -1",
        "c.yaml: training.lrr: unknown key; did you mean training.lr?",
    ]


def test_paths_become_absolute_and_hub_names_do_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PLACE", "/somewhere")
    (tmp_path / "llm").mkdir()
    data = {"train_split_path": "a.jsonl", "val_split_path": "${PLACE}/b.jsonl"}
    config = build_config({"data": data, "model": {"llm_name_or_path": "llm"}}, "c")
    assert config.data.train_split_path == str(tmp_path / "a.jsonl")
    assert config.data.val_split_path == "/somewhere/b.jsonl"
    assert config.model.llm_name_or_path == str(tmp_path / "llm")
    assert config.cache.dir == str(tmp_path / "runs/cache")
    assert build_config(DATA, "c").model.llm_name_or_path == "HuggingFaceTB/SmolLM2-135M"
    local = {"vision_encoder_name": "local-dir:tower", "vision_pretrained": None}
    assert build_config({**DATA, "model": local}, "c").model.vision_encoder_name == f"local-dir:{tmp_path}/tower"


def test_overrides_reach_their_key_and_are_typed(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(dump_yaml(DATA))
    config = load_config(path, ["training.lr=1e-4", "model.confidence_head=true", "data.dataset_kwargs.size=[4, 2]"])
    assert config.training.lr == 1e-4
    assert config.model.confidence_head is True
    assert config.data.dataset_kwargs == {"size": [4, 2]}
    with pytest.raises(ConfigError, match=r"^--set lr=1: expected section.key=value, for example"):
        load_config(path, ["lr=1"])
    with pytest.raises(ConfigError, match="training.lrr: unknown key; did you mean training.lr?"):
        load_config(path, ["training.lrr=1"])


def test_a_config_survives_its_own_dump(tmp_path: Path) -> None:
    tree = {"model": {"llm_revision": "1e-4"}, "data": {**DATA["data"], "dataset_kwargs": {"tag": "no", "n": None}}}
    config = build_config({**DATA, **tree}, "c")
    path = tmp_path / "c.yaml"
    path.write_text(dump_config(config))
    assert load_config(path) == config


def test_missing_file_and_empty_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="config file not found"):
        load_config(tmp_path / "none.yaml")
    with pytest.raises(ConfigError, match="is a folder; give the config file in it"):
        load_config(tmp_path)
    (tmp_path / "empty.yaml").write_text("")
    with pytest.raises(ConfigError, match=r"expected sections \(data, cache, model, training, evaluation, output\)"):
        load_config(tmp_path / "empty.yaml")


@pytest.mark.parametrize(
    ("text", "value"),
    [("1e-4", 1e-4), ("no", "no"), ("on", "on"), ("010", 10), ("1_000", "1_000"), ("2026-01-01", "2026-01-01"),
     ("12:30", "12:30"), ("true", True), ("~", None), ("", None), ("-.5", -0.5), ("0x10", "0x10")],
)  # fmt: skip
def test_yaml_scalars_mean_what_they_look_like(text: str, value: Any) -> None:
    parsed = parse_yaml(f"a: {text}", "s")["a"]
    assert parsed == value
    assert type(parsed) is type(value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\na: 2", "s: line 2 the key 'a' appears twice here"),
        ("a: &x 1\nb: *x", "s: line 2 aliases (*name) are not supported"),
        ("a: .inf", "s: line 1 .inf is not a finite number"),
        ("1: 2", "s: line 1 the key '1' is not text; quote it"),
        ("a: [" * 40, "s: line 1 nested deeper than 16"),
        ("a: !!python/object/apply:os.system [ls]", "s: line 1 tags (!name) are not supported"),
        ("a: !!timestamp x", "s: line 1 tags (!name) are not supported"),
        ("a: !!int [1]", "s: line 1 tags (!name) are not supported"),
        ("a: !!bool x", "s: line 1 tags (!name) are not supported"),
        ("a: b: c", "s: line 1 mapping values are not allowed here"),
        ("#" * (1 << 20) + "x", "s: larger than 1048576 bytes; a config should be about a page long"),
    ],
)
def test_yaml_traps_are_refused_with_their_line(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        parse_yaml(text, "s")
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)


plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(plain)
def test_dump_and_parse_are_inverse(value: Any) -> None:
    assert parse_yaml(dump_yaml(value), "s") == value


@given(st.dictionaries(st.sampled_from([*Config.model_fields, "x"]), plain, max_size=4))
def test_any_tree_is_a_config_or_one_line_a_mistake(tree: dict[str, Any]) -> None:
    try:
        build_config(tree, "c.yaml")
    except ConfigError as error:
        assert all(line.startswith("c.yaml: ") for line in str(error).splitlines())


def test_every_number_has_its_bounds() -> None:
    """No key takes NaN, inf, a negative number or one that no machine could serve."""
    numeric = [key for key, info in all_keys().items() if re.search(r"\b(int|float)\b", str(info.annotation))]
    assert len(numeric) >= 19
    for key in numeric:
        section, name = key.split(".")
        for wrong in (-1, 1e300, 10**15, math.nan, math.inf):
            if key == "training.grad_clip" and wrong in (1e300, 10**15):
                continue  # a limit that is never reached is none
            value = {"heads": wrong} if name == "lr_scale" else wrong
            tree = {section: {**DATA.get(section, {}), name: value}}
            assert refusal(tree).startswith(f"c.yaml: {key}"), (key, wrong)
    many = {"data": {**DATA["data"], "num_workers": 1000}}
    assert refusal(many) == "c.yaml: data.num_workers: expected auto, or a number from 0 to 256, found 1000"
    assert refusal({"training": {"lr": math.nan}}) == "c.yaml: training.lr: input should be a finite number, found nan"


def test_config_imports_no_torch() -> None:
    code = "import simv0.config.load, cli.main, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
