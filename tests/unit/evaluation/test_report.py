"""The report: one file, no network, no script, every number that evaluate wrote, and the windows that it missed."""

import base64
import html
import io
import json
import re
import shutil
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from small_world import MakeConfig

from simv0.alarm.threshold import choose_alarm
from simv0.config.schema import EvaluationConfig
from simv0.data.labels import Labels
from simv0.errors import DataError
from simv0.evaluation.evaluated import Evaluated, intervals
from simv0.evaluation.plots import telemetry_figure
from simv0.evaluation.report import render
from simv0.evaluation.run import evaluate_checkpoint
from simv0.labels import HEADS, HIGH
from simv0.training.fit import fit

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
    groups = [f"run{i % 8}" for i in range(N)]
    labels = Labels(rng.normal(size=(N, 8)).astype(np.float32), ids, np.ones(N, np.float32), names, groups)
    metrics = {"risk_high_recall": 0.5, "risk_macro_f1": 0.625, "action_macro_f1": None, "alarm_recall": 0.95}
    fields: dict[str, Any] = {
        "about": {"checkpoint": "best.pt", "data": "val", "epoch": 3, "windows": N},
        "metrics": metrics,
        "logits": logits,
        "labels": labels,
        "alarm": choose_alarm(logits, ids, None, EvaluationConfig()),
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
    assert "risk, macro F1 0.625 200 " in " ".join(text.split())
    assert "majority class" in text
    assert "0.123" in text
    assert this.alarm is not None
    assert str(this.alarm) in text
    assert this.alarm.chosen is not None
    assert f"chosen, P(high) ≥ {this.alarm.chosen.threshold:.3f}" in text
    missed = re.search(r"High windows without an alarm.*?(\d+) windows", text, re.S)
    assert missed is not None
    assert int(missed[1]) == N_HIGH - round(this.alarm.chosen.recall.value * N_HIGH) == 1
    assert page.count("<img ") == 4 * (1 + 8)
    assert "bootstrap over 8 recordings" in text


def test_what_is_not_there_is_said() -> None:
    def gone(window: int) -> torch.Tensor:
        raise DataError("a.png: image not found")

    page = words(render(evaluated(frames=gone, baselines="the train split is not available", history=([], []))))
    assert "a.png: image not found" in page
    assert "Not compared: the train split is not available" in page
    assert "Training" not in page
    labels = evaluated().labels
    calm = Labels(labels.telemetry, {**labels.ids, "risk": np.zeros(N, int)}, labels.weight, labels.sample_id, None)
    blind = words(render(evaluated(labels=calm, alarm=None, frames="a <b>")))
    assert 'NO HIGH: none of 200 windows is of risk "high"' in blind
    assert "Their frames are not shown: a <b>" in blind


def test_a_checkpoint_without_an_alarm_promises_nothing() -> None:
    text = words(render(evaluated(alarm=None)))
    assert "alarm: this checkpoint carries none, only best.pt does" in text
    assert "promised" not in text


def told(page: str) -> str:
    """The words of the box that stands before the figures."""
    found = re.search(r'<div class="cautions">(.*?)</div>', page, re.S)
    return " ".join(words(found[1]).split()) if found else ""


def of_windows(n: int, **changes: Any) -> Evaluated:
    """The first n windows, judged right."""
    this = evaluated()
    ids = {head: this.labels.ids[head][:n] for head in HEADS}
    logits = {head: 9 * np.eye(len(names), dtype=np.float32)[ids[head]] for head, names in HEADS.items()}
    labels = Labels(this.labels.telemetry[:n], ids, np.ones(n, np.float32), [f"w{i}" for i in range(n)], None)
    about = {"checkpoint": "best.pt", "data": "val", "epoch": 3, "windows": n}
    perfect = {"risk_high_recall": 1.0, "risk_macro_f1": 1.0, "action_macro_f1": 1.0, "composite": 1.0, "macro_f1": 1.0}
    fields = {"labels": labels, "logits": logits, "about": about, "metrics": perfect, "alarm": None}
    return evaluated(**{**fields, **changes})


def test_a_perfect_score_on_few_or_leaked_windows_is_no_triumph() -> None:
    leak = "LEAKAGE: 1 group appears in both train and val (first: 'a'); the val figures will flatter the model."
    page = render(of_windows(3, leakage=[leak], baselines={"linear, telemetry": {"composite": 1.0}}))
    box, text = told(page), " ".join(words(page).split())
    assert box.startswith(f"Before you believe these figures {leak} FEW WINDOWS: 3 of 3 are of risk ")
    assert "recall, 1.000, may be anything from 0.292 to 1.000 (95 %)." in box  # 0.025 ** (1 / 3)
    assert "ABSENT: no window has risk none, low, med; reason" in box
    assert "PERFECT: every risk and action is right." in box
    assert "A LINEAR MODEL is as good in composite: 'linear, telemetry' has 1.000, this checkpoint 1.000 (95 %" in box
    assert text.index("Before you believe") < text.index("How good (on leaked windows)")
    assert "high, called high (argmax) 1.000 3 high 0.292 to 1.000" in text
    assert "composite 1.000 3 0.292 to 1.000" in text


def test_nothing_is_said_where_nothing_is_amiss(page: str) -> None:
    assert told(page) == ""
    assert "leaked" not in words(page)


@pytest.mark.parametrize(
    ("score", "told_so"),
    [(0.30, None), (0.74, "A LINEAR MODEL is as good"), (0.95, "A LINEAR MODEL is better")],
)
def test_a_simple_model_is_compared_within_the_interval(score: float, told_so: str | None) -> None:
    this = evaluated(
        metrics={"composite": 0.75, "macro_f1": 0.7},
        baselines={"majority class": {"composite": 0.0}, "linear, telemetry": {"composite": score}},
    )
    low, high = this.spread["composite"]
    assert 0.6 < low < 0.74 < 0.75 < high < 0.9
    expected = f"{told_so} in composite: 'linear, telemetry' has {score:.3f}, this checkpoint 0.750 (95 % interval"
    assert [line[: len(expected)] for line in this.cautions] == ([expected] if told_so else [])
    heads = {"composite": 0.75, "risk_macro_f1": 0.9, "action_macro_f1": 0.7}
    near = this.spread["risk_macro_f1"][0] + 0.001
    simple = {"linear, telemetry": {"composite": 0.3, "risk_macro_f1": near, "action_macro_f1": 0.3}}
    (line,) = evaluated(metrics=heads, baselines=simple).cautions
    assert line.startswith("A LINEAR MODEL is as good in risk_macro_f1: 'linear, telemetry' has ")


def test_the_page_names_its_origin_and_each_class(page: str) -> None:
    facts = {"run": "/runs/7", "LLM": "Qwen/Qwen2.5-0.5B", "command": "simv0 evaluate --ckpt best.pt"}
    text = " ".join(words(render(evaluated(facts=facts, notes=["Chosen on this split."]))).split())
    assert "run /runs/7 LLM Qwen/Qwen2.5-0.5B command simv0 evaluate --ckpt best.pt Chosen on this split." in text
    this = evaluated()
    said, is_high = this.logits["risk"].argmax(1) == HIGH, this.labels.ids["risk"] == HIGH
    right = int((said & is_high).sum())
    precision, recall, f1 = right / said.sum(), right / N_HIGH, 2 * right / (said.sum() + N_HIGH)
    assert f"high {precision:.3f} {recall:.3f} {f1:.3f} {N_HIGH} " in text
    assert "The data: 200 windows of val" in text
    assert "gx, rad/s" in text


def test_strips_begin_with_the_newest_frame_and_tell_the_telemetry() -> None:
    newest_is_white = torch.zeros(4, 3, 20, 30, dtype=torch.uint8)
    newest_is_white[3] = 255
    telemetry = np.tile(np.float32([0.126, -0.001, 9.81, 0, 0, 0.5, 1.25, -0.5]), (N, 1))
    labels = evaluated().labels
    page = render(
        evaluated(
            frames=lambda i: newest_is_white,
            labels=Labels(telemetry, labels.ids, labels.weight, labels.sample_id, None),
        )
    )
    strip = page[page.index('<div class="strip">') :]
    shown = re.findall(r'base64,([^"]+)"><figcaption>([^<]+)<', strip)[:4]
    assert [name for _, name in shown] == ["newest", "frame 3", "frame 2", "frame 1"]
    values = [np.asarray(Image.open(io.BytesIO(base64.b64decode(jpeg)))).mean() for jpeg, _ in shown]
    assert [round(value) for value in values] == [255, 0, 0, 0]
    numbers = re.findall(r"<span>([^<]+)</span>", strip)[:8]
    assert numbers[:4] == ["ax 0.13 m/s²", "ay 0.00 m/s²", "az 9.81 m/s²", "gx 0.00 rad/s"]
    assert numbers[6:] == ["v 1.25 m/s", "w -0.50 rad/s"]


@pytest.mark.parametrize("values", [[9.79, 9.83], [-0.013, 0.021], [9.80665, 9.80665], [-12345.0, 9876.5], [0.0, 1e-7]])
def test_tick_labels_of_a_histogram_keep_apart(values: list[float]) -> None:
    figure = telemetry_figure(2, np.float32(np.linspace(*values, 50)))
    figure.tight_layout(pad=0.4)
    figure.canvas.draw()
    boxes = [label.get_window_extent() for label in figure.axes[0].get_xticklabels() if label.get_text()]
    limits = figure.axes[0].get_window_extent()
    boxes = sorted((box.x0, box.x1) for box in boxes if limits.x0 - 1 <= (box.x0 + box.x1) / 2 <= limits.x1 + 1)
    assert len(boxes) >= 1
    assert all(right + 2 < left for (_, right), (left, _) in pairwise(boxes))
    assert boxes[-1][1] <= figure.bbox.x1 + 2


def test_names_of_the_data_cannot_become_markup() -> None:
    labels = evaluated().labels
    evil = [f"<script>alert({i})</script>" for i in range(N)]
    page = render(evaluated(labels=Labels(labels.telemetry, labels.ids, labels.weight, evil, None)))
    assert "<script" not in page
    assert "&lt;script&gt;alert(" in page


def test_a_notebooks_figures_stay_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)  # importing it would choose a backend
    assert "<svg" in render(evaluated())


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
    monkeypatch.setattr("simv0.baselines.networks.LEAST_STEPS", 1)
    found, folder = evaluate_checkpoint(run.best)
    text = words((folder / "report.html").read_text())
    assert found.facts["run"] == str(run.root)
    assert found.facts["evaluated on"].endswith("data0/val.jsonl")
    assert found.facts["windows"] == "20, 4 of them high; 1 recordings"
    assert found.facts["features"] == str(features / "val.h5")
    assert found.facts["vision encoder"].endswith("vision, fp32")
    assert found.facts["LLM"] == "llm"
    assert all(value in text for value in found.facts.values())
    assert not any("LEAKAGE" in line for line in found.cautions)
    written = json.loads((folder / "metrics.json").read_text())
    assert written["cautions"] == found.cautions
    assert written["classes"]["risk"]["high"]["support"] == 4
    assert "linear, features + telemetry" in text
    assert '"no LLM" and "small transformer" were trained for 1 of 2 steps' in text
    assert found.comparison is not None
    assert found.comparison.sentences[0] in " ".join(text.split())
    assert all(str(worth) in text for worth in found.comparison.over.values())
    assert "alarm: no threshold: val has 4 windows" in text
    assert "Training" in text
    (folder / "report.html").unlink()
    again = evaluate_checkpoint(run.best, data=str(features / "train.h5"), baselines=False)[0]
    assert again.cautions[0] == ("LEAKAGE: train and train.h5 are the same windows: the figures measure memorisation.")
    assert evaluate_checkpoint(run.best, split="train", baselines=False)[0].cautions[0].startswith("TRAINED ON: ")
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
    for width in (375, 500, 1100, 1280):  # a window of its own is never narrower than 500 px in headless Chromium
        path = tmp_path / f"{width}.html"
        path.write_text(f"<title></title>{frame % width}</iframe>")
        command = [chromium, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--dump-dom"]
        command += ["--virtual-time-budget=3000", f"--user-data-dir={tmp_path / 'profile'}", "--window-size=1400,900"]
        done = subprocess.run([*command, path.as_uri()], capture_output=True, text=True, timeout=60, check=True)
        title = re.search(r"<title>beyond: ([\d -]+)</title>", done.stdout)
        assert title is not None
        assert set(title[1].split()) == {"0"}, width
