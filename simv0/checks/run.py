"""`simv0 check`: every problem that can be found before the expensive part, and what would happen on this machine.

Each function makes one check, returns what it found, and leaves errors to `errors`, so that the next one runs.
`preflight` is the part that needs neither data nor weights: `cache-vis` and `train` begin with it, and check their data
as they read it.
"""

import itertools
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from simv0.checks.collector import ErrorCollector, refuse
from simv0.checks.data import Facts, SplitOutline, check_split
from simv0.checks.networks import EncoderOutline, LLMOutline, outline_encoder, outline_llm
from simv0.checks.room import check_cache, check_shared_memory, check_training
from simv0.checks.walk import Watch, unwatched
from simv0.checks.warnings import heard, warn_of_both, warn_of_split
from simv0.config.schema import Config
from simv0.data.labels import find_leakage
from simv0.data.spacing import warn_of_spacing
from simv0.errors import SimError
from simv0.llm.load import weight_files
from simv0.model.build import check_d
from simv0.runtime.device import compute_dtype, pick_device
from simv0.runtime.distributed import processes
from simv0.runtime.hub import check_encoder_at_hand, check_llm_at_hand
from simv0.training.origin import read_origin
from simv0.training.rundir import RunDir
from simv0.training.splits import check_pair
from simv0.training.trackers.kinds import check_trackers
from simv0.vision.encoder import check_dv, resolve_precision
from simv0.vision.files import warn_of_guesses
from simv0.vision.tags import check_names, facts_of

log = logging.getLogger("simv0")


@dataclass(frozen=True)
class Report:
    """What was found.

    Attributes:
        facts: area -> name -> value. A name that ends in `_bytes` or `_seconds` carries that unit.
        problems: what would make `cache-vis` or `train` fail.
        warnings: what would not, but makes their results worth little.
    """

    facts: dict[str, Facts]
    problems: list[SimError]
    warnings: list[str]

    def __str__(self) -> str:
        """How much was found, in words."""
        problems, warnings = len("\n".join(map(str, self.problems)).splitlines()), len(self.warnings)
        told = f"{problems} problem{'s' * (problems > 1)}" if problems else "no problems found"
        return told + (f", {warnings} warning{'s' * (warnings > 1)}" if warnings else "")


def preflight(config: Config, stage: Literal["cache-vis", "train"]) -> None:
    """Refuse what the config, the models' configs and the machine alone show to be wrong, all at once.

    Raises:
        SimError: the one problem as it is; several as one error of several lines.
    """
    errors = ErrorCollector()
    if stage == "train":
        check_machine(config, errors)
        check_llm(config, errors)
    if stage == "cache-vis" or not config.model.use_cached_vis_feats:
        check_encoder(config, errors)
    refuse(errors.problems)


def check(
    config: Config,
    *,
    probe: bool = False,
    full: bool = False,
    watch: Watch = unwatched,
) -> Report:
    """Check everything between this config and a trained model, without loading weights.

    Args:
        config: the whole config.
        probe: load the networks after all and time a few batches; left out where something is wrong.
        full: read every window, not some.
        watch: goes through the windows of a split that are read; its second argument is the split's name.
    """
    errors = ErrorCollector()
    with heard() as warnings:
        facts = _look_at_all(config, errors, probe, full, watch)
    return Report({area: found for area, found in facts.items() if found}, errors.problems, warnings)


