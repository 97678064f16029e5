"""output_dir: who owns it, what is where, and the files that grow in it.

config_resolved.yaml
checkpoints/ best.pt last.pt last.prev.pt (epoch_001.pt ... on request)
metrics/     train_metrics.jsonl val_metrics.jsonl (step_metrics.jsonl with trackers)
logs/        stdout.log (tensorboard/ wandb/ mlflow/ trackers.json on request)
evaluation/  metrics.json predictions.jsonl report.html, of best.pt on val; <name>/ of others
export/      sim_v0_infer.py labels.json
llm_control/ with training.llm_control, a run of the same parts around a randomised LLM, and that LLM
"""

import importlib.metadata
import json
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from simv0.config.load import dump_config
from simv0.config.schema import Config
from simv0.disk.files import sync_folder, told_plainly, write_atomically
from simv0.disk.locks import FileLock, NoLocksError
from simv0.errors import TrainingError
from simv0.labels import HEADS

PARTS = ("checkpoints", "metrics", "logs", "evaluation", "export")
CONTROL = "llm_control"
"""Folder of the run around a randomised LLM (`training.llm_control`)."""

SOURCE = Path(__file__).parents[2]
"""Where simv0 is: a checkout, or a site-packages folder (which may lie within somebody's repository)."""

log = logging.getLogger("simv0")


class RunDir:
    """One run's folder, held by one process at a time."""

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)
        self.config = self.root / "config_resolved.yaml"
        self.best = self.root / "checkpoints" / "best.pt"
        self.last = self.root / "checkpoints" / "last.pt"
        self.previous = self.root / "checkpoints" / "last.prev.pt"
        self.train_metrics = self.root / "metrics" / "train_metrics.jsonl"
        self.val_metrics = self.root / "metrics" / "val_metrics.jsonl"
        self.step_metrics = self.root / "metrics" / "step_metrics.jsonl"
        self.log = self.root / "logs" / "stdout.log"
        self.evaluation = self.root / "evaluation"
        self.export = self.root / "export"
        self._lock = FileLock(self.root / ".lock")

    def kept(self, epoch: int) -> Path:
        """Where `training.keep_epochs` keeps the checkpoint of an epoch."""
        return self.last.with_name(f"epoch_{epoch:03d}.pt")

    def claim(self) -> None:
        """Own the folder until this process ends.

        Raises:
            TrainingError: another process owns it, or it cannot be made.
        """
        with told_plainly(self.root):
            self.root.mkdir(parents=True, exist_ok=True)
        try:
            if not self._lock.acquire(wait=False):
                raise TrainingError(
                    f"{self.root}: another simv0 process is running here; wait for it, or choose another "
                    "output.output_dir"
                )
        except NoLocksError as error:
            reason = getattr(error.__cause__, "strerror", error)
            log.warning(f"{self.root}: this file system has no locks ({reason}): do not start a second run here")

    def release(self) -> None:
        """Let another process have the folder."""
        self._lock.release()

    @property
    def holds_a_run(self) -> bool:
        """Whether a run was begun here."""
        return self.config.exists()

    def check_asked(self, *, overwrite: bool, resume: bool) -> None:
        """Refuse a folder that holds a run, unless told what to do with it.

        Raises:
            TrainingError: with the options.
        """
        if self.holds_a_run and not (overwrite or resume):
            raise TrainingError(
                f"{self.root}: already holds a run; use --resume to continue it, --overwrite to replace it, "
                "or another output.output_dir"
            )

    def check_ours(self) -> None:
        """Refuse a folder with parts that no run has made, since `begin` would remove them.

        Raises:
            TrainingError: naming them.
        """
        found = [part for part in (*PARTS, CONTROL) if (self.root / part).exists()]
        if found and not self.holds_a_run:
            raise TrainingError(
                f"{self.root}: holds {', '.join(found)} but no {self.config.name}, so they are not from a run of "
                "simv0 and are not removed; choose another output.output_dir"
            )

    def begin(self, config: Config) -> None:
        """Make an empty run: remove what an earlier one left, write the config and the export.

        Killed at any moment, it leaves the earlier run complete, or a run without a checkpoint.

        Raises:
            SimError: the folder cannot be written.
        """
        doomed = self.root / ".removed"
        with told_plainly(self.root):
            if doomed.exists():
                shutil.rmtree(doomed)
            if self.last.parent.exists():
                self.last.parent.rename(doomed)  # all checkpoints at once
                shutil.rmtree(doomed)
        self.write_config(config)
        with told_plainly(self.root):
            for part in (*PARTS, CONTROL):
                if (self.root / part).exists():
                    shutil.rmtree(self.root / part)
            for part in PARTS:
                (self.root / part).mkdir()
            sync_folder(self.root)
        for path in (self.train_metrics, self.val_metrics):
            write_atomically(path, b"")
        self.write_export()

    def resume(self, config: Config, epochs: int) -> None:
        """Cut the metrics back to so many finished epochs; operational keys of the config may have changed."""
        for path in (self.train_metrics, self.val_metrics):
            cut_back(path, epochs)
        self.write_config(config)

    def write_config(self, config: Config) -> None:
        """`config_resolved.yaml`."""
        write_atomically(self.config, dump_config(config).encode())

    def write_export(self) -> None:
        """`export/`: a short script that predicts with `../checkpoints/best.pt`, and the label names."""
        script = Path(__file__).parents[1] / "export" / "sim_v0_infer.py"
        write_atomically(self.export / script.name, script.read_bytes())
        write_atomically(self.export / "labels.json", (json.dumps(HEADS, indent=2) + "\n").encode())

    @contextmanager
    def log_to_file(self) -> Iterator[None]:
        """Copy everything that is logged in a `with` block to `logs/stdout.log`."""
        with told_plainly(self.log):
            handler = _Log(self.log, encoding="utf-8")
        handler.setFormatter(logging.Formatter("%(message)s"))
        logger = logging.getLogger("simv0")
        level = logger.level
        if level == logging.NOTSET:  # no level was chosen: a library's user wants the whole log
            logger.setLevel(logging.INFO)
        logger.addHandler(handler)
        try:
            yield
        finally:
            logger.removeHandler(handler)
            logger.setLevel(level)
            handler.close()


