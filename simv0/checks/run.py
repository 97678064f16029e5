"""`simv0 check`: every problem that can be found before the expensive part, and what would happen on this machine.

Each function looks at one thing, returns what it found, and appends what is wrong to `problems`; the next one looks on.
`preflight` is the part that needs neither data nor weights: `cache-vis` and `train` begin with it, and check their data
as they read it.
"""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from simv0.checks.data import ErrorCollector, Facts, SplitOutline, check_split
from simv0.checks.networks import EncoderOutline, LLMOutline, outline_encoder, outline_llm
from simv0.checks.room import check_cache, check_shared_memory, check_training
from simv0.checks.walk import Watch, unwatched
from simv0.checks.warnings import heard, warnings_of_both, warnings_of_split
from simv0.config.schema import Config
from simv0.data.labels import warn_of_leakage
from simv0.data.spacing import warn_of_spacing
from simv0.errors import SimError
from simv0.llm.load import weight_files
from simv0.model.build import check_d
from simv0.runtime.device import compute_dtype, pick_device
from simv0.runtime.distributed import processes
from simv0.runtime.hub import check_encoder_at_hand, check_llm_at_hand
from simv0.training.board import check_tensorboard
from simv0.training.rundir import RunDir
from simv0.training.splits import check_pair
from simv0.vision.encoder import check_dv, resolve_precision
from simv0.vision.files import warn_of_guesses
from simv0.vision.tags import check_names, facts_of

log = logging.getLogger("simv0")


@dataclass(frozen=True)
class Report:
    """What was found.

    Attributes:
        facts: area -> name -> value. A name that ends in `_bytes` or `_seconds` carries that unit.
        problems: what would stop `cache-vis` or `train`.
        warnings: what would not, but makes their figures worth little.
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
    """Refuse what config, models' configs and machine alone show to be wrong, all of it at once.

    Raises:
        SimError: the one problem as it is; several as one error of several lines.
    """
    problems: list[SimError] = []
    if stage == "train":
        check_machine(config, problems)
        check_llm(config, problems)
    if stage == "cache-vis" or not config.model.use_cached_vis_feats:
        check_encoder(config, problems)
    refuse(problems)


def refuse(problems: list[SimError]) -> None:
    """Raise what was found, if anything.

    Raises:
        SimError: the one problem as it is; several as one error of several lines, with the highest exit code.
    """
    if len(problems) == 1:
        raise problems[0]
    if problems:
        kind = max((type(problem) for problem in problems), key=lambda kind: kind.exit_code)
        raise kind("\n".join(map(str, problems)))


def check(
    config: Config,
    *,
    probe: bool = False,
    full: bool = False,
    watch: Watch = unwatched,
) -> Report:
    """Check all that stands between this config and a trained model, without loading weights.

    Args:
        config: the whole config.
        probe: load the networks after all and time a few batches; left out where something is wrong.
        full: read every window, not some.
        watch: goes through the windows of a split that are read; its second argument is the split's name.
    """
    with heard() as warnings:
        facts, problems = _check(config, probe, full, watch)
    return Report(facts, problems, warnings)


def _check(config: Config, probe: bool, full: bool, watch: Watch) -> tuple[dict[str, Facts], list[SimError]]:
    problems: list[SimError] = []
    facts = {"machine": check_machine(config, problems)}
    train, val = (check_split(config, name, problems, full=full, watch=watch) for name in ("train", "val"))
    for split in (train, val):
        for warning in warnings_of_split(config, split) if split is not None else ():
            log.warning(warning)
    facts |= {f"data: {split.name}": split.facts() for split in (train, val) if split is not None}
    if train is not None and val is not None:
        facts["data: both"] = check_both(config, train, val, problems)
    llm = check_llm(config, problems)
    check_llm_files(config, problems)
    encoder = None
    if any(split is None or split.source == "frames" for split in (train, val)):
        encoder = check_encoder(config, problems)
        if encoder is not None:
            warn_of_guesses(config.model)
    facts["output"] = check_output(config, problems)
    dv = next((split.dv for split in (train, val) if split is not None and split.dv), encoder.dv if encoder else None)
    if encoder is not None:
        with ErrorCollector(problems):
            check_shared_memory(config, [train, val], encoder.image_size)
        facts["vision encoder"] = {"name": config.model.vision_encoder_name, **encoder.facts()}
        if config.model.use_cached_vis_feats:
            facts["cache-vis"] = check_cache(config, [train, val], encoder.dv, problems)
    if llm is not None:
        facts["LLM"] = {"name": config.model.llm_name_or_path, **llm.facts()}
    if llm is not None and train is not None and val is not None and dv is not None:
        facts["train"] = check_training(config, llm, encoder, train, val, dv, problems)
        if probe and not problems:
            from simv0.checks.probe import measure

            facts["probe"] = measure(config, train, val, dv)
    return {area: found for area, found in facts.items() if found}, problems


def check_machine(config: Config, problems: list[SimError]) -> Facts:
    """Device, precision, processes, and the packages that the config asks for."""
    with ErrorCollector(problems):
        check_tensorboard(config)
    with ErrorCollector(problems):
        device = pick_device(config)
        cuda = device.type == "cuda"
        return {
            "device": torch.cuda.get_device_name(device) if cuda else f"cpu, {torch.get_num_threads()} threads",
            "LLM in": str(compute_dtype(config.training, device)).removeprefix("torch."),
            "encoder in": resolve_precision(config.cache.precision, device),
            "processes": processes(),
            "loader workers": config.data.num_workers,
        }
    return {}


def check_llm(config: Config, problems: list[SimError]) -> LLMOutline | None:
    """The LLM's config, and the width that ours names."""
    with ErrorCollector(problems):
        check_llm_at_hand(config.model.llm_name_or_path, config.model.llm_revision)
        outline = outline_llm(config, processes())
        with ErrorCollector(problems):
            check_d(config.model, outline.d)
        return outline
    return None


