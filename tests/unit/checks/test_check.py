"""`simv0 check`: every problem at once, and estimates that the real thing keeps."""

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from check_world import own, problems_of
from commands import run
from small_world import MakeConfig, write_manifest

import simv0.checks.probe
import simv0.checks.room
from simv0.checks.collector import ErrorCollector
from simv0.checks.data import check_split
from simv0.checks.run import check, check_both, preflight
from simv0.config.load import dump_config
from simv0.errors import ConfigError, ModelError
from simv0.features.reader import read_features
from simv0.labels import HEADS
from simv0.runtime.device import pick_device
from simv0.training.fit import fit
from simv0.training.splits import open_split


def test_a_good_config_has_no_problem_and_says_what_it_would_do(make_config: MakeConfig) -> None:
    config = make_config()
    report = check(config)
    assert report.problems == []
    lines = Path(config.data.train_split_path).read_text().splitlines()
    reasons = Counter(json.loads(line)["reason_id"] for line in lines)
    assert report.facts["data: train"] == {
        "source": "frames",
        "windows read": "all",
        "windows": 40,
        "frame spacing": "unknown: set data.frame_spacing for the robot",
        "risk": "none 10, low 10, med 10, high 10",
        "reason": ", ".join(f"{name} {reasons[i]}" for i, name in enumerate(HEADS["reason"])),
        "action": "continue 7, slow 7, stop 7, reverse 7, turn_left 6, turn_right 6",
    }
    assert report.facts["cache-vis"]["train_frames"] == 43  # stride 1: 40 windows of 4
    assert report.facts["vision encoder"]["dv"] == 32
    assert (report.facts["LLM"]["d"], report.facts["LLM"]["path"]) == (64, "fast")
    assert report.facts["train"]["steps per epoch"] == 5
    assert report.facts["train"]["LLM compiled"] is False
    assert check(make_config(training={"compile": "on"})).facts["train"]["LLM compiled"] is True
    assert report.facts["machine"]["processes"] == 1


def test_all_problems_come_at_once(make_config: MakeConfig, tmp_path: Path) -> None:
    manifest = tmp_path / "train.jsonl"
    write_manifest(manifest, 6, seed=3, telemetry=[1.0])
    config = make_config(
        data={"train_split_path": str(manifest), "val_split_path": str(tmp_path / "none.jsonl")},
        cache={"dir": str(manifest / "cache")},
        model={"d": 63, "dv": 31},
        training={"amp": True, "amp_dtype": "fp16", "class_weights": "dataset"},
        output={"output_dir": str(tmp_path / "foreign")},
    )
    (tmp_path / "foreign" / "logs").mkdir(parents=True)
    models = Path(config.model.llm_name_or_path).parent
    assert problems_of(config) == [
        "training.amp_dtype: fp16 needs CUDA; write bf16 here, or training.amp: false",
        "training.class_weights: `dataset`, but the dataset has no class_weights; write none, balanced or "
        "sqrt_balanced",
        f"{manifest}:1: telemetry: expected float [8] (ax, ay, az, gx, gy, gz, v, w), found float64 [1] (and 5 "
        "more like it)",
        f"{tmp_path}/none.jsonl: manifest not found",
        f"model.d: the config says 63, but {models}/llm has width 64",
        f"model.dv: the config says 31, but local-dir:{models}/vision gives features of width 32",
        f"{tmp_path}/foreign: holds logs but no config_resolved.yaml, so they are not from a run of simv0 and are "
        "not removed; choose another output.output_dir",
        f"cache.dir: {manifest}/cache cannot be written: {manifest} is a file",
    ]


def test_a_window_of_too_few_frames_is_a_problem_wherever_it_stands(make_config: MakeConfig, tmp_path: Path) -> None:
    manifest = write_manifest(tmp_path / "train.jsonl", 30, seed=3)
    rows = [json.loads(line) for line in manifest.read_text().splitlines()]
    for i in (20, 25):
        rows[i]["frames"].pop()
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert problems_of(make_config(data={"train_split_path": str(manifest)})) == [
        f"{manifest}:21: frames: expected 4 (model.F), found 3 (and 1 more like it)"
    ]


def test_the_command_lists_all_of_them_and_exits_non_zero(make_config: MakeConfig, tmp_path: Path) -> None:
    good, data = tmp_path / "good.yaml", make_config().data
    good.write_text(dump_config(make_config()))
    args = ["check", "--config", str(good)]
    done = run(*args)
    few = 'val has 4 windows of risk "high"; at least 10 are needed to choose the alarm\'s threshold: best.pt will have'
    assert (done.exit_code, done.stderr) == (0, f"warning: {few} none\n")
    assert done.stdout.endswith("\nno problems found, 1 warning\n")
    one = run(*args, "--set", "model.F=5")
    assert one.exit_code == 1
    assert one.stderr == "".join(
        f"error: {path}:1: frames: expected 5 (model.F), found 4 (and {n} more like it)\n"
        for path, n in ((data.train_split_path, 39), (data.val_split_path, 19))
    )
    assert one.stdout.endswith("\n2 problems\n")
    both = run(*args, "--set", "model.llm_name_or_path=/nowhere", "--set", "model.d=3", "--set", "model.dv=3")
    assert both.exit_code == 1
    told = [line for line in both.stderr.splitlines() if line.startswith("error: ")]
    assert [line.split(":")[1].strip() for line in told] == ["/nowhere", "model.dv"]
    assert run(*args, "--set", "model.d=3").exit_code == 2  # as train: the config is wrong


