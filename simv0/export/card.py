"""The model card: README.md of an exported folder, with the Hub's YAML header. Names and digests, no paths."""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import PurePath
from typing import Any

from simv0.alarm.unlike import NOTHING_KEPT
from simv0.config.yaml import dump_yaml
from simv0.evaluation.events import MEANINGS
from simv0.evaluation.tables import ROWS
from simv0.labels import HEADS, TELEMETRY
from simv0.model.checkpoint import Checkpoint, Meta

METRICS = (
    "risk_high_recall", "risk_high_false_alarm_rate", "alarm_recall", "alarm_false_alarm_rate",
    "risk_high_average_precision", "risk_macro_f1", "action_macro_f1", "reason_macro_f1", "composite",
)  # fmt: skip
COMPARED = ("risk_high_average_precision", "risk_high_recall", "risk_macro_f1", "action_macro_f1")
INTENDED = """\
For a robot like the one that recorded the training windows: the same camera in the same place, frames as far apart,
the eight numbers in the same units and axes, the same kind of surroundings. It is meant to make such a robot slow down
or stop earlier, beside its other safeguards and never instead of one. Act on the confirmed alarm of `Stream`:
"unknown", and an alarm that is `None`, are no all-clear.
"""
LIMITS = """\
- Figures and promise hold for new recordings of the same kind, not for other places, seasons, cameras or robots.
- The labels are those of the training windows: what they leave out, the model does not know.
- A single window may be wrong; nothing here is certified for safety.
"""


def model_card(
    name: str, checkpoint: Checkpoint, digests: Mapping[str, str], evaluations: Sequence[Mapping[str, Any]]
) -> str:
    """The card of a checkpoint.

    Args:
        name: of the model.
        checkpoint: what is exported.
        digests: split -> digest of its labels and features, where they are known.
        evaluations: the contents of each `metrics.json` of this checkpoint.
    """
    meta = checkpoint.meta
    F, spacing = meta.F, f", {meta.frame_spacing:g} s apart," if meta.frame_spacing else ""
    sections = {
        "Use": _use(name, meta),
        "Trained on": _trained_on(checkpoint, digests),
        "How good it is": "\n".join(_evaluated(found) for found in evaluations) or _not_evaluated(meta),
        "The alarm": _alarm(meta),
        "Beside simple models": "\n".join(filter(None, map(_beside, evaluations))) or "Not compared.\n",
        "Intended use": INTENDED,
        "Limits": f"{LIMITS}{_limits(checkpoint)}",
    }
    head = f"---\n{dump_yaml(_header(name, meta, evaluations))}---\n\n# {name}\n\n"
    says = "; ".join(f"{head} ({', '.join(names)})" for head, names in HEADS.items())
    about = f"From {F} camera frames{spacing} and eight numbers of telemetry: {says}.\n"
    return head + about + "".join(f"\n## {title}\n\n{text}" for title, text in sections.items())


