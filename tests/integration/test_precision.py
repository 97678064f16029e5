"""16 bit where the machine has units for it, fp32 with the same weights where it has not."""

import copy
import logging
import os
import pickle
import sys
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
import torch
from fit_world import fit_until, outcome
from ranks import on_ranks
from small_world import MakeConfig
from stream_world import GOOD, F, best, image
from strikes import while_running

from cache.pipeline import cache_vis
from simv0.config.schema import Config, TrainingConfig
from simv0.cpu_step.packed import PackedLinear
from simv0.data.jsonl import read_jsonl
from simv0.evaluation.predict_windows import predict_windows
from simv0.evaluation.run import evaluate_checkpoint
from simv0.labels import RISKS
from simv0.model.checkpoint import load_checkpoint, save_checkpoint
from simv0.predict import Predictor
from simv0.runtime.device import compute_dtype
from simv0.training.fit import fit
from simv0.training.rundir import RunDir
from simv0.vision.encoder import load_encoder

pytestmark = pytest.mark.usefixtures("no_report")

CPU = torch.device("cpu")


def machine(monkeypatch: pytest.MonkeyPatch, units: str | None) -> None:
    """What PyTorch says of the CPU; bf16 products without units are slow, but right."""
    facts = MappingProxyType({"avx2": True, "avx512_bf16": False, "amx_bf16": False, units or "avx": True})
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: facts)


@pytest.mark.parametrize(
    ("units", "training", "dtype"),
    [
        ("amx_bf16", {}, torch.bfloat16),
        ("avx512_bf16", {}, torch.bfloat16),
        (None, {}, torch.float32),
        ("amx_bf16", {"amp": False}, torch.float32),
        (None, {"amp_dtype": "fp16"}, torch.float16),  # refused elsewhere, by name
    ],
)
def test_type_of_the_llm(units: str | None, training: Any, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, units)
    assert compute_dtype(TrainingConfig(**training), CPU) is dtype


def test_an_encoder_that_is_widened_keeps_its_weights(make_config: MakeConfig) -> None:
    model = make_config().model
    frames = torch.stack([image(seed) for seed in range(4)])
    narrow, exact, widened = (load_encoder(model, precision) for precision in ("bf16", "fp32", "bf16"))
    widened.widen()
    assert widened.identity == narrow.identity != exact.identity
    weights = dict(narrow.visual.state_dict())
    for name, weight in widened.visual.state_dict().items():
        assert weight.dtype == torch.float32
        assert torch.equal(weight, weights[name].float()), name
    error = (widened(frames) - narrow(frames)).norm() / exact(frames).norm()
    assert 1e-5 < error < 0.02
    assert (widened(frames) - exact(frames)).norm() < (narrow(frames) - exact(frames)).norm()


