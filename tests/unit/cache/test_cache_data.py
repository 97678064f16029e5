"""What cache-vis takes from a dataset, and what it refuses."""

import json
import logging
import multiprocessing
import platform
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cache_world import Windows, fresh, make_world, plain_config, train_file
from PIL import Image
from safetensors.torch import load_file, save_file

from cache.frames import Carry
from cache.pipeline import cache_vis
from simv0.config.schema import Config
from simv0.data.images import load_image
from simv0.data.manifest import ManifestDataset
from simv0.errors import CacheError, ConfigError, DataError
from simv0.features.dataset import CachedDataset
from simv0.features.made import cached_features
from simv0.features.shards import Plan, parts_of
from simv0.vision.encoder import load_encoder


def test_a_plain_dataset_of_float_frames(tmp_path: Path) -> None:
    config = plain_config(tmp_path)
    train, _ = cache_vis(config)
    assert (train.counts.frames, train.counts.encoded) == (27, 27)
    cached, encoder = CachedDataset(train_file(config)), load_encoder(config.model, "fp32")
    for i in range(9):
        torch.testing.assert_close(
            cached[i]["vis_feats"].float(), encoder(Windows("")[i]["frames"]), rtol=1e-3, atol=1e-3
        )
    assert cached.labels.sample_id[8] == "8"
    assert cached.labels.group is None


def test_a_dataset_of_features_needs_no_cache(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"train: cache_world.Windows yields vis_feats itself; it does not need cache-vis"
    ):
        cache_vis(plain_config(tmp_path, feats=True))


@pytest.mark.parametrize(
    ("factor", "what"), [(1e6, r"a feature is .*; set cache.dtype: float32"), (np.inf, "NaN or inf")]
)
def test_features_that_cannot_be_stored(tmp_path: Path, factor: float, what: str) -> None:
    config = plain_config(tmp_path)
    weights = load_file(tmp_path / "vision" / "open_clip_model.safetensors")
    weights["visual.proj"] *= factor
    save_file(weights, tmp_path / "vision" / "open_clip_model.safetensors")
    with pytest.raises(CacheError, match=r"train\[0\] \(0\), frame 0: .*" + what):
        cache_vis(config)


