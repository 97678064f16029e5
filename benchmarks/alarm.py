"""Does the alarm keep what it promises on new data? Simulated: the very code that `train` runs, on many splits.

    python -m benchmarks.alarm [--draws 400] [--confidence 0.9] [--json alarm.json]

Every row is a source of recordings whose truth is known. A split is drawn from it, the alarm is chosen, and its recall
and false alarms are measured on a large population of the same source. `kept_share` is the share of the draws whose
true recall is at least the promised one; it must not lie below the confidence by more than the draws' own error.
Beside it the naive threshold (the one that finds 95 % of the split's own "high" windows), and the oracle's: the
false alarms at a recall of exactly 95 %, which only who knows the whole population can have.
"""

import argparse
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from simv0.alarm.calibration import fit_temperature, softmax
from simv0.alarm.hazards import choose_threshold, hazards_of
from simv0.alarm.promise import p_value
from simv0.config.schema import EvaluationConfig
from simv0.labels import HIGH

POPULATION = 3000
"""Recordings of the population (windows: 100 times as many)."""
Draw = Callable[[np.random.Generator, int], np.ndarray]


def same(_: np.random.Generator, n: int) -> np.ndarray:
    """No recording differs from another."""
    return np.zeros(n)


def alike(share: float) -> Draw:
    """So much of the scores' variance is common to a recording."""
    return lambda rng, n: rng.normal(size=n) * share**0.5


def hopeless(share: float) -> Draw:
    """So many recordings in which hardly a "high" window is seen."""
    return lambda rng, n: np.where(rng.random(n) < share, -4.0, 0.3 * rng.normal(size=n))


@dataclass(frozen=True)
class Sample:
    """The windows of some recordings."""

    logits: np.ndarray
    risk: np.ndarray
    groups: list[str] | None
    t: np.ndarray | None

    def p_high(self, temperature: float) -> np.ndarray:
        """Of each window."""
        return softmax(self.logits, temperature)[:, HIGH]