class _Log(logging.FileHandler):
    """A copy of the log: if it cannot be written, the run silently continues."""

    def handleError(self, record: logging.LogRecord) -> None:
        pass

    def close(self) -> None:
        with suppress(OSError):
            super().close()


def append_line(path: Path, row: dict[str, Any]) -> None:
    """Append one flat JSON object and sync it."""
    with told_plainly(path), path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")
        file.flush()
        os.fsync(file.fileno())


def cut_back(path: Path, epochs: int) -> None:
    """Keep the lines of epochs 1..`epochs`; later ones, and a torn last one, are dropped; missing ones are logged."""
    kept = []
    for line in path.read_bytes().split(b"\n") if path.exists() else []:
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict) and row.get("epoch") in range(1, epochs + 1):
            kept.append(line + b"\n")
    if len(kept) != epochs:
        log.warning(f"{path}: holds {len(kept)} lines for {epochs} finished epochs; the others are lost")
    write_atomically(path, b"".join(kept))


def provenance() -> dict[str, Any]:
    """Which code this is: git hashes (with "-dirty" where there are changes), and the versions of the packages that
    compute.

    `git` is the repository of the current folder, where a user's dataset class and configs are; `simv0_git` is simv0's
    own where it runs from a checkout; either is None where there is none.
    """
    packages = ("torch", "transformers", "open_clip_torch", "h5py", "numpy")
    return {
        "git": _git_hash(Path.cwd()),
        "simv0_git": _git_hash(SOURCE) if (SOURCE / ".git").exists() else None,
        "python": ".".join(map(str, sys.version_info[:3])),
        "simv0": importlib.metadata.version("simv0") if _installed("simv0") else "checkout",
        **{package: importlib.metadata.version(package) for package in packages},
    }


def _installed(package: str) -> bool:
    try:
        importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def _git_hash(folder: Path) -> str | None:
    try:
        command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None