@pytest.mark.parametrize("command", ["train", "cache-vis"])
def test_the_commands_begin_with_it(command: str, make_config: MakeConfig, features: Path, tmp_path: Path) -> None:
    """Several problems are told at once, before data is read; one keeps the text and code of the part that has it."""
    path = tmp_path / "config.yaml"
    (tmp_path / "bad.jsonl").write_text("{")
    config = make_config(data={"train_split_path": str(tmp_path / "bad.jsonl")}, model={"use_cached_vis_feats": False})
    path.write_text(dump_config(config))
    wrong = ["--set", "model.d=63", "--set", "model.dv=31"]
    done = run(command, "--config", str(path), *wrong)
    names = [line.split(":")[1].strip() for line in done.stderr.splitlines()]
    assert (names, done.exit_code) == ((["model.d", "model.dv"], 2) if command == "train" else (["model.dv"], 1))


def test_one_problem_keeps_its_text_kind_and_code(make_config: MakeConfig) -> None:
    for wrong in (
        {"llm_name_or_path": "/nowhere"},
        {"d": 63},
        {"vision_encoder_name": "local-dir:/nowhere"},
        {"dv": 1},
    ):
        config = make_config(model={**wrong, "use_cached_vis_feats": False})
        with pytest.raises((ModelError, ConfigError)) as early:
            preflight(config, "train")
        with pytest.raises((ModelError, ConfigError)) as late:
            fit(config)
        assert (type(early.value), str(early.value)) == (type(late.value), str(late.value))


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (own(wrong={"risk_id": 4}), "[0]: risk_id: expected 0..3 (none, low, med, high), found 4"),
        (own(wrong={"weight": -1.0}), "[0]: weight: expected a finite float32 >= 0, found -1.0"),
        (own(wrong={"frames": 1}), "[0]: expected one of the keys 'frames' and 'vis_feats', found the keys"),
        ({"dataset_class_path": "nowhere.Windows"}, "data.dataset_class_path: no module named 'nowhere'"),
        (own(wring=1), "data.dataset_kwargs: check_world.VisFeats: "),
        (own(dv={"val": 7}), "val: features of width 7, but train has 6"),
    ],
)
def test_each_fault_of_a_dataset_is_found(make_config: MakeConfig, data: dict[str, Any], problem: str) -> None:
    found = problems_of(make_config(data=data))
    assert found
    assert all(problem in line for line in found), found


def test_a_dataset_with_features_needs_no_encoder(make_config: MakeConfig) -> None:
    report = check(make_config(data=own(), model={"vision_encoder_name": "local-dir:/nowhere"}))
    assert report.problems == []
    assert report.facts["data: val"]["source"] == "vis_feats"
    assert report.facts["data: val"]["risk"] == "none 3, low 3, med 3, high 3"  # all 12 windows were read
    assert "cache-vis" not in report.facts
    wrong = problems_of(make_config(data=own(), model={"dv": 7}))
    assert wrong == [
        f"{split}[0]: vis_feats are 6 wide, but model.dv is 7; drop model.dv" for split in ("train", "val")
    ]


def test_finished_features_stand_in_for_data_and_encoder(
    make_config: MakeConfig, features: Path, tmp_path: Path
) -> None:
    gone = {"train_split_path": str(tmp_path / "x/train.jsonl"), "val_split_path": str(tmp_path / "x/val.jsonl")}
    report = check(make_config(cache={"dir": str(features)}, data=gone))
    assert report.problems == []
    assert report.facts["data: train"]["source"] == "feature file"
    assert report.facts["data: train"]["windows"] == 40
    assert report.facts["train"]["features_in_RAM_bytes"] == 60 * 4 * 32 * 2
    other = problems_of(make_config(cache={"dir": str(features)}, model={"vision_resize_mode": "longest"}))
    assert len(other) == 2
    mismatch = 'vision_preprocess.resize_mode is "squash" in the file, "longest" in the config'
    assert f"train.h5: does not match the config: {mismatch}" in other[0]


