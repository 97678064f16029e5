"""The model: against a second way, what trains and what does not, cached features against raw frames."""

from functools import partial
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small_world import MakeConfig

from simv0.data.contract import Batch, CheckedDataset, collate
from simv0.data.manifest import ManifestDataset
from simv0.errors import ConfigError, ModelError
from simv0.labels import HEADS
from simv0.llm.load import load_llm
from simv0.model.build import build_model
from simv0.model.network import TRAINABLE, SimV0Model, segment_means
from simv0.model.predictions import predictions
from simv0.training.epoch import train_one_epoch
from simv0.training.recipe import heads_rate, make_optimizer, projector_rate
from simv0.vision.encoder import load_encoder


def small(models: Path, **changes: object) -> SimV0Model:
    torch.manual_seed(0)
    options = {"dv": 32, "F": 4, "K": 2, **changes}
    return SimV0Model(load_llm(str(models / "llm")), **options)  # type: ignore[arg-type]


def random_batch(n: int = 6, **extra: torch.Tensor) -> Batch:
    generator = torch.Generator().manual_seed(1)
    batch = {
        "vis_feats": torch.randn(n, 4, 32, generator=generator),
        "telemetry": torch.randn(n, 8, generator=generator) * 3,
        "weight": torch.ones(n),
        "sample_id": [str(i) for i in range(n)],
        **{f"{head}_id": torch.arange(n) % len(names) for head, names in HEADS.items()},
        **extra,
    }
    return batch  # type: ignore[return-value]  # noqa: RET504


def test_segment_means_by_hand() -> None:
    # F=8, K=3: segments 0..2, 2..5, 5..8
    wanted = torch.zeros(3, 8)
    wanted[0, 0:2], wanted[1, 2:5], wanted[2, 5:8] = 1 / 2, 1 / 3, 1 / 3
    assert torch.equal(segment_means(8, 3), wanted)


@given(st.integers(1, 20), st.data())
def test_segments_share_every_frame_once(F: int, data: st.DataObject) -> None:
    K = data.draw(st.integers(1, F))
    matrix = segment_means(F, K)
    assert torch.allclose(matrix.sum(1), torch.ones(K))
    assert ((matrix > 0).sum(0) == 1).all()


def test_forward_agrees_with_transformers_own_path(models: Path) -> None:
    """A second way: the prefix written out sample by sample, through LlamaForCausalLM-like hidden states."""
    from transformers import LlamaModel

    model = small(models).eval()
    model.set_stats((torch.arange(8.0), torch.full((8,), 2.0)), (torch.full((32,), 0.5), torch.full((32,), 4.0)))
    batch = random_batch()
    logits = model(batch)
    reference = LlamaModel.from_pretrained(models / "llm").eval()
    rms = reference.embed_tokens.weight.square().mean().sqrt().item()
    for i in range(6):
        feats = (batch["vis_feats"][i] - 0.5) / 4
        bos = reference.embed_tokens.weight[1]  # LlamaConfig's bos_token_id
        tokens = [model.projector((feats[0] + feats[1]) / 2), model.projector((feats[2] + feats[3]) / 2)]
        tokens.append(model.telemetry_mlp((batch["telemetry"][i] - torch.arange(8)) / 2))
        tokens.append(model.task_token)
        prefix = torch.cat([bos[None], torch.stack(tokens) * rms])
        hidden = reference(inputs_embeds=prefix[None]).last_hidden_state[0, -1]
        hidden = (hidden - hidden.mean()) / (hidden.var(correction=0) + 1e-5).sqrt()
        for head in HEADS:
            wanted = model.heads[head](hidden)
            assert torch.allclose(logits[f"{head}_logits"][i], wanted, atol=1e-4), head


def test_without_bos_the_prefix_is_what_older_checkpoints_read(models: Path, make_config: MakeConfig) -> None:
    batch = random_batch()
    build = partial(build_model, dv=32, encoder=None, device=torch.device("cpu"))
    with_it, without = build(make_config()), build(make_config(model={"bos": False}))
    assert (with_it.tokens, without.tokens) == (without.K + 3, without.K + 2)
    prefixes = [model.eval().prefix(batch["vis_feats"], batch["telemetry"]) for model in (with_it, without)]
    assert torch.equal(prefixes[0][:, 1:], prefixes[1])
    assert "bos" in with_it.trainable_state()
    assert "bos" not in without.trainable_state()


