"""The benchmarks run, and their rows say what the page on performance says they say."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks import startup, train_step


def test_train_step_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    variants = [name for name in train_step.VARIANTS if name != "simv0"]  # compiling takes too long here
    options = {"arch": "llama-64", "layers": 2, "batch": 3, "K": 9, "rounds": 1, "patience": 0}
    argv = [word for key, value in options.items() for word in (f"--{key}", str(value))]
    monkeypatch.setattr(sys, "argv", ["x", *argv, "--variants", ",".join(variants), "--json", str(tmp_path / "j")])
    train_step.main()
    rows = {row["variant"]: row for row in json.loads((tmp_path / "j").read_text())["rows"]}
    assert list(rows) == ["limit", "its products with plain weights", *variants]
    assert rows["its products with plain weights"]["fraction"] <= 1
    limit = rows["limit"]["samples_per_s"]
    for row in rows.values():
        assert row["arch"] == "llama-64"
        assert row["fraction"] == pytest.approx(row["samples_per_s"] / limit, abs=1e-3)
    for name in ("causal_fp32_not_frozen", "causal_fp32", "auto_fp32"):
        assert rows[name]["gradient_error"] < 1e-4  # they all compute the same
    for name in ("autocast", "reference", "simv0_uncompiled"):
        assert rows[name]["gradient_error"] < 0.025
        assert rows[name]["gradient_cosine"] > 0.999


def test_startup_books_every_second_once(tmp_path: Path) -> None:
    """What torch imports is torch's; after it, parts of torch are its compiler's."""
    report, code = tmp_path / "report.json", "import time, torch, torch.fx.experimental.symbolic_shapes, simv0.errors"
    began = time.perf_counter()
    subprocess.run([sys.executable, startup.MARKS, report, "-c", code], check=True)
    spent = json.loads(report.read_text())["cpu"]
    assert {"python", "import torch", "import torch's compiler", "import simv0"} <= spent.keys()
    assert not {"import numpy", "import sympy"} & spent.keys()
    assert 0 < sum(spent.values()) < (os.cpu_count() or 1) * (time.perf_counter() - began)