@dataclass(frozen=True)
class Source:
    """Where recordings come from: 15 % of their windows are "high", and score 2 higher."""

    recordings: int
    windows: int
    effect: Draw = same
    """What a recording adds to the scores of all its windows."""
    noise: float = 1.0
    spread: float = 0.0
    """Of the logarithm of the recordings' lengths."""
    grouped: bool = True
    hopeless_length: float = 1.0
    """How many times as long a hopeless recording is."""
    events: bool = False
    """Whether the "high" windows come in runs of five on average, and the alarm is confirmed over windows."""

    def draw(self, rng: np.random.Generator, recordings: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Logits of risk, labels of risk, and the recording of each window."""
        effect = self.effect(rng, recordings)
        lengths = self.windows * np.exp(self.spread * rng.normal(size=recordings))
        lengths = np.maximum(1, lengths * np.where(effect < -3, self.hopeless_length, 1)).astype(int)
        recording = np.repeat(np.arange(recordings), lengths)
        n = len(recording)
        risk = np.where(self._is_high(rng, recording), HIGH, rng.integers(0, HIGH, n))
        logits = 0.3 * rng.normal(size=(n, 4))
        logits[:, HIGH] += 2.0 * (risk == HIGH) - 1 + effect[recording]
        logits[:, HIGH] += self.noise * rng.normal(size=n)
        return logits, risk, recording

    def _is_high(self, rng: np.random.Generator, recording: np.ndarray) -> np.ndarray:
        n = len(recording)
        if not self.events:
            return rng.random(n) < 0.15
        steps, high, begins = rng.random(n), np.zeros(n, bool), np.diff(recording, prepend=-1) > 0
        for i in range(1, n):  # no recording begins within an event
            high[i] = not begins[i] and not begins[i - 1] and steps[i] < (0.8 if high[i - 1] else 0.035)
        return high

    def sample(self, rng: np.random.Generator, recordings: int) -> Sample:
        """Some recordings, on the clock of a robot that judges two windows a second."""
        logits, risk, recording = self.draw(rng, recordings)
        groups = [f"{number:06d}" for number in recording] if self.grouped else None
        return Sample(logits, risk, groups, 0.5 * np.arange(len(risk)) if self.events else None)


SETTINGS = {
    "400 windows, independent": Source(400, 1, grouped=False),
    "2000 windows, independent": Source(2000, 1, grouped=False),
    "20 recordings x 20, independent": Source(20, 20),
    "20 x 20, windows of a recording alike": Source(20, 20, alike(0.3), 0.84),
    "8 x 50, alike": Source(8, 50, alike(0.3), 0.84),
    "40 x 50, alike": Source(40, 50, alike(0.3), 0.84),
    "150 x 50, alike": Source(150, 50, alike(0.3), 0.84),
    "150 x 50, alike, of unequal length": Source(150, 50, alike(0.3), 0.84, spread=0.7),
    "150 x 50, strongly different": Source(150, 50, alike(1.5), 0.5),
    "150 x 50, 3 % of them hopeless": Source(150, 50, hopeless(0.03), 0.84),
    "20 x 50, alike: events": Source(20, 50, alike(0.3), 0.84, events=True),
    "150 x 50, alike: events": Source(150, 50, alike(0.3), 0.84, events=True),
    "150 x 50, 3 % of them hopeless: events": Source(150, 50, hopeless(0.03), 0.84, events=True),
    "8 x 200, strongly different, but without group": Source(8, 200, alike(1.5), 0.5, grouped=False),
    "60 x 50, 2 % of them hopeless and six times as long": Source(60, 50, hopeless(0.02), 0.84, hopeless_length=6),
}
VOID = tuple(SETTINGS)[-2:]
"""What no promise covers: windows taken as independent that are not, and a kind of recording longer than any seen."""


Levels = tuple[np.ndarray, np.ndarray]


def levels_of(sample: Sample, temperature: float, wanted: EvaluationConfig) -> Levels:
    """The highest thresholds at which each hazard is found, and at which each window that is not high is in alarm."""
    is_high = sample.risk == HIGH
    found, levels = hazards_of(is_high, sample.groups, sample.t).levels(sample.p_high(temperature), wanted, None)
    return found, levels[~is_high]  # a timeline leaves their order as it is


def simulate(setting: str, draws: int, confidence: float, population: int = POPULATION) -> dict[str, Any]:
    """One row."""
    source, wanted, rng = SETTINGS[setting], EvaluationConfig(confidence=confidence), np.random.default_rng(0)
    whole = source.sample(rng, population * (100 if source.windows == 1 else 1))
    truth: dict[float, Levels] = {}
    rows: list[tuple[float, ...]] = []
    for _ in range(draws):
        own = source.sample(rng, source.recordings)
        temperature = 1.0 if source.events else fit_temperature(own.logits, own.risk)  # to replay the truth only once
        if temperature not in truth:
            truth = {temperature: levels_of(whole, temperature, wanted)}
        ours, promise, _, _ = choose_threshold(own.p_high(temperature), own.risk == HIGH, own.groups, own.t, wanted)
        (found, _), (all_found, calm) = levels_of(own, temperature, wanted), truth[temperature]
        naive, oracle = (np.quantile(each, 1 - wanted.target_recall, method="lower") for each in (found, all_found))
        recall, naive_recall = ((all_found >= threshold).mean() for threshold in (ours, naive))
        alarms = ((calm >= threshold).mean() for threshold in (ours, naive, oracle))
        rows.append((promise.recall, recall, recall >= promise.recall, naive_recall >= wanted.target_recall, *alarms))
    promised, recall, kept, naive_kept, ours, naive, oracle = (round(float(x), 3) for x in np.mean(rows, axis=0))
    return {
        "setting": setting,
        "confidence": confidence,
        "promised": promised,
        "kept_share": kept,
        "recall": recall,
        "false_alarm_rate": ours,
        "naive_kept_share": naive_kept,
        "naive_false_alarm_rate": naive,
        "oracle_false_alarm_rate": oracle,
        "draws": draws,
    }


def hostile(tries: int, confidence: float, size: int = 20) -> dict[str, Any]:
    """The worst of many populations of three kinds of recordings, each exactly at the edge of the recall: no draws, all
    that can be drawn is summed up. Proofs of the test stop before such populations.
    """
    rng, kept = np.random.default_rng(0), 1.0
    for _ in range(tries):
        U, rate = int(rng.integers(5, 50)), float(rng.choice([0.05, 0.1, 0.2, 0.4]))
        few, some, many = np.sort(rng.choice(size + 1, 3, replace=False))
        if rng.random() < 0.5:
            few, many = 0, size
        share = np.array([0.0, rng.random() ** 2, 0.0])
        share[2] = (rate * size - few * (1 - share[1]) - some * share[1]) / (many - few)
        share[0] = 1 - share[1:].sum()
        if share.min() < 0:
            continue
        counts = np.array([(U - b - c, b, c) for c in range(U + 1) for b in range(U + 1 - c)])
        log_share = np.log(np.maximum(share, 1e-300))
        logs = np.array([math.lgamma(k + 1) for k in range(U + 1)])
        chance = np.exp(logs[U] - logs[counts].sum(1) + counts @ log_share)
        broken = 0.0
        for count, each in zip(counts, chance, strict=True):
            missed = np.repeat([few, some, many], count)
            if each > 1e-9 and p_value(missed, np.full(U, size), 1 - rate) <= 1 - confidence:
                broken += each
        kept = min(kept, 1 - broken)
    return {
        "setting": f"worst of {tries} populations of three kinds",
        "confidence": confidence,
        "kept_share": round(float(kept), 4),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=400)
    parser.add_argument("--confidence", type=float, default=0.9)
    parser.add_argument("--json", type=Path, default=None)
    arguments = parser.parse_args()
    rows = []
    for setting in SETTINGS:
        row = simulate(setting, arguments.draws, arguments.confidence)
        rows.append(row)
        print(
            f"{setting:40} promised {row['promised']:.3f} kept {row['kept_share']:.2f} (naive .95: "
            f"{row['naive_kept_share']:.2f}) false alarms {row['false_alarm_rate']:.3f} (naive "
            f"{row['naive_false_alarm_rate']:.3f}, oracle {row['oracle_false_alarm_rate']:.3f})"
        )
    rows.append(hostile(25 * arguments.draws, arguments.confidence))
    print(f"{rows[-1]['setting']}: kept {rows[-1]['kept_share']:.4f}")
    if arguments.json is not None:
        arguments.json.write_text(json.dumps({"rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