def test_a_broken_frame_is_named_also_by_workers(tmp_path: Path) -> None:
    config = make_world(tmp_path)
    config = config.model_copy(update={"data": config.data.model_copy(update={"num_workers": 1})})
    (tmp_path / "train_images" / "0020.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"train_images/0020.png: cannot be read as an image") as caught:
        cache_vis(config)
    assert "\n" not in str(caught.value)
    assert multiprocessing.active_children() == []  # though the traceback is kept
    assert len(parts_of(train_file(config)).missing(Plan({"N": 23}, 5, 8))) < 5  # what was finished is kept


def test_a_window_of_too_few_frames_is_found_before_the_encoder_is_loaded(tmp_path: Path) -> None:
    config = make_world(tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "val.jsonl").read_text().splitlines()]
    rows[6]["frames"].pop()
    (tmp_path / "val.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    shutil.rmtree(tmp_path / "vision")
    with pytest.raises(DataError, match=r"val.jsonl:7: frames: expected 4 \(model.F\), found 3"):
        cache_vis(config)


class TwoTypes(ManifestDataset):
    """One frame is float, the others are bytes."""

    def load_frame(self, frame_id: Any) -> torch.Tensor:
        frame = super().load_frame(frame_id)
        return frame / 255 if "0007" in str(frame_id) else frame


def test_frames_of_two_types_are_refused(tmp_path: Path) -> None:
    config = make_world(tmp_path)
    own = config.data.model_copy(update={"dataset_class_path": f"{__name__}.TwoTypes"})
    config = config.model_copy(update={"data": own})
    with pytest.raises(DataError, match="train: some frames are uint8, others float; use one type"):
        cache_vis(config)


@pytest.mark.parametrize("bad", [None, [1]])
def test_a_first_sample_that_is_no_dict(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bad: Any) -> None:
    monkeypatch.setattr(Windows, "__getitem__", lambda self, i: bad)
    with pytest.raises(
        DataError, match=rf"train\[0\]: expected a dict, found {type(bad).__name__} \(and 8 more like it\)$"
    ):
        cache_vis(plain_config(tmp_path))


def test_windows_of_two_types_are_refused_where_two_jobs_meet_in_one_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """3 frames a window, 8 a batch: each job reads two windows, and window 2 waits for frames of window 0 and 1."""
    get = Windows.__getitem__

    def mixed(self: Windows, i: int) -> dict[str, Any]:
        sample = get(self, i)
        return sample if i in (2, 3) else {**sample, "frames": (sample["frames"] * 255).byte()}

    monkeypatch.setattr(Windows, "__getitem__", mixed)
    with pytest.raises(DataError, match=r"^train: some frames are uint8, others float; use one type$"):
        cache_vis(plain_config(tmp_path))


def test_carry_keeps_the_most_recent_frames_within_its_limit() -> None:
    carry = Carry(3)
    assert carry.plan("abcb") == (["a", "b", "c"], [])
    assert carry.plan("bd") == (["d"], ["a"])  # c and b were used after a
    assert carry.plan("ab") == (["a"], ["c"])
    assert Carry(0).plan("ab") == (["a", "b"], ["a", "b"])


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc is told how to keep its memory")
def test_memory_that_a_batch_frees_is_kept_for_the_next() -> None:
    """A guard without timing: pages that the kernel must bring in anew, in a process of its own."""
    script = """
import resource, torch
from cli.shared import keep_freed_memory
faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt
keep_freed_memory()
for _ in range(20): torch.ones(16 * 2**20)  # 64 MiB, freed at once, until the heap has grown
before = faults()
for _ in range(10): torch.ones(16 * 2**20)
print((faults() - before) * resource.getpagesize() / 2**20)
"""
    root = Path(__file__).parents[3]
    done = subprocess.run([sys.executable, "-c", script], cwd=root, capture_output=True, text=True, check=True)
    assert float(done.stdout) < 64  # of 640 MiB


@pytest.mark.parametrize("work", [-1.0, 2.0])  # in turns with the encoder, and beside it
def test_auto_reads_ahead_and_changes_no_byte(
    work: float,
    world: tuple[Config, bytes],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr("simv0.data.workers.WORTH", 0.0)
    monkeypatch.setattr("simv0.data.workers.WORK", work)
    config = fresh(world[0], tmp_path)
    assert config.data.num_workers == "auto"
    with caplog.at_level(logging.INFO, "simv0"):
        cache_vis(config)
    assert "train: a frame takes" in caplog.text
    assert "processes that read ahead: " in caplog.text
    assert ("in turns with the encoder" in caplog.text) == (work < 0)
    assert train_file(config).read_bytes() == world[1]


def test_scaled_jpegs_are_recorded_and_not_taken_for_full_ones(tmp_path: Path) -> None:
    config = make_world(tmp_path, windows=5)
    encoder = load_encoder(config.model, "fp32", decode="scaled")
    assert encoder.smallest == 32
    for name in ("train", "val"):
        for path in (tmp_path / f"{name}_images").iterdir():
            Image.open(path).resize((80, 64)).save(path.with_suffix(".jpg"))
        manifest = tmp_path / f"{name}.jsonl"
        manifest.write_text(manifest.read_text().replace(".png", ".jpg"))
    full = config.model_copy(update={"cache": config.cache.model_copy(update={"dir": str(tmp_path / "full")})})
    scaled = config.model_copy(update={"cache": config.cache.model_copy(update={"decode": "scaled"})})
    cache_vis(full), cache_vis(scaled)
    for one, smallest in ((full, None), (scaled, 32)):
        dataset = ManifestDataset(tmp_path / "train.jsonl")
        frames = torch.stack([load_image(Path(str(name)), smallest=smallest) for name in dataset.frame_ids(2)])
        assert frames.shape[-2:] == ((64, 80) if smallest is None else (32, 40))
        found = CachedDataset(train_file(one))[2]["vis_feats"].float()
        torch.testing.assert_close(found, encoder(frames), rtol=1e-3, atol=1e-3)
    stored = {one.cache.decode: CachedDataset(train_file(one)).identity for one in (full, scaled)}
    assert "decode" not in stored["full"]["vision_preprocess"]  # as in files made before there was a choice
    assert load_encoder(config.model, "fp32", trained=stored["scaled"]).smallest == 32
    assert load_encoder(config.model, "fp32", trained=stored["full"], decode="scaled").smallest is None
    for here, other in ((full, "scaled"), (scaled, "full")):
        wrong = here.model_copy(update={"cache": here.cache.model_copy(update={"decode": other})})
        said = f'vision_preprocess.decode is "{here.cache.decode}" in the file, "{other}" in the config'
        with pytest.raises(CacheError, match=said):
            cache_vis(wrong)
        with pytest.raises(CacheError, match=said):
            cached_features(wrong, "train", "never")


def test_a_class_that_decodes_its_own_pictures_is_not_scaled(tmp_path: Path) -> None:
    config = plain_config(tmp_path)
    config = config.model_copy(update={"cache": config.cache.model_copy(update={"decode": "scaled"})})
    with pytest.raises(ConfigError, match=r"cache.decode: scaled is for manifests of pictures; cache_world.Windows"):
        cache_vis(config)
