"""What pretraining is worth: the same recipe around a randomised copy of the LLM, trained, resumed and compared."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from commands import run as command
from fit_world import Killed, moved, outcome
from ranks import on_ranks
from safetensors.torch import load_file
from small_world import MakeConfig
from strikes import after_writing

from simv0.config.schema import Config
from simv0.errors import ConfigError
from simv0.evaluation.evaluated import Evaluated
from simv0.evaluation.run import evaluate_checkpoint
from simv0.llm.load import load_llm
from simv0.llm.randomised import save_randomised
from simv0.training.fit import fit
from simv0.training.rundir import RunDir


def controlled(config: Config, root: Path) -> tuple[Config, RunDir]:
    """The config with a control, in `root`; and the control's run."""
    return moved(config, root, llm_control=True), RunDir(root / "llm_control")


def test_the_copy_is_the_same_llm_with_other_weights(models: Path, tmp_path: Path) -> None:
    own = shutil.copytree(models / "llm", tmp_path / "llm")
    (own / "tokenizer_config.json").write_text("{}")
    torch.manual_seed(7)
    for folder in ("a", "b"):
        save_randomised(str(own), None, tmp_path / folder, seed=3)
    drawn = torch.rand(1)
    torch.manual_seed(7)
    assert drawn == torch.rand(1)
    save_randomised(str(own), None, tmp_path / "c", seed=4)
    llm, a, b, c = (load_llm(str(tmp_path / name)) for name in ("llm", *"abc"))
    shapes = {name: weight.shape for name, weight in llm.named_parameters()}
    assert {name: weight.shape for name, weight in a.named_parameters()} == shapes
    x = torch.randn(2, 3, llm.d)
    assert torch.equal(a(x), b(x))
    assert not torch.allclose(a(x), c(x), atol=0.01)
    weights = torch.cat([weight.flatten() for weight in a.parameters() if weight.ndim > 1])
    assert float(weights.std()) == pytest.approx(0.02, rel=0.05)  # initializer_range
    assert (tmp_path / "a" / "tokenizer_config.json").read_text() == "{}"
    assert not list(tmp_path.glob("*.unfinished"))


def test_the_copy_is_as_small_on_the_disk_as_the_llm(models: Path, tmp_path: Path) -> None:
    shutil.copytree(models / "llm", tmp_path / "llm")
    config = json.loads((tmp_path / "llm" / "config.json").read_text())
    (tmp_path / "llm" / "config.json").write_text(json.dumps({**config, "dtype": "bfloat16"}))
    save_randomised(str(tmp_path / "llm"), None, tmp_path / "copy", seed=0)
    weights = load_file(tmp_path / "copy" / "model.safetensors")
    assert {weight.dtype for weight in weights.values()} == {torch.bfloat16}


def test_a_control_is_trained_and_resumed_like_any_run(config: Config, unbroken: object, tmp_path: Path) -> None:
    whole, control = controlled(config, tmp_path / "whole")
    assert outcome(fit(whole)) == unbroken  # the run itself is what it was
    wanted = outcome(control)
    assert wanted != unbroken

    broken, control = controlled(config, tmp_path / "broken")

    def die(count: int, path: Path) -> None:
        if path.parents[1] == control.root:
            raise Killed

    with after_writing("last.pt", die), pytest.raises(Killed):
        fit(broken)
    main = RunDir(tmp_path / "broken")
    before = main.last.read_bytes()
    fit(broken, resume=True)
    assert main.last.read_bytes() == before
    assert outcome(control) == wanted

    later = moved(config, tmp_path / "later")
    fit(later)
    fit(controlled(config, tmp_path / "later")[0], resume=True)  # asked for when the run was finished
    assert outcome(RunDir(tmp_path / "later" / "llm_control")) == wanted
    fit(later, overwrite=True)
    assert not (tmp_path / "later" / "llm_control").exists()


def test_evaluate_says_what_pretraining_is_worth(make_config: MakeConfig, features: Path, tmp_path: Path) -> None:
    config = make_config(cache={"dir": str(features)}, training={"llm_control": True, "epochs": 1})
    run = fit(config)
    shown = command("evaluate", "--ckpt", run.best).stdout
    found = json.loads((run.evaluation / "metrics.json").read_text())
    alone, _ = evaluate_checkpoint(tmp_path / "run/llm_control/checkpoints/best.pt", baselines=False)
    for key in ("risk_macro_f1", "action_macro_f1", "risk_high_auroc", "risk_high_average_precision"):
        assert found["llm_control"][key] == pytest.approx(alone.metrics[key])
    worth = found["comparison"]["pretraining"]
    ours, theirs = (each["risk_high_average_precision"] for each in (found, found["llm_control"]))
    assert worth["value"] == pytest.approx(ours - theirs)
    (said,) = [line for line in found["comparison"]["sentences"] if line.startswith("Pretraining ")]
    assert said in shown
    assert "its LLM randomised" in shown
    page = (run.evaluation / "report.html").read_text()
    assert "its LLM randomised" in page
    assert said.replace('"', "&#34;") in page


@pytest.mark.usefixtures("no_report")
def test_a_control_of_another_training_is_not_compared(config: Config, tmp_path: Path) -> None:
    run, other = fit(moved(config, tmp_path / "run", seed=5)), fit(controlled(config, tmp_path / "other")[0])
    assert evaluate_checkpoint(other.best)[0].compared.keys() == {"this checkpoint", "its LLM randomised"}
    (other.root / "llm_control").rename(run.root / "llm_control")
    stale, _ = evaluate_checkpoint(run.best)
    assert stale.control is None
    assert "llm_control is not compared: it is of another training: training.seed: started with 0, now 5" in stale.notes


@pytest.mark.usefixtures("no_report")
def test_two_processes_train_and_compare_a_control_as_one_does(config: Config, tmp_path: Path) -> None:
    one, two = (controlled(config, tmp_path / name)[0] for name in ("one", "two"))

    def work(config: Config) -> Evaluated:
        return evaluate_checkpoint(fit(config).best)[0]

    wanted = work(one)
    assert on_ranks(2, lambda: work(two) and None) == [0, 0]
    found = json.loads((tmp_path / "two/evaluation/metrics.json").read_text())
    assert wanted.control is not None
    assert found["llm_control"]["loss"] == pytest.approx(wanted.control["loss"], rel=1e-4)
    assert found["comparison"]["pretraining"]["value"] == pytest.approx(wanted.comparison.pretraining.value, abs=1e-3)  # type: ignore[union-attr]


def test_an_llm_with_code_of_its_own_is_refused(make_config: MakeConfig) -> None:
    with pytest.raises(ConfigError, match="only an LLM of transformers' own families can be randomised"):
        make_config(model={"trust_remote_code": True}, training={"llm_control": True})