def _look_at_all(config: Config, errors: ErrorCollector, probe: bool, full: bool, watch: Watch) -> dict[str, Facts]:
    facts = {"machine": check_machine(config, errors)}
    outlines = [check_split(config, name, errors, full=full, watch=watch) for name in config.data.splits]
    splits = [split for split in outlines if split is not None]
    for split in splits:
        warn_of_split(config, split)
        facts[f"data: {split.name}"] = split.facts(config.data.dataset_class_path)
    for one, other in itertools.combinations(splits, 2):
        both = "both" if len(outlines) == 2 else f"{one.name} and {other.name}"
        facts[f"data: {both}"] = check_both(config, one, other, errors)
    llm, encoder = check_llm(config, errors), None
    if len(splits) < len(outlines) or any(split.source == "frames" for split in splits):
        encoder = check_encoder(config, errors)
    facts["output"] = check_output(config, errors)
    dv = next((split.dv for split in splits if split.dv), encoder.dv if encoder else None)
    if encoder is not None:
        warn_of_guesses(config.model)
        with errors:
            check_shared_memory(config, splits, encoder.image_size)
        facts["vision encoder"] = {"name": config.model.vision_encoder_name, **encoder.facts()}
        if config.model.use_cached_vis_feats:
            facts["cache-vis"] = check_cache(config, splits, encoder.dv, errors)
    if llm is not None:
        facts["LLM"] = {"name": config.model.llm_name_or_path, **llm.facts()}
    if llm is not None and len(splits) == len(outlines) and dv is not None:
        facts["train"] = check_training(config, llm, encoder, splits, dv, errors)
        if probe and not errors.problems:
            from simv0.checks.probe import measure

            facts["probe"] = measure(config, splits, dv)
    return facts


def check_machine(config: Config, errors: ErrorCollector) -> Facts:
    """Device, precision, processes, and the packages that the config asks for."""
    with errors:
        check_trackers(config)
    with errors:
        device = pick_device(config)
        return {
            "device": _described(device),
            "LLM in": str(compute_dtype(config.training, device)).removeprefix("torch."),
            "encoder in": resolve_precision(config.cache.precision, device),
            "processes": processes(),
            "loader workers": config.data.num_workers,
        }
    return {}


def _described(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return "Apple GPU" if device.type == "mps" else f"cpu, {torch.get_num_threads()} threads"


def check_llm(config: Config, errors: ErrorCollector) -> LLMOutline | None:
    """The LLM's config, the width that ours names, and whether a local folder holds weights."""
    name, outline = config.model.llm_name_or_path, None
    with errors:
        check_llm_at_hand(name, config.model.llm_revision)
        outline = outline_llm(config, processes())
        check_d(config.model, outline.d)
    with errors:
        if (Path(name) / "config.json").exists():
            weight_files(name)
    return outline


def check_encoder(config: Config, errors: ErrorCollector) -> EncoderOutline | None:
    """The vision encoder's config, and the width that ours names."""
    outline = None
    with errors:
        check_names(config.model)
        facts_of(config.model)
        check_encoder_at_hand(config.model)
        outline = outline_encoder(config.model)
        check_dv(config.model, outline.dv)
    return outline


def check_both(config: Config, one: SplitOutline, other: SplitOutline, errors: ErrorCollector) -> Facts:
    """Whether two splits fit together, and share what they must not share."""
    if one.name == "train":
        with errors:
            if one.dv is not None and other.dv is not None:
                check_pair(config, (one.identity, other.identity), (one.dv, other.dv), other.name)
        warn_of_spacing(one.frame_spacing, other.frame_spacing, other.name)
    names = (one.name, other.name)
    leaks = find_leakage(one.dataset, other.dataset, one.seen.group, other.seen.group, names=names)
    for leak in leaks:
        log.warning(leak)
    warn_of_both(one, other, bool(leaks))
    unknown = one.seen.group is None or other.seen.group is None
    return {"leakage": leaks[0] if leaks else "unknown: no groups" if unknown else "none seen"}


def check_output(config: Config, errors: ErrorCollector) -> Facts:
    """Whether the run can be written, whether one exists, and what a new one would start from."""
    run = RunDir(config.output.output_dir)
    with errors:
        if not run.holds_a_run:  # which resumes without it
            read_origin(config)
    with errors:
        run.check_ours()
    held = "holds a run: train needs --resume or --overwrite" if run.holds_a_run else "no run yet"
    return {"folder": str(run.root), "state": held}
