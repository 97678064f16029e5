"""What is wrong with an encoder's folder or file of weights is one line, the same from loading and from check."""

import json
import logging
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from small_world import MakeConfig

from simv0.checks.networks import outline_encoder
from simv0.checks.run import check
from simv0.config.schema import ModelConfig
from simv0.demo.networks import save_tiny_tower
from simv0.errors import ModelError
from simv0.vision.encoder import load_encoder

CONFIG, WEIGHTS = "open_clip_config.json", "open_clip_model.safetensors"


def local(folder: Path) -> ModelConfig:
    return ModelConfig(vision_encoder_name=f"local-dir:{folder}", vision_pretrained=None)


def configured(change: Callable[[Any], Any]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        tree = json.loads((folder / CONFIG).read_text())
        change(tree)
        (folder / CONFIG).write_text(json.dumps(tree))

    return damage


def broken_link(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    (folder / WEIGHTS).symlink_to("../../blobs/0123")


def into_snapshot(folder: Path) -> None:
    (folder / "snapshots" / "abc").mkdir(parents=True)
    (folder / CONFIG).rename(folder / "snapshots" / "abc" / CONFIG)


SEEN_AT_ONCE = {
    "no config": (
        lambda folder: (folder / CONFIG).rename(folder / "config.json"),
        "{folder} has no open_clip_config.json; found config.json, open_clip_model.safetensors; `hf download` a "
        "repository that has one, or write open_clip's name, its tag and the file as model.vision_weights",
    ),
    "a cache of the hub": (into_snapshot, "{folder} is a cache of the hub; write local-dir:{folder}/snapshots/abc"),
    "not JSON": (
        lambda folder: (folder / CONFIG).write_text("{"),
        "{folder}/open_clip_config.json: cannot be read as JSON: Expecting property name enclosed in double quotes: "
        "line 1 column 2 (char 1)",
    ),
    "text only": (
        configured(lambda tree: tree["model_cfg"].pop("vision_cfg")),
        "{folder}/open_clip_config.json: describes no CLIP: its model_cfg lacks vision_cfg",
    ),
    "one mean for all": (
        configured(lambda tree: tree["preprocess_cfg"].update(mean=0.5)),
        "{folder}/open_clip_config.json: preprocess_cfg.mean: expected three numbers, found 0.5",
    ),
    "std of 0": (
        configured(lambda tree: tree["preprocess_cfg"].update(std=[1, 1, 0])),
        "{folder}/open_clip_config.json: preprocess_cfg.std: expected three numbers above 0, found [1, 1, 0]",
    ),
    "interpolation": (
        configured(lambda tree: tree["preprocess_cfg"].update(interpolation="lanczos")),
        "{folder}/open_clip_config.json: preprocess_cfg.interpolation: expected bicubic or bilinear, found 'lanczos'",
    ),
    "another name": (
        lambda folder: (folder / WEIGHTS).rename(folder / "model.pt"),
        "{folder} holds no weights (open_clip_model.safetensors); model.pt is not read; name a state_dict "
        "open_clip_pytorch_model.bin",
    ),
    "pointer": (
        lambda folder: (folder / WEIGHTS).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n"),
        "{folder}/open_clip_model.safetensors: is a pointer of Git LFS, not the weights; run `git lfs pull` in its "
        "repository",
    ),
    "a copy of links": (
        broken_link,
        "{folder}/open_clip_model.safetensors: is a link to a file that is not here; copy what it points to (`cp -rL` "
        "of the hub's cache)",
    ),
}


@pytest.mark.parametrize("case", SEEN_AT_ONCE)
def test_a_folder_that_cannot_be_read_is_refused_before_its_weights(case: str, tmp_path: Path) -> None:
    damage, message = SEEN_AT_ONCE[case]
    save_tiny_tower(tmp_path)
    damage(tmp_path)
    for reads in (load_encoder, outline_encoder):
        with pytest.raises(ModelError) as caught:
            reads(local(tmp_path))
        assert str(caught.value) == "model.vision_encoder_name: " + message.format(folder=tmp_path)


def altered(change: Callable[[dict[str, torch.Tensor]], Any]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        weights = load_file(folder / WEIGHTS)
        change(weights)
        save_file(weights, folder / WEIGHTS)

    return damage


def without_tower(weights: dict[str, torch.Tensor]) -> None:
    for name in [name for name in weights if name.startswith("visual.")]:
        del weights[name]


def whole_checkpoint(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    (folder / "open_clip_pytorch_model.bin").write_bytes(pickle.dumps({"state_dict": {}, "args": Path("x")}))


def scripted(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    layer = torch.jit.trace(torch.nn.Linear(2, 2), torch.zeros(1, 2))  # type: ignore[no-untyped-call]
    torch.jit.save(layer, str(folder / "open_clip_pytorch_model.bin"))  # type: ignore[no-untyped-call]


SEEN_WHEN_READ = {
    "text tower only": (
        altered(without_tower),
        "the weights are of another architecture: 20 missing (visual.class_embedding, ...)",
    ),
    "others": (
        altered(lambda weights: weights.update({"visual.proj": torch.ones(2, 2), "head.bias": torch.ones(2)})),
        "the weights are of another architecture: 1 unexpected (head.bias), 1 of another size (visual.proj)",
    ),
    "cut short": (
        lambda folder: (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:9000]),
        "Error while deserializing header: incomplete metadata, file not fully covered",
    ),
    "a training checkpoint": (
        whole_checkpoint,
        "the file holds more than tensors, or no weights; save its state_dict as safetensors",
    ),
    "TorchScript": (
        scripted,
        "the file is a TorchScript archive, as OpenAI published its models; take the same weights as safetensors from "
        "the hub",
    ),
}


@pytest.mark.filterwarnings("ignore")  # torch deprecates TorchScript
@pytest.mark.parametrize("case", SEEN_WHEN_READ)
def test_weights_that_do_not_fit_are_one_line(case: str, tmp_path: Path) -> None:
    damage, message = SEEN_WHEN_READ[case]
    save_tiny_tower(tmp_path)
    damage(tmp_path)
    with pytest.raises(ModelError) as caught:
        load_encoder(local(tmp_path))
    assert str(caught.value) == f"model.vision_encoder_name: {tmp_path} cannot be loaded: {message}"


def test_what_a_folder_leaves_open_is_told(
    make_config: MakeConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tower = tmp_path / "tower"
    save_tiny_tower(tower)
    load_encoder(local(tower))
    assert caplog.messages == []
    configured(lambda tree: tree["preprocess_cfg"].pop("mean"))(tower)
    (tower / WEIGHTS).rename(tower / "a.safetensors")
    (tower / "b.bin").touch()
    told = [
        f"model.vision_encoder_name: {tower} holds several files of weights (a.safetensors, b.bin); a.safetensors is "
        "read; name the right one open_clip_model.safetensors or open_clip_pytorch_model.bin",
        f"model.vision_encoder_name: {tower}/open_clip_config.json: preprocess_cfg lacks mean; CLIP's are "
        "taken, and features are wrong if the weights were trained with others; write them there",
    ]
    with caplog.at_level(logging.WARNING, "simv0"):
        identity = load_encoder(local(tower)).identity
    assert caplog.messages == told
    assert check(make_config(model={"vision_encoder_name": f"local-dir:{tower}"})).warnings[-2:] == told
    caplog.clear()
    load_encoder(local(tower), trained=identity)  # a checkpoint knows
    assert caplog.messages == []


def test_half_a_copy_in_the_cache_of_the_hub_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights without open_clip_config.json: the hub's client would look for it for a minute."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    repository = tmp_path / "models--timm--tiny"
    save_tiny_tower(repository / "snapshots" / "abc")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("abc")
    model = ModelConfig(vision_encoder_name="hf-hub:timm/tiny", vision_pretrained=None)
    assert load_encoder(model).dv == 32
    (repository / "snapshots" / "abc" / CONFIG).unlink()
    with pytest.raises(ModelError) as caught:
        load_encoder(model)
    assert str(caught.value) == (
        "model.vision_encoder_name: the weights and the open_clip_config.json of hf-hub:timm/tiny (timm/tiny) are not "
        f"on this machine ({tmp_path}) and HF_HUB_OFFLINE is set; check the name, run `hf download timm/tiny` where "
        "there is a network, or give a folder as local-dir:PATH"
    )