def test_a_cache_in_bf16_is_of_bf16_products_everywhere(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever asks for it waits for it: a file's features are all made in one way."""
    machine(monkeypatch, None)
    assert load_encoder(make_config().model, "bf16").dtype is torch.bfloat16
    assert load_encoder(make_config().model, "auto").dtype is torch.float32


def trained_with_units(make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch) -> Config:
    machine(monkeypatch, "avx512_bf16")
    config = make_config(cache={"precision": "auto"}, training={"amp": True})
    cache_vis(config)
    fit(config)
    meta = load_checkpoint(best(config)).meta
    assert meta.provenance["llm_dtype"] == "torch.bfloat16"
    assert (meta.encoder or {})["vision_precision"] == "bf16"
    return config


def test_a_checkpoint_goes_from_a_machine_with_units_to_one_without(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "simv0.cpu_step.single", None)  # as without numba
    config = trained_with_units(make_config, monkeypatch)
    frames = torch.stack([image(seed) for seed in range(F)])
    there = Predictor.load(best(config))
    machine(monkeypatch, None)
    here = Predictor.load(best(config))
    assert (there.model.llm.dtype, here.model.llm.dtype) == (torch.bfloat16, torch.float32)
    assert here.model.encoder is not None
    assert here.model.encoder.dtype == torch.float32
    wanted, found = there.predict(frames, GOOD), here.predict(frames, GOOD)
    for name in RISKS:
        assert found["probs"]["risk"][name] == pytest.approx(wanted["probs"]["risk"][name], abs=0.01)
    assert found["probs"] != wanted["probs"]


def test_training_without_units_is_training_in_fp32(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    data = {"dataset_class_path": "fit_world.VisFeats"}
    machine(monkeypatch, None)
    allowed = outcome(
        fit(make_config(data=data, training={"amp": True}, output={"output_dir": str(tmp_path / "allowed")}))
    )
    asked = outcome(
        fit(make_config(data=data, training={"amp": False}, output={"output_dir": str(tmp_path / "asked")}))
    )
    assert allowed == asked


def test_a_run_that_goes_on_in_another_type_says_so(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    config = make_config(
        data={"dataset_class_path": "fit_world.VisFeats"}, training={"amp": True, "checkpoint_every_steps": 1}
    )
    machine(monkeypatch, "amx_bf16")
    fit_until(config, 2)
    machine(monkeypatch, None)
    with caplog.at_level(logging.WARNING, "simv0"):
        run: RunDir = fit(config, resume=True)
    assert (
        "resumed with other versions: llm_dtype torch.bfloat16 -> torch.float32: the weights may differ by rounding"
        in caplog.text
    )
    assert load_checkpoint(run.last).meta.epoch == 2


@pytest.mark.skipif(
    "fbgemm" not in torch.backends.quantized.supported_engines, reason="this PyTorch has no FBGEMM to hold fp16 with"
)
@pytest.mark.parametrize("way", ["compiled", "packed"])
@pytest.mark.parametrize("amp", [True, False])
def test_a_robot_holds_16_bit_only_where_amp_allows_it(
    amp: bool, way: str, make_config: MakeConfig, manifests: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a stream and in `simv0 predict`; what it says is what evaluate says, up to fp16."""
    machine(monkeypatch, None)
    config = make_config(training={"amp": amp})
    cache_vis(config)
    fit(config)
    if way == "packed":
        monkeypatch.setitem(sys.modules, "simv0.cpu_step.single", None)  # as without numba
        kind: type[Any] = PackedLinear
    else:
        kind = pytest.importorskip("simv0.cpu_step.single", reason="no numba", exc_type=ImportError).SingleStack
    layers = list(Predictor.load(best(config)).model.llm.modules())
    assert any(isinstance(layer, kind) for layer in layers) == amp
    calls: list[int] = []
    with while_running(kind, lambda count, _: calls.append(count)):
        predicted = list(predict_windows(best(config), manifests / "val.jsonl"))
    assert bool(calls) == amp
    _, folder = evaluate_checkpoint(best(config), baselines=False)
    for row, line in zip(predicted, read_jsonl(folder / "predictions.jsonl"), strict=True):
        for name, p in row["probs"]["risk"].items():
            assert p == pytest.approx(line["probs"]["risk"][name], abs=2e-3)


def test_a_checkpoint_of_fp16_predicts_without_its_gpu(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine(monkeypatch, None)
    config = make_config()
    cache_vis(config)
    run = fit(config)
    content = load_checkpoint(run.best)
    tree = {**content.meta.config, "training": {**content.meta.config["training"], "amp": True, "amp_dtype": "fp16"}}
    meta = content.meta.model_copy(update={"config": tree})
    save_checkpoint(run.best, content.model_copy(update={"meta": meta}))
    assert Predictor.load(run.best).model.llm.dtype is torch.float32


def test_processes_of_two_kinds_of_machine_are_refused(make_config: MakeConfig, tmp_path: Path) -> None:
    """Their gradients would be sums of two roundings, and a split LLM would not fit together."""
    config = make_config(data={"dataset_class_path": "fit_world.VisFeats"}, training={"amp": True})

    def train() -> None:
        units = os.environ["RANK"] == "0"
        torch.cpu.get_capabilities = lambda: MappingProxyType({"amx_bf16": units})  # in a process of its own
        fit(config)

    assert on_ranks(2, train, tmp_path / "said") == [1, 1]
    assert "differs from rank 0 in: type of the LLM (units for bf16);" in (tmp_path / "said").read_text()


@pytest.mark.parametrize("amp", [True, False])
def test_a_predictor_travels(make_config: MakeConfig, features: Path, amp: bool) -> None:
    """Pickled, as spawn and Ray do, and deep-copied: the same probabilities to the last bit."""
    run = fit(make_config(cache={"dir": str(features)}, training={"epochs": 1, "amp": amp}))
    predictor = Predictor.load(run.best)
    generator = torch.Generator().manual_seed(0)
    window = torch.randint(0, 256, (4, 3, 24, 40), dtype=torch.uint8, generator=generator), torch.ones(8)
    wanted = predictor.predict(*window)
    for there in (pickle.loads(pickle.dumps(predictor)), copy.deepcopy(predictor)):
        assert there.predict(*window) == wanted