def _header(name: str, meta: Meta, evaluations: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What the Hub reads: https://huggingface.co/docs/hub/model-cards."""
    llm = str(meta.llm.get("llm_name"))
    base = {"base_model": llm} if re.fullmatch(r"[\w.-]+/[\w.-]+", llm) else {}
    results = [
        {
            "task": {"type": "robotics", "name": "risk, reason and action"},
            "dataset": {"type": re.sub(r"[^\w.-]+", "-", _data(found)), "name": _data(found)},
            "metrics": [
                {"type": key, "name": ROWS[key], "value": round(found[key], 4)}
                for key in METRICS
                if found.get(key) is not None
            ],
        }
        for found in evaluations
    ]
    tags = ["simv0", "robotics", "risk", "frozen-llm"]
    index = {"model-index": [{"name": name, "results": results}]} if results else {}
    return {"library_name": "simv0", "pipeline_tag": "robotics", "tags": tags, **base, **index}


def _use(name: str, meta: Meta) -> str:
    frozen = [f"the LLM `{meta.llm.get('llm_name')}` (`model.llm_name_or_path`)"]
    if meta.encoder is not None:
        frozen.append(f"the vision encoder `{meta.encoder.get('vision_encoder_name')}` (`model.vision_encoder_name`)")
    spacing = "" if meta.frame_spacing else ", spacing=SECONDS"  # which nothing in the checkpoint tells
    takes = (
        f"stream = Stream(predictor{spacing})" if meta.encoder else "predictor.predict_features(vis_feats, telemetry)"
    )
    return (
        f'```python\nfrom simv0 import Predictor, Stream\n\npredictor = Predictor.from_pretrained("USER/{name}")\n'
        f"{takes}\n```\n\nNot in this folder: {' and '.join(frozen)}. They are found by these names, or where\n"
        '`from_pretrained(..., overrides=["model.llm_name_or_path=FOLDER"])` says, and refused if their weights are\n'
        "not those of the training.\n"
    )


def _trained_on(checkpoint: Checkpoint, digests: Mapping[str, str]) -> str:
    meta = checkpoint.meta
    data, provenance = meta.config.get("data", {}), meta.provenance
    rows = [
        (split, f"`{PurePath(str(path)).name}`", f"`{digests[split]}`" if split in digests else "unknown")
        for split in ("train", "val", "calibration")
        if (path := data.get(f"{split}_split_path")) is not None
    ]
    facts = [f"epoch {meta.epoch}, by simv0 {provenance.get('simv0')} ({provenance.get('simv0_git')})"]
    for kind, identity in (("LLM", meta.llm), ("vision encoder", meta.encoder or {})):
        told = ", ".join(f"{key} `{value}`" for key, value in identity.items() if isinstance(value, str))
        facts.append(f"{kind}: {told or 'none, the features are those of the dataset'}")
    if isinstance(source := provenance.get("init_from"), dict):
        facts.append(f"started from another robot's `{source.get('file')}`, sha256 `{source.get('sha256')}`")
    mean, std = checkpoint.state.get("telemetry_mean"), checkpoint.state.get("telemetry_std")
    if data.get("telemetry_norm") != "none" and mean is not None and std is not None:
        channels = zip(TELEMETRY, mean.tolist(), std.tolist(), strict=True)
        told = ", ".join(f"{name} {m:.3g} ± {s:.3g}" if s != 1 else f"{name} always {m:.3g}" for name, m, s in channels)
        facts.append(f"telemetry (mean ± sd): {told}")
    table = _table(("split", "file", "sha256 of its labels and features"), rows)
    return table + "\n" + "".join(f"- {fact}\n" for fact in facts)


def _evaluated(found: Mapping[str, Any]) -> str:
    windows = found.get("facts", {}).get("windows") or f"{found.get('windows')} windows"
    spread = found.get("intervals") or {}
    rows = [(ROWS[key], found[key], spread.get(key)) for key in METRICS if found.get(key) is not None]
    events = found.get("events")
    if isinstance(events, Mapping):
        figures = ((meaning, events.get(key)) for key, meaning in MEANINGS.items())
        rows += [(meaning, it["value"], (it["low"], it["high"])) for meaning, it in figures if it is not None]
    shown = [(meaning, f"{value:.3f}", _interval(ends)) for meaning, value, ends in rows]
    cautions = "".join(f"- {line}\n" for line in found.get("cautions", ()))
    return (
        f"On {_data(found)} (windows: {windows}):\n\n"
        + _table(("metric", "value", "95 % interval"), shown)
        + "\n"
        + cautions
    )


def _not_evaluated(meta: Meta) -> str:
    known = [(ROWS[key], f"{value:.3f}") for key in METRICS if (value := meta.metrics.get(key)) is not None]
    return "Not evaluated; on val, which chose the epoch:\n\n" + _table(("metric", "value"), known)


def _alarm(meta: Meta) -> str:
    if meta.alarm is None:
        return "None: only best.pt has one.\n"
    if meta.alarm.threshold is None:
        return f"{meta.alarm}. `Stream` raises none, and its alarm is always `None`.\n"
    n, m = meta.alarm.confirm
    how = f"Raised when {n} of {m} windows reach the threshold, released at {meta.alarm.release:g} of it."
    return f"{meta.alarm}.\n\n{how}\n"


def _beside(found: Mapping[str, Any]) -> str | None:
    """The figures of simple models on the same windows; None where there are none."""
    baselines = found.get("baselines")
    if not isinstance(baselines, Mapping):
        return None
    compared = {"this model": found, **baselines}
    rows = [(name, *(_figure(it.get(key)) for key in COMPARED)) for name, it in compared.items()]
    said = "".join(f"- {line}\n" for line in (found.get("comparison") or {}).get("sentences", ()))
    return f"On {_data(found)}:\n\n" + _table(("model", *(ROWS[key] for key in COMPARED)), rows) + "\n" + said


def _limits(checkpoint: Checkpoint) -> str:
    if checkpoint.unlike is None:
        return f"- It {NOTHING_KEPT}.\n"
    return "- Windows unlike the training data are called so, as far as the vision encoder can see it.\n"


def _data(found: Mapping[str, Any]) -> str:
    """Of an evaluation, by the name of its file."""
    return PurePath(str(found.get("data", "unknown"))).name


def _interval(ends: Any) -> str:
    return "" if ends is None or None in ends else f"{ends[0]:.3f} to {ends[1]:.3f}"


def _figure(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines: Iterator[str] = (f"| {' | '.join(row)} |\n" for row in (head, ["---"] * len(head), *rows))
    return "".join(lines)
