"""The report: one file, no network, no script, every number that evaluate wrote, and the windows that it missed."""

import html
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import MakeConfig

from simv0.alarm import choose_alarm
from simv0.config import EvaluationConfig
from simv0.errors import DataError
from simv0.evaluation import evaluate_checkpoint
from simv0.fit import fit
from simv0.labels import HEADS, HIGH
from simv0.report import Evaluated, intervals, render
from simv0.split_labels import Labels

N, N_HIGH = 200, 40


def evaluated(**changes: Any) -> Evaluated:
    rng = np.random.default_rng(0)
    ids = {head: rng.integers(0, len(names), N) for head, names in HEADS.items()}
    ids["risk"] = np.where(np.arange(N) < N_HIGH, HIGH, ids["risk"] % HIGH)
    logits = {
        head: (rng.normal(size=(N, len(names))) + 2 * np.eye(len(names))[ids[head]]).astype(np.float32)
        for head, names in HEADS.items()
    }
    names = [f"run{i % 8}-{i}" for i in range(N)]
    labels = Labels(rng.normal(size=(N, 8)).astype(np.float32), ids, np.ones(N, np.float32), names, None)
    metrics = {"risk_high_recall": 0.5, "risk_macro_f1": 0.625, "action_macro_f1": None, "alarm_recall": 0.95}
    fields: dict[str, Any] = {
        "about": {"checkpoint": "best.pt", "data": "val", "epoch": 3, "windows": N},
        "metrics": metrics,
        "logits": logits,
        "labels": labels,
        "alarm": choose_alarm(logits, ids, names, None, EvaluationConfig()),
        "epoch": 3,
        "baselines": {"majority class": {"risk_macro_f1": 0.123}},
        "history": ([{"epoch": 1, "loss": 2.0}], [{"epoch": 1, "loss": 1.5, "composite": None}]),
        "frames": lambda i: torch.full((4, 3, 20, 30), i, dtype=torch.uint8),
    }
    return Evaluated(**{**fields, **changes})


@pytest.fixture(scope="module")
def page() -> str:
    return render(evaluated())


def words(page: str) -> str:
    return html.unescape(re.sub(r"<[^>]+>", " ", page))


def test_the_page_stands_alone(page: str) -> None:
    assert "<script" not in page
    assert not re.findall(r'(?:src|href)="(?!data:|#)[^"]*"', page)
    assert "default-src 'none'" in page
    assert "prefers-color-scheme: dark" in page
    assert "currentColor" in page
    assert "#010203" not in page


def test_it_shows_metrics_baselines_alarm_and_misses(page: str) -> None:
    this = evaluated()
    text = words(page)
    assert "risk, macro F1 0.625" in " ".join(text.split())
    assert "majority class" in text
    assert "0.123" in text
    assert this.alarm is not None
    assert str(this.alarm) in text
    assert this.alarm.chosen is not None
    assert f"chosen, P(high) ≥ {this.alarm.chosen.threshold:.3f}" in text
    missed = re.search(r"High windows that raised no alarm.*?(\d+) windows", text, re.S)
    assert missed is not None
    assert int(missed[1]) == N_HIGH - round(this.alarm.chosen.recall.value * N_HIGH) == 2
    assert page.count("<img ") == 4 * (2 + 8)
    assert "bootstrap over recordings" in text


def test_what_is_not_there_is_said() -> None:
    def gone(window: int) -> torch.Tensor:
        raise DataError("a.png: there is no such image")

    page = words(render(evaluated(frames=gone, baselines="the train split is not here", history=([], []))))
    assert "a.png: there is no such image" in page
    assert "Not compared: the train split is not here" in page
    assert "Training" not in page
    labels = evaluated().labels
    calm = Labels(labels.telemetry, {**labels.ids, "risk": np.zeros(N, int)}, labels.weight, labels.sample_id, None)
    blind = words(render(evaluated(labels=calm, alarm=None, frames="a <b>")))
    assert "No window is high." in blind
    assert "Their frames are not shown: a <b>" in blind


def test_names_of_the_data_cannot_become_markup() -> None:
    labels = evaluated().labels
    evil = [f"<script>alert({i})</script>" for i in range(N)]
    page = render(evaluated(labels=Labels(labels.telemetry, labels.ids, labels.weight, evil, None)))
    assert "<script" not in page
    assert "&lt;script&gt;alert(" in page


def test_intervals_hold_the_value_and_narrow_with_more_windows() -> None:
    this = evaluated()
    low, high = intervals(this.logits, this.labels, None)["action_accuracy"]
    accuracy = float((this.logits["action"].argmax(1) == this.labels.ids["action"]).mean())
    assert low < accuracy < high
    normal = 2 * 1.96 * np.sqrt(accuracy * (1 - accuracy) / N)
    assert high - low == pytest.approx(normal, rel=0.2)


def test_evaluate_writes_it_with_frames_and_baselines_and_lives_without(
    make_config: MakeConfig, features: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = fit(make_config(cache={"dir": str(features)}))
    _, folder = evaluate_checkpoint(run.best)
    text = words((folder / "report.html").read_text())
    assert "linear, features + telemetry" in text
    assert "alarm: no threshold: val has 4 windows" in text or 'of risk "high"; at least 20 are needed' in text
    assert "Training" in text
    (folder / "report.html").unlink()
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    evaluate_checkpoint(run.best)
    assert not (folder / "report.html").exists()
    assert "evaluation/report.html needs matplotlib: pip install 'simv0[report]'" in caplog.text
    assert json.loads((folder / "metrics.json").read_text())["windows"] == 20


def test_no_sideways_scrolling_in_a_browser_at_phone_and_desktop_width(page: str, tmp_path: Path) -> None:
    """The real page in headless Chromium: nothing is wider than the window, no table wider than its card."""
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("chromium is not installed")
    page = page.replace("default-src 'none'", "default-src 'unsafe-inline'")
    beyond = "[document.documentElement, ...document.querySelectorAll('.wide')].map(e => e.scrollWidth - e.clientWidth)"
    probe = f"<script>onload = () => parent.postMessage({beyond}.join(' '), '*')</script>"
    (tmp_path / "report.html").write_text(page.replace("</body>", probe + "</body>"))
    frame = "<script>onmessage = e => document.title = 'beyond: ' + e.data</script><iframe src=report.html width=%d>"
    for width in (375, 500, 1280):  # a window of its own is never narrower than 500 px in headless Chromium
        path = tmp_path / f"{width}.html"
        path.write_text(f"<title></title>{frame % width}</iframe>")
        command = [chromium, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--dump-dom"]
        command += ["--virtual-time-budget=3000", f"--user-data-dir={tmp_path / 'profile'}", "--window-size=1400,900"]
        done = subprocess.run([*command, path.as_uri()], capture_output=True, text=True, timeout=60, check=True)
        title = re.search(r"<title>beyond: ([\d -]+)</title>", done.stdout)
        assert title is not None
        assert set(title[1].split()) == {"0"}, width