def test_heads_learn_slower_the_wider_what_they_read(models: Path, make_config: MakeConfig) -> None:
    assert [heads_rate(width) for width in (32, 64, 640, 6400)] == [10, 10, 1, 0.1]
    model = small(models)
    model.llm.hidden_size = 640
    training = make_config(training={"lr": 0.01}).training
    rates = [group["lr"] for group in make_optimizer(model, training, 24).param_groups]
    assert rates[-2:] == [0.01, 0.01]  # the heads' weights and biases
    own = training.model_copy(update={"lr_scale": {**training.lr_scale, "heads": 3.0}})
    assert make_optimizer(model, own, 24).param_groups[-1]["lr"] == pytest.approx(0.03)


def test_the_projector_learns_slower_the_fewer_the_windows(models: Path, make_config: MakeConfig) -> None:
    assert projector_rate(500, 1000) == 1.0
    assert projector_rate(1280, 400) == pytest.approx(0.357, abs=1e-3)
    model, training = small(models), make_config(training={"lr": 0.01}).training
    assert make_optimizer(model, training, 2 * model.dv).param_groups[0]["lr"] == pytest.approx(0.01)
    own = training.model_copy(update={"lr_scale": {**training.lr_scale, "projector": 0.3}})
    assert make_optimizer(model, own, 2 * model.dv).param_groups[0]["lr"] == pytest.approx(0.003)


def test_prefix_starts_at_three_times_the_scale_of_the_llms_own_tokens(models: Path) -> None:
    model = small(models)
    batch = random_batch(64)
    with torch.no_grad():
        prefix = model.prefix(batch["vis_feats"], batch["telemetry"] / 3)
    scale = prefix[:, 1:].square().mean((0, 2)).sqrt() / model.llm.embed_rms  # after the BOS, which is the LLM's own
    assert prefix.shape == (64, 5, model.llm.d)
    assert ((scale > 1.5) & (scale < 4.8)).all(), scale


def state(model: SimV0Model) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


@pytest.mark.parametrize("mode", ["cached", "raw"])
def test_one_step_moves_every_trainable_module_and_nothing_else(
    models: Path, manifests: Path, make_config: MakeConfig, mode: str
) -> None:
    config = make_config(model={"confidence_head": True})
    encoder = load_encoder(config.model) if mode == "raw" else None
    model = build_model(config, 32, encoder, torch.device("cpu"))
    batch = random_batch()
    if mode == "raw":
        checked = CheckedDataset(ManifestDataset(manifests / "train.jsonl"), "train", F=4)
        batch = collate([checked[i] for i in range(6)])
    before = state(model)
    assert set(model.trainable_parameters()) == set(TRAINABLE)
    train_one_epoch(model, [batch], make_optimizer(model, config.training, 24), None, "cpu")
    moved = {name for name, value in state(model).items() if not torch.equal(value, before[name])}
    assert {name.split(".")[0] for name in moved} == set(TRAINABLE)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert moved == trained  # every tensor of them, and no frozen weight by a bit
    assert all(p.grad is None for name, p in model.named_parameters() if name not in trained)


def test_cached_and_raw_give_the_same_logits(models: Path, manifests: Path, make_config: MakeConfig) -> None:
    config = make_config()
    encoder = load_encoder(config.model)
    model = build_model(config, 32, encoder, torch.device("cpu")).eval()
    checked = CheckedDataset(ManifestDataset(manifests / "val.jsonl"), "val", F=4)
    raw = collate([checked[i] for i in range(5)])
    feats = torch.stack([encoder(checked[i]["frames"]) for i in range(5)])
    cached: Batch = {"vis_feats": feats.half(), "telemetry": raw["telemetry"]}
    for name, wanted in model(raw).items():
        # float16 keeps 11 bits: features are off by up to 1/2048 of their size
        assert torch.allclose(model(cached)[name], wanted, atol=5e-3), name
        assert torch.allclose(model({**cached, "vis_feats": feats})[name], wanted, atol=1e-5), name


