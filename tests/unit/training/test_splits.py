"""The two splits as training reads them."""

from pathlib import Path

import numpy as np
import pytest
import torch
from small_world import MakeConfig

from simv0.config.schema import Config
from simv0.errors import CacheError, DataError
from simv0.model.checkpoint import load_checkpoint
from simv0.training.fit import fit
from simv0.training.splits import BatchOrder, feature_stats, open_split, telemetry_stats


@pytest.fixture
def config(make_config: MakeConfig, features: Path) -> Config:
    return make_config(cache={"dir": str(features)})


def test_features_of_another_manifest_are_refused(
    make_config: MakeConfig, features: Path, manifests: Path, tmp_path: Path
) -> None:
    def trained_on(manifest: Path) -> str:
        with pytest.raises(CacheError) as error:
            fit(make_config(cache={"dir": str(features)}, data={"train_split_path": str(manifest)}))
        return str(error.value)

    assert 'split is "train.jsonl" in the file, "other.jsonl" in the config' in trained_on(tmp_path / "other.jsonl")
    relabelled = tmp_path / "train.jsonl"
    relabelled.write_text((manifests / "train.jsonl").read_text().replace('"risk_id": 0', '"risk_id": 1', 1))
    assert "split_file is" in trained_on(relabelled)
    elsewhere = tmp_path / "elsewhere" / "train.jsonl"  # not on this machine: its name is all that can be known
    fit(make_config(cache={"dir": str(features)}, data={"train_split_path": str(elsewhere)}, training={"epochs": 1}))


def test_a_dataset_with_features_is_not_trapped_by_a_leftover_cache(make_config: MakeConfig, features: Path) -> None:
    own = {"dataset_class_path": "fit_world.VisFeats"}
    run = fit(make_config(cache={"dir": str(features)}, data=own, training={"epochs": 1}))
    assert load_checkpoint(run.best).meta.dv == 6


def test_one_split_cached_and_the_other_not_is_refused(make_config: MakeConfig, features: Path, tmp_path: Path) -> None:
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / "val.h5").write_bytes((features / "val.h5").read_bytes())
    config = make_config(cache={"dir": str(tmp_path / "half")})
    with pytest.raises(CacheError, match="no feature file for split train"):
        fit(config)


def test_d_dv_and_contract_are_checked_before_training(make_config: MakeConfig, features: Path) -> None:
    with pytest.raises(CacheError, match="dv is 32 in the file, 33 in the config"):
        fit(make_config(cache={"dir": str(features)}, model={"dv": 33}))
    with pytest.raises(DataError, match=r"^train\[0\]: vis_feats are 6 wide, but model.dv is 7; drop model.dv$"):
        fit(make_config(data={"dataset_class_path": "fit_world.VisFeats"}, model={"dv": 7}))
    with pytest.raises(
        CacheError, match=r"vision_preprocess.resize_mode is \"squash\" in the file, \"longest\" in the config"
    ):
        fit(make_config(cache={"dir": str(features)}, model={"vision_resize_mode": "longest"}))


def test_batch_order_is_a_function_of_seed_and_epoch() -> None:
    order = BatchOrder(10, 4, seed=3)
    order.epoch = 1
    whole = list(order)
    assert sorted(i for batch in whole for i in batch) == list(range(10))
    assert [len(batch) for batch in whole] == [4, 4, 2]
    order.start = 2
    assert list(order) == whole[2:]
    assert len(order) == 1
    order.epoch, order.start = 2, 0
    assert list(order) != whole


def test_stats_by_a_second_way(config: Config) -> None:
    train = open_split(config, "train")
    mean, std = telemetry_stats(train.labels.telemetry)
    assert np.allclose(mean, train.labels.telemetry.mean(0), atol=1e-6)
    assert np.allclose(std, train.labels.telemetry.std(0), atol=1e-6)
    constant = np.tile(np.array([1, 2, 9.81, 0, 1e5, 1, 1, 1], np.float32), (5, 1))
    assert telemetry_stats(constant)[1].tolist() == [1.0] * 8
    feats = torch.stack([train.dataset[i]["vis_feats"].float() for i in range(len(train.labels))]).flatten(0, 1)
    mean, std = feature_stats(train, lambda batch: batch["vis_feats"].float(), raw=False)
    assert torch.allclose(mean, feats.mean(0), atol=1e-5)
    assert torch.allclose(std, feats.std(0, correction=0), atol=1e-5)