def test_unfinished_shards_of_other_settings_are_found(make_config: MakeConfig, features: Path, tmp_path: Path) -> None:
    parts = tmp_path / "cache/train.h5.parts"
    parts.mkdir(parents=True)
    plan = {"identity": read_features(features / "train.h5").info.identity, "shard_windows": 7, "batch_size": 16}
    (parts / "plan.json").write_text(json.dumps(plan))
    assert problems_of(make_config()) == [
        f"{parts}: does not match the config: cache.shard_windows is 7 in the file, 16 in the config. "
        "Recreate it with `simv0 cache-vis --overwrite`, or choose another cache.dir"
    ]
    (parts / "shard-000000.h5").write_bytes(b"8 bytes.")
    again = check(make_config(cache={"shard_windows": 7}))
    assert again.problems == []
    assert again.facts["cache-vis"]["train_shards_there"] == "1 of 6"


def test_leakage_is_told(make_config: MakeConfig, manifests: Path) -> None:
    same = str(manifests / "train.jsonl")
    report = check(make_config(data={"val_split_path": same}))
    assert report.facts["data: both"]["leakage"].startswith("LEAKAGE: 1 group appears in both train and val")


def test_a_split_from_a_file_and_one_from_its_dataset_is_found(
    make_config: MakeConfig, features: Path, tmp_path: Path
) -> None:
    shutil.copy(features / "val.h5", tmp_path / "val.h5")
    data = own(dv={"train": 32}) | {"val_split_path": str(tmp_path / "val.jsonl")}
    plain = {"dataset_class_path": "simv0.datasets.ManifestDataset", "dataset_kwargs": {}}
    config = make_config(cache={"dir": str(tmp_path)}, data=data)
    errors = ErrorCollector()
    found = check_split(config.model_copy(update={"data": config.data.model_copy(update=plain)}), "val", errors)
    train = check_split(config, "train", errors)
    assert found is not None
    assert train is not None
    check_both(config, train, found, errors)
    assert [str(problem) for problem in errors.problems] == [
        f"{tmp_path}: val would come from its feature file, train from the dataset itself; "
        "run `simv0 cache-vis` for all, or choose another cache.dir"
    ]


def test_processes_share_a_batch(make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    alone = check(make_config()).facts
    monkeypatch.setenv("WORLD_SIZE", "4")
    shared = check(make_config()).facts
    assert shared["machine"]["processes"] == 4
    assert shared["LLM"]["activations_of_a_step_bytes"] < alone["LLM"]["activations_of_a_step_bytes"] / 3


def test_features_in_ram_leave_room_for_the_other_processes(
    make_config: MakeConfig, features: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config(cache={"dir": str(features)})
    sizes = [n * config.model.F * 32 * 2 for n in (40, 20)]
    monkeypatch.setattr(simv0.checks.room, "available_memory", lambda: 2 * max(sizes) + 1)
    splits = [split for name in ("train", "val") if (split := check_split(config, name, ErrorCollector())) is not None]
    assert simv0.checks.room.features_in_ram(config, splits, 32) == sum(sizes)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert simv0.checks.room.features_in_ram(config, splits, 32) == min(sizes)


def test_more_processes_than_gpus_is_a_problem(monkeypatch: pytest.MonkeyPatch, make_config: MakeConfig) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert pick_device(make_config()) == torch.device("cuda", 1)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    with pytest.raises(
        ConfigError, match="torchrun started 3 processes on this machine, but its number of GPUs is 2: use --"
    ):
        pick_device(make_config())


def test_of_a_machines_processes_one_tells(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """torchrun ends the others with the first that fails: it could be before the table is out."""
    config = tmp_path / "config.yaml"
    config.write_text(dump_config(make_config()))
    for name in ("RANK", "LOCAL_RANK"):
        monkeypatch.setenv(name, "1")
    done = run("check", "--config", str(config), "--set", "model.d=3")
    assert (done.exit_code, done.output) == (0, "")


def test_too_little_room_is_a_problem(make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(simv0.checks.room, "available_memory", lambda: 1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(9, 8, 1))
    found = problems_of(make_config(cache={"in_memory": "always"}))
    assert [line.split(":")[0] for line in found] == ["cache.dir", "model.llm_name_or_path", "output.output_dir"]


def test_a_control_takes_the_room_of_a_run_and_of_an_llm(make_config: MakeConfig, models: Path) -> None:
    alone, controlled = (
        check(make_config(training={"llm_control": control})).facts["train"]["checkpoints_on_disk_bytes"]
        for control in (False, True)
    )
    weights = (models / "llm" / "model.safetensors").stat().st_size
    assert 0.9 * weights < controlled - 2 * alone < 2.1 * weights


def test_what_another_dataset_has_begun_does_not_stop_one_that_brings_its_own_features(
    make_config: MakeConfig, features: Path, tmp_path: Path
) -> None:
    for name in ("train", "val"):
        parts = tmp_path / f"cache/{name}.h5.parts"
        parts.mkdir(parents=True)
        plan = {"identity": read_features(features / f"{name}.h5").info.identity, "shard_windows": 8, "batch_size": 16}
        (parts / "plan.json").write_text(json.dumps(plan))
    config = make_config(data=own(), cache={"dir": str(tmp_path / "cache")})
    assert problems_of(config) == []
    assert open_split(config, "train").dv == 6