def test_frozen_networks_stay_in_eval_mode(models: Path, make_config: MakeConfig) -> None:
    config = make_config()
    model = build_model(config, 32, load_encoder(config.model), torch.device("cpu")).train()
    assert model.heads.training
    assert not any(module.training for part in (model.llm, model.encoder) for module in part.modules())  # type: ignore


def test_visual_dropout_hides_pictures_and_features_and_keeps_their_mean(models: Path) -> None:
    model = small(models)
    feats = torch.randn(2000, 2, 32) + 3
    assert torch.equal(model.train()._hide(feats), feats)
    model.visual_dropout = 0.75
    torch.manual_seed(3)
    hidden = model._hide(feats)
    gone = (hidden == 0).flatten(1).all(1)
    assert 0.71 < gone.float().mean() < 0.79
    rest, seen = hidden[~gone], feats[~gone]
    assert 0.72 < (rest == 0).float().mean() < 0.78
    assert torch.equal(rest[rest != 0], 4 * seen[rest != 0])
    assert torch.equal(model.eval()._hide(feats), feats)


def test_visual_dropout_leaves_the_average_picture_and_the_other_tokens(models: Path) -> None:
    model, batch = small(models, bos=False), random_batch(64)
    whole = model.eval().prefix(batch["vis_feats"], batch["telemetry"])
    model.visual_dropout = 0.5
    hidden = model.train().prefix(batch["vis_feats"], batch["telemetry"])
    average = model.projector.bias * model.llm.embed_rms
    assert 20 <= (hidden[:, :2] == average).all(-1).all(-1).sum() <= 44
    assert torch.equal(hidden[:, 2:], whole[:, 2:])


def test_confidence_does_not_change_what_the_model_says(models: Path) -> None:
    model = small(models, confidence_head=True)
    model(random_batch())["confidence_logits"].sum().backward()
    assert {name for name, p in model.named_parameters() if p.grad is not None and p.grad.any()} == {
        "heads.confidence.weight",
        "heads.confidence.bias",
    }


def test_predictions_are_the_contracts_json() -> None:
    logits = {
        "risk_logits": torch.tensor([[0.0, 0.0, 0.0, 10.0], [9.0, 0.0, 0.0, 0.0]]),
        "reason_logits": torch.tensor([[1.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 1.0]]),
        "action_logits": torch.eye(6)[[2, 0]],
        "confidence_logits": torch.tensor([0.0, 100.0]),
    }
    first, second = (found.as_json() for found in predictions(logits, ["a", "b"], alarm_threshold=0.5))
    keys = ["sample_id", "risk", "reason", "action", "probs", "alarm", "confidence", "unlike", "distance"]
    assert list(first) == keys
    assert (first["sample_id"], first["risk"], first["reason"], first["action"]) == ("a", "high", "human", "stop")
    assert (first["alarm"], second["alarm"]) == (True, False)
    assert (first["confidence"], second["confidence"]) == (0.5, 1.0)
    assert first["probs"]["action"]["stop"] == pytest.approx(torch.e / (torch.e + 5))
    assert sum(first["probs"]["risk"].values()) == pytest.approx(1)
    assert predictions(logits, ["a", "b"])[0].alarm is None


def test_what_does_not_fit_is_refused(models: Path, make_config: MakeConfig) -> None:
    with pytest.raises(ModelError, match=r"^model.K: expected 1..F \(4\), found 5$"):
        small(models, K=5)
    encoder = load_encoder(make_config().model)
    with pytest.raises(ModelError, match=r"^model.dv: expected 16, but the encoder gives features of width 32$"):
        small(models, dv=16, encoder=encoder)
    with pytest.raises(ConfigError, match=r"^model.d: the config says 63, but .*llm has width 64$"):
        build_model(make_config(model={"d": 63}), 32, None, torch.device("cpu"))
    with pytest.raises(ModelError, match="the batch holds frames, but this model was built without an encoder"):
        small(models)({"frames": torch.zeros(1, 4, 3, 32, 32), "telemetry": torch.zeros(1, 8)})
    thawed = small(models)
    next(thawed.llm.parameters()).requires_grad_(True)
    with pytest.raises(ModelError, match=r"^llm\..*: must stay frozen$"):
        thawed.trainable_parameters()
