"""The alarm: thresholds worked out by hand, known temperatures, intervals that cover, and what train stores."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from small_world import MakeConfig

from simv0.alarm.calibration import calibration_error, fit_temperature, softmax
from simv0.alarm.confirmation import Confirmation
from simv0.alarm.rates import rate_of, recordings
from simv0.alarm.stored import Alarm
from simv0.alarm.threshold import choose_alarm, shortcomings, threshold_for_false_alarms
from simv0.config.schema import EvaluationConfig
from simv0.data.manifest import ManifestDataset
from simv0.evaluation.run import evaluate_checkpoint
from simv0.labels import HEADS, HIGH
from simv0.model.checkpoint import load_checkpoint
from simv0.predict import Predictor
from simv0.training.fit import fit
from simv0.training.refusals import config_differences

P = np.array([0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2])
IS_HIGH = np.array([1, 0, 1, 0, 1, 0, 1, 0], bool)


@pytest.mark.parametrize(("rate", "threshold"), [(0.01, 0.85), (0.25, 0.65), (0.5, 0.45), (0.99, 0.25)])
def test_threshold_for_false_alarms_by_hand(rate: float, threshold: float) -> None:
    at = threshold_for_false_alarms(P, IS_HIGH, rate)
    assert at == pytest.approx(threshold)
    assert (at <= P)[~IS_HIGH].mean() <= rate


def test_the_threshold_for_false_alarms_is_the_lowest_on_random_scores_with_ties() -> None:
    rng = np.random.default_rng(3)
    for _ in range(200):
        n = int(rng.integers(4, 40))
        p = rng.integers(1, 12, n) / 12  # many ties
        is_high = rng.random(n) < 0.4
        is_high[:2] = True, False
        rate = rng.uniform(0.05, 0.95)
        candidates = [0.0, *(np.unique(p) + 1e-9), 1.0]  # every way to split the scores
        quiet = [t for t in candidates if (p >= t)[~is_high].mean() <= rate]
        at = threshold_for_false_alarms(p, is_high, rate)
        assert (p >= at)[~is_high].mean() <= rate
        assert (p >= at)[is_high].mean() == max((p >= t)[is_high].mean() for t in quiet)


def test_a_known_temperature_is_found() -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(20_000, 4)) * 2
    labels = np.array([rng.choice(4, p=row) for row in softmax(logits)])
    overconfident = logits * 2.5
    found = fit_temperature(overconfident.astype(np.float32), labels)
    assert found == pytest.approx(2.5, rel=0.05)
    assert calibration_error(softmax(overconfident), labels) > 0.1
    assert calibration_error(softmax(overconfident, found), labels) < 0.02
    assert fit_temperature(np.eye(4)[labels], labels) == pytest.approx(0.1)  # never wrong: the lower bound


def test_calibration_error_by_hand() -> None:
    probs = np.array([[0.9, 0.1], [0.9, 0.1], [0.2, 0.8], [0.4, 0.6]])
    labels = np.array([0, 1, 1, 0])  # bins: 0.9 twice, half right; 0.8 right; 0.6 wrong
    assert calibration_error(probs, labels) == pytest.approx((2 * 0.4 + 0.2 + 0.6) / 4)


def test_intervals_over_recordings_are_wider_where_windows_of_one_go_alike() -> None:
    """30 recordings of 20 windows, each found or missed as a whole: the truth is 30 draws, not 600."""
    raised = np.repeat(np.arange(30) % 3 > 0, 20)
    among = np.ones(600, bool)
    over_recordings = rate_of(raised, among, np.repeat(np.arange(30), 20))
    over_windows = rate_of(raised, among, None)
    assert over_recordings.value == over_windows.value == pytest.approx(2 / 3)
    width = 2 * 1.96 * math.sqrt(2 / 9 / 30)  # normal approximation of 30 draws
    assert over_recordings.high - over_recordings.low == pytest.approx(width, rel=0.1)
    assert over_windows.high - over_windows.low == pytest.approx(width / math.sqrt(20), rel=0.1)


def test_a_rate_of_one_is_not_called_certain() -> None:
    every = rate_of(np.ones(50, bool), np.ones(50, bool), None)
    assert (every.value, every.high) == (1, 1)
    assert every.low == pytest.approx(0.9289, abs=1e-4)  # Clopper-Pearson, 50 of 50
    none = rate_of(np.zeros(50, bool), np.ones(50, bool), None)
    assert (none.value, none.low) == (0, 0)
    assert none.high == pytest.approx(0.0711, abs=1e-4)


def test_recordings_are_told_by_group_and_by_nothing_else() -> None:
    both = np.array([1, 0] * 3, bool)
    named = recordings(["x", "x", "y", "y", "z", "z"], both)
    assert named is not None
    assert named.tolist() == [0, 0, 1, 1, 2, 2]
    assert recordings(None, both) is None
    assert recordings(6 * ["rover"], both) is None  # one recording has no spread


def world(n: int, n_high: int) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray], list[str]]:
    rng = np.random.default_rng(1)
    ids = {head: rng.integers(0, len(names), n) for head, names in HEADS.items()}
    ids["risk"] = np.where(np.arange(n) < n_high, HIGH, ids["risk"] % HIGH)
    logits = {
        head: (rng.normal(size=(n, len(names))) + 2 * np.eye(len(names))[ids[head]]).astype(np.float32)
        for head, names in HEADS.items()
    }
    return logits, ids, [f"r{i % 60}" for i in range(n)]


def test_an_alarm_on_target_says_what_it_promises_and_the_same_split_gives_the_same_alarm() -> None:
    logits, ids, groups = world(600, 180)
    alarm = choose_alarm(logits, ids, groups, EvaluationConfig())
    assert alarm == choose_alarm(logits, ids, groups, EvaluationConfig())
    assert (alarm.groups, alarm.n_high, alarm.windows, alarm.reason) == (60, 180, 600, None)
    assert alarm.chosen is not None
    assert alarm.at_max_false_alarm_rate is not None
    assert alarm.promise is not None
    assert (alarm.promise.recall, alarm.promise.units, alarm.promise.needed) == (0.95, 60, 45)
    assert not alarm.below_target
    assert alarm.at_max_false_alarm_rate.false_alarm_rate.value <= 0.05
    assert 0.95 < alarm.chosen.recall.low < alarm.chosen.recall.value < alarm.chosen.recall.high
    assert alarm.ece_after["risk"] < alarm.ece_before["risk"]
    assert str(alarm).startswith(
        f"alarm: P(high) >= {alarm.chosen.threshold:.3f}: recall 0.950 of windows is promised for new data at 90% "
        f"confidence; on val recall {alarm.chosen.recall} of 180 high windows, false-alarm rate 0."
    )
    assert str(alarm).endswith("(95 % intervals over 60 recordings); val also chose the epoch")
    of_its_own = choose_alarm(logits, ids, groups, EvaluationConfig(), "calibration")
    assert "; on calibration recall" in str(of_its_own)
    assert str(of_its_own).endswith("over 60 recordings)")
    assert Alarm.model_validate(json.loads(alarm.model_dump_json())) == alarm


def test_twelve_recordings_promise_what_they_carry_and_say_what_is_missing() -> None:
    logits, ids, groups = world(600, 180)
    twelve = [f"r{int(name[1:]) % 12}" for name in groups]
    alarm = choose_alarm(logits, ids, twelve, EvaluationConfig())
    assert alarm.below_target
    assert alarm.promise is not None
    assert alarm.promise.most == pytest.approx(0.1 ** (1 / 12))
    assert alarm.promise.recall == pytest.approx(0.95 * 0.1 ** (1 / 12))
    said = (
        "BELOW TARGET: recall 0.784 of windows is promised for new data at 90% confidence; 12 recordings with high can "
        "promise 0.825 at most, 0.95 needs 45; on val"
    )
    assert said in str(alarm)
    assert alarm.chosen is not None
    assert alarm.chosen.recall.value > 0.9  # about the target here, or it would promise less
    expected = "val: the alarm will promise a recall of 0.784 at 90% confidence, below target: 12 recordings with high"
    (line,) = shortcomings(ids["risk"] == HIGH, twelve, None, EvaluationConfig(), "val")
    assert line.startswith(expected)


def drives(n: int, rng: np.random.Generator) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray], list[str]]:
    """n recordings of 20 windows, each with two events of four windows: the second never rises above one score."""
    high = np.isin(np.arange(20 * n) % 20, [3, 4, 5, 6, 12, 13, 14, 15])
    ids = {head: np.zeros(20 * n, int) for head in HEADS}
    ids["risk"] = np.where(high, HIGH, 0)
    logits = {head: np.zeros((20 * n, len(names)), np.float32) for head, names in HEADS.items()}
    logits["risk"][:, HIGH] = rng.normal(size=20 * n) + 2 * high
    return logits, ids, [f"drive{i // 20:03d}" for i in range(20 * n)]


def test_where_recordings_can_be_replayed_the_promise_is_about_events() -> None:
    logits, ids, groups = drives(60, np.random.default_rng(0))
    t = np.arange(1200) % 20 * 0.5
    alarm = choose_alarm(logits, ids, groups, EvaluationConfig(), t=t, spacing=0.5)
    of_windows = choose_alarm(logits, ids, groups, EvaluationConfig())
    assert alarm.chosen is not None
    assert alarm.promise is not None
    assert of_windows.chosen is not None
    assert (alarm.promise.of, alarm.promise.recall, alarm.n_events, of_windows.n_events) == ("events", 0.95, 120, None)
    assert alarm.chosen.event_recall is not None
    assert 0.95 < alarm.chosen.event_recall.value < 1
    assert alarm.chosen.threshold > of_windows.chosen.threshold  # two of four windows in a row are easier than each one
    events, windows = alarm.chosen.event_recall, alarm.chosen.recall
    assert f"on val recall {events} of 120 events and {windows} of 480 high windows" in str(alarm)

    found = 0  # by the alarm of a robot, started anew for each recording
    p_high = softmax(logits["risk"], alarm.temperatures["risk"])[:, HIGH]
    for first in range(0, 1200, 20):
        confirmed = Confirmation(alarm.confirm, alarm.release, stale_after=1.5)
        at = range(first, first + 20)
        raised = [confirmed.update(float(p_high[i]), float(t[i])) >= alarm.chosen.threshold for i in at]
        found += any(raised[3:7]) + any(raised[12:16])
    assert found / 120 == alarm.chosen.event_recall.value


def test_events_that_end_before_an_alarm_can_be_confirmed_leave_the_promise_to_windows() -> None:
    """Three windows a recording, the first is high: of two that must agree, one comes too late."""
    ids = {head: np.zeros(150, int) for head in HEADS}
    ids["risk"] = np.where(np.arange(150) % 3 == 0, HIGH, 0)
    logits = {head: np.zeros((150, len(names)), np.float32) for head, names in HEADS.items()}
    logits["risk"][:, HIGH] = np.arange(150) / 50 + (ids["risk"] == HIGH)
    groups, t = [f"{i // 3:02d}" for i in range(150)], np.arange(150) % 3 * 1.0
    alarm = choose_alarm(logits, ids, groups, EvaluationConfig(), t=t)
    assert alarm.promise is not None
    assert (alarm.promise.of, alarm.promise.unit, alarm.promise.units) == ("windows", "recordings", 50)


def test_without_group_windows_are_taken_as_independent_and_that_is_said() -> None:
    logits, ids, groups = world(600, 180)
    alarm = choose_alarm(logits, ids, None, EvaluationConfig())
    assert alarm.promise is not None
    assert (alarm.promise.unit, alarm.promise.units, alarm.groups) == ("windows", 180, None)
    void = "(IF windows are independent: there is no `group`, and where neighbours are alike this is void)"
    assert f"recall 0.950 of windows is promised for new data at 90% confidence {void}; on val" in str(alarm)
    assert "(95 % intervals over windows: too narrow, for want of three recordings)" in str(alarm)
    loud = "calibration: no group: the alarm's promise takes windows as independent, and is void where neighbours are "
    (line,) = shortcomings(ids["risk"] == HIGH, None, None, EvaluationConfig(), "calibration")
    assert line.startswith(loud)
    assert not list(shortcomings(ids["risk"] == HIGH, groups, None, EvaluationConfig(), "val"))


@pytest.mark.parametrize(
    ("n", "n_high", "reason"),
    [
        (100, 0, 'val has 0 windows of risk "high"; at least 10 are needed'),
        (100, 9, 'val has 9 windows of risk "high"; at least 10 are needed'),
        (100, 91, "val has 9 windows of other risks; at least 10 are needed"),
    ],
)
def test_too_few_is_said_instead_of_a_number(n: int, n_high: int, reason: str) -> None:
    logits, ids, _ = world(n, n_high)
    alarm = choose_alarm(logits, ids, None, EvaluationConfig())
    assert (alarm.reason, alarm.chosen, alarm.threshold, alarm.promise) == (reason, None, None, None)
    assert str(alarm) == f"alarm: no threshold: {reason}"
    assert list(shortcomings(ids["risk"] == HIGH, None, None, EvaluationConfig(), "val")) == [
        f"{reason} to choose the alarm's threshold: best.pt will have none"
    ]


def test_an_alarm_of_an_older_simv0_has_a_threshold_and_no_promise() -> None:
    logits, ids, groups = world(600, 180)
    older = choose_alarm(logits, ids, groups, EvaluationConfig()).model_dump(
        exclude={"promise", "split", "n_events", "confirm", "release"}
    )
    del older["chosen"]["event_recall"]
    alarm = Alarm.model_validate(older)
    assert (alarm.threshold, alarm.below_target, alarm.split) == (older["chosen"]["threshold"], True, "val")
    assert f"P(high) >= {alarm.threshold:.3f}: NO PROMISE for new data: an older simv0 chose it; on val" in str(alarm)


@pytest.mark.usefixtures("no_report")
def test_train_stores_the_alarm_and_evaluate_and_predict_use_it(
    make_config: MakeConfig, features: Path, manifests: Path, tmp_path: Path
) -> None:
    both = tmp_path / "both"
    both.mkdir()
    for name in ("train", "val"):  # the larger split as val too: 40 windows, 10 of them high
        (both / f"{name}.h5").symlink_to(features / "train.h5")
    wanted = {"target_recall": 0.8, "max_false_alarm_rate": 0.2}
    same = {"val_split_path": str(manifests / "train.jsonl")}
    run = fit(make_config(cache={"dir": str(both)}, data=same, evaluation=wanted))
    before = run.best.read_bytes()
    meta = load_checkpoint(run.best).meta
    assert meta.alarm is not None
    assert meta.alarm.chosen is not None
    assert meta.alarm.n_high == 10
    tied = "macro_f1: several epochs have a composite of 0.000"
    assert f"best epoch {meta.epoch} (by {tied}); alarm: P(high) >= " in run.log.read_text()

    found, folder = evaluate_checkpoint(run.best)
    metrics = found.metrics
    assert run.best.read_bytes() == before
    assert metrics["alarm_recall"] == meta.alarm.chosen.recall.value >= 0.8
    assert metrics["alarm_false_alarm_rate"] == meta.alarm.chosen.false_alarm_rate.value
    written = json.loads((folder / "metrics.json").read_text())
    assert Alarm.model_validate(written["alarm_chosen"]) == meta.alarm
    rows = [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]
    assert all(row["alarm"] == (row["probs"]["risk"]["high"] >= meta.alarm.threshold) for row in rows)

    dataset, predictor = ManifestDataset(manifests / "train.jsonl"), Predictor.load(run.best)
    for i in (0, 6, 7):
        sample = dataset[i]
        predicted = predictor.predict(sample["frames"], torch.tensor(sample["telemetry"]))
        assert predicted["probs"]["risk"] == pytest.approx(rows[i]["probs"]["risk"], abs=5e-3)  # float16 features
        assert predicted["alarm"] == rows[i]["alarm"]


def test_resume_refuses_another_target_since_best_was_chosen_for_the_first(
    make_config: MakeConfig,
) -> None:
    first, other, batch = (
        make_config(evaluation=changed).model_dump()
        for changed in ({}, {"target_recall": 0.9}, {"batch_size": 7, "target_recall": 0.95})
    )
    assert config_differences(first, other) == ["evaluation.target_recall: started with 0.95, now 0.9"]
    assert config_differences(first, batch) == []
