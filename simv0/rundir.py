"""output_dir: who owns it, what lies where, and the lines that grow in it.

config_resolved.yaml
checkpoints/ best.pt last.pt last.prev.pt
metrics/     train_metrics.jsonl val_metrics.jsonl
logs/        stdout.log
evaluation/  metrics.json predictions.jsonl
export/      sim_v0_infer.py labels.json
"""

import fcntl
import importlib.metadata
import json
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from simv0.config import Config, dump_config
from simv0.errors import TrainingError
from simv0.files import told_plainly, write_atomically
from simv0.labels import HEADS

PARTS = ("checkpoints", "metrics", "logs", "evaluation", "export")


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
        self.log = self.root / "logs" / "stdout.log"
        self.evaluation = self.root / "evaluation"
        self.export = self.root / "export"
        self._lock: int | None = None

    def claim(self) -> None:
        """Own the folder until this process ends.

        Raises:
            TrainingError: another process owns it, or it cannot be made.
        """
        with told_plainly(self.root):
            self.root.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(self.root / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._lock)
            raise TrainingError(
                f"{self.root}: another simv0 process is running here; wait for it, or choose another output.output_dir"
            ) from None

    def release(self) -> None:
        """Let another process have the folder."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    @property
    def holds_a_run(self) -> bool:
        """Whether a run was begun here."""
        return self.config.exists() or (self.root / "checkpoints").exists()

    def begin(self, config: Config) -> None:
        """Make an empty run: remove what an earlier one left, write the config and the export.

        Raises:
            SimError: the folder cannot be written.
        """
        with told_plainly(self.root):
            self.config.unlink(missing_ok=True)  # first: a half-removed run is no run
            for part in PARTS:
                shutil.rmtree(self.root / part, ignore_errors=True)
                (self.root / part).mkdir()
        self.write_export()
        write_atomically(self.config, dump_config(config).encode())

    def write_export(self) -> None:
        """`export/`: a short script that predicts with `../checkpoints/best.pt`, and the label names."""
        script = Path(__file__).with_name("sim_v0_infer.py")
        write_atomically(self.export / script.name, script.read_bytes())
        write_atomically(self.export / "labels.json", (json.dumps(HEADS, indent=2) + "\n").encode())

    def log_to_file(self) -> logging.Handler:
        """Let everything that is said also go to `logs/stdout.log`."""
        handler = logging.FileHandler(self.log, encoding="utf-8")
        handler.setFormatter(logging.Formatter("%(message)s"))
        logger = logging.getLogger("simv0")
        if logger.level == logging.NOTSET:  # nobody has chosen: a library's user wants the log whole
            logger.setLevel(logging.INFO)
        logger.addHandler(handler)
        return handler


def append_line(path: Path, row: dict[str, Any]) -> None:
    """Append one flat JSON object and sync it."""
    with told_plainly(path), path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")
        file.flush()
        os.fsync(file.fileno())


def cut_back(path: Path, epochs: int) -> None:
    """Keep the lines of epochs 1..`epochs`; later ones, and a torn last one, are dropped."""
    kept = []
    for line in path.read_bytes().split(b"\n") if path.exists() else []:
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict) and row.get("epoch", epochs + 1) <= epochs:
            kept.append(line + b"\n")
    write_atomically(path, b"".join(kept))


def provenance() -> dict[str, Any]:
    """Git hash of the current folder's repository (with "-dirty" when it has changes), versions of what computes."""
    packages = ("torch", "transformers", "open_clip_torch", "h5py", "numpy")
    return {
        "git": _git_hash(),
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


def _git_hash() -> str | None:
    try:
        command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None