def check_llm_files(config: Config, problems: list[SimError]) -> None:
    """Whether a local folder holds weights."""
    name = config.model.llm_name_or_path
    if (Path(name) / "config.json").exists():
        with ErrorCollector(problems):
            weight_files(name)


def check_encoder(config: Config, problems: list[SimError]) -> EncoderOutline | None:
    """The vision encoder's config, and the width that ours names."""
    with ErrorCollector(problems):
        check_names(config.model)
        facts_of(config.model)
        check_encoder_at_hand(config.model)
        outline = outline_encoder(config.model)
        with ErrorCollector(problems):
            check_dv(config.model, outline.dv)
        return outline
    return None


def check_both(config: Config, train: SplitOutline, val: SplitOutline, problems: list[SimError]) -> Facts:
    """Whether the two splits fit together, and share what they must not share."""
    with ErrorCollector(problems):
        if train.dv is not None and val.dv is not None:
            check_pair(config, (train.identity, val.identity), (train.dv, val.dv))
    groups = (split.labels.group if split.labels is not None else None for split in (train, val))
    warn_of_spacing(train.frame_spacing, val.frame_spacing)
    leaks = warn_of_leakage(train.dataset, val.dataset, *groups)
    for warning in warnings_of_both(train, val, bool(leaks)):
        log.warning(warning)
    unknown = not (train.grouped and val.grouped)
    return {"leakage": leaks[0] if leaks else "unknown: no groups" if unknown else "none seen"}


def check_output(config: Config, problems: list[SimError]) -> Facts:
    """Whether the run can be written, and what is there."""
    run = RunDir(config.output.output_dir)
    with ErrorCollector(problems):
        run.check_ours()
    held = "holds a run: train needs --resume or --overwrite" if run.holds_a_run else "no run yet"
    return {"folder": str(run.root), "state": held}
