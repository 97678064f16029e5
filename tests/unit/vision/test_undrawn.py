"""Networks are built without drawing weights that a file sets at once; one that no file sets cannot be missed."""

from pathlib import Path

import pytest
import torch
from cache_world import write_encoder
from safetensors.torch import load_file, save_file
from torch import nn

from simv0.config.schema import ModelConfig
from simv0.errors import ModelError
from simv0.vision.encoder import load_encoder
from simv0.vision.undrawn import Undrawn, check_set


def test_nan_stands_for_what_would_be_drawn() -> None:
    before = torch.get_rng_state()
    with Undrawn():
        layers = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Conv2d(1, 2, 3), nn.Embedding(5, 2))
        bare = nn.init.trunc_normal_(torch.zeros(3), std=0.02)
        assert torch.randint(7, (3,)).dtype is torch.int64  # all else is as it was
    assert bare.isnan().all()
    assert all(weight.isnan().all() for name, weight in layers.named_parameters() if not name.startswith("1."))
    assert layers[1].weight.eq(1).all()
    assert nn.Linear(3, 4).weight.isfinite().all()
    torch.set_rng_state(before)
    with pytest.raises(ModelError, match=r"model.vision_encoder_name: tower: the weight 0.weight is missing from"):
        check_set(layers, "tower")


def test_a_tower_whose_file_holds_nan_is_refused_by_the_weight(tmp_path: Path) -> None:
    write_encoder(tmp_path)
    model = ModelConfig(llm_name_or_path="none", vision_encoder_name=f"local-dir:{tmp_path}", vision_pretrained=None)
    kept = load_file(file := next(tmp_path.glob("*.safetensors")))
    encoder = load_encoder(model)
    assert all(torch.equal(kept[f"visual.{name}"], weight) for name, weight in encoder.visual.named_parameters())
    name, _ = next(encoder.visual.named_parameters())
    kept[f"visual.{name}"] = torch.full_like(kept[f"visual.{name}"], torch.nan)
    save_file(kept, file)
    with pytest.raises(ModelError, match=f"the weight {name} is missing from its weights, or holds NaN"):
        load_encoder(model)
