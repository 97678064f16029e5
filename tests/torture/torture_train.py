"""Torture of training and of what it reads: kills, resumes, damaged and hostile files, full disks.

`make torture` runs everything at full size and prints the figures of benchmarks/results/torture_*.md;
test_torture_train.py beside this file runs the same functions at a smaller size. A run here is a few seconds of the
real `fit` on tiny networks, in children of one process, forked so that each starts at once. Whatever is not as it must
be is an AssertionError.
"""

import logging
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parents[1]), str(HERE.parent / "support"), str(HERE)]

import numpy as np  # noqa: E402
import torch  # noqa: E402
from fit_world import outcome  # noqa: E402
from strikes import after_writing  # noqa: E402
from torture_files import fuzzed_configs, hostile_checkpoints, hostile_pickles, mutated_checkpoints, mutated_configs  # noqa: E402

import simv0.training.fit  # noqa: E402
from simv0.config.load import build_config  # noqa: E402
from simv0.config.schema import Config  # noqa: E402
from simv0.demo.networks import save_tiny_llm  # noqa: E402
from simv0.errors import SimError  # noqa: E402
from simv0.model.checkpoint import load_checkpoint, save_checkpoint  # noqa: E402
from simv0.training.fit import fit  # noqa: E402
from simv0.training.rundir import RunDir  # noqa: E402

EPOCHS, STEPS = 2, 4
SAVES = EPOCHS * (STEPS + 1)
"""of last.pt in one run: after each step and after each epoch."""


class Windows:
    """A dataset that brings its features: 32 windows."""

    def __init__(self, path: str) -> None:
        self.feats = np.random.default_rng(len(path)).normal(size=(32, 4, 6)).astype(np.float32)

    def __len__(self) -> int:
        return len(self.feats)

    def __getitem__(self, i: int) -> dict[str, Any]:
        labels = {"risk_id": i % 4, "reason_id": i // 2 % 4, "action_id": i % 6}
        return {"vis_feats": self.feats[i], "telemetry": self.feats[i].ravel()[:8], "sample_id": f"w{i}", **labels}


def small_config(folder: Path, name: str = "run", workers: int = 0) -> Config:
    """A run of `EPOCHS` x `STEPS` steps under `folder`, saved after each step."""
    if not (folder / "llm").exists():
        save_tiny_llm(folder / "llm", d=16, layers=1)
    data = {"train_split_path": "/train", "val_split_path": "/val", "batch_size": 8, "num_workers": workers}
    tree = {
        "data": {**data, "dataset_class_path": "torture_train.Windows"},
        "cache": {"dir": str(folder / "none")},
        "model": {"llm_name_or_path": str(folder / "llm"), "F": 4, "K": 2},
        "training": {"epochs": EPOCHS, "amp": False, "checkpoint_every_steps": 1},
        "output": {"output_dir": str(folder / name)},
    }
    return build_config(tree, "torture")


def unbroken(folder: Path) -> tuple[Any, ...]:
    """The outcome of a run that nothing hurts, in this process: its children find everything imported."""
    return outcome(fit(small_config(folder, "unbroken"), resume=True))


def forked(config: Config, die_at_save: int = 0) -> int:
    """Start `fit --resume` in a child and return its process id; it kills itself after that save of last.pt, if any."""
    child = os.fork()
    if child:
        return child
    logging.disable()
    try:
        with after_writing("last.pt", lambda saves, _: saves == die_at_save and os.kill(os.getpid(), signal.SIGKILL)):
            fit(config, resume=True)
        os._exit(0)
    except BaseException as error:
        print(f"in the child: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
    finally:
        os._exit(1)


def ended(child: int) -> int:
    """Wait for a child: its exit code, negative for a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def random_kills(folder: Path, kills: int, rng: random.Random) -> dict[str, Any]:
    """SIGKILL runs at random moments, resume each until it ends, and compare its end with an unbroken run's."""
    wanted = unbroken(folder)
    shutil.rmtree(folder / "run", ignore_errors=True)
    started = time.monotonic()
    assert ended(forked(small_config(folder))) == 0
    length = time.monotonic() - started
    struck: Counter[str] = Counter()
    while struck["kills"] < kills:
        config = small_config(folder)
        run = RunDir(config.output.output_dir)
        shutil.rmtree(run.root, ignore_errors=True)
        had_one = False
        while True:
            child = forked(config)
            time.sleep(rng.uniform(0, length))  # the blow falls at a random moment
            os.kill(child, signal.SIGKILL)
            code = ended(child)
            assert code in (0, -signal.SIGKILL), f"the resumed run failed with {code}"
            if code == 0:
                break
            struck["kills"] += 1
            struck["within a save"] += any(run.root.rglob("*.tmp"))
            existing = [path for path in (run.last, run.previous, run.best) if path.exists()]
            for path in existing:
                load_checkpoint(path)
            struck["before the first save"] += not existing
            assert run.last.exists() or not had_one, "last.pt is gone"
            had_one = run.last.exists()
        struck["runs"] += 1
        assert outcome(run) == wanted
        assert not any(run.root.rglob("*.tmp"))
    return dict(struck)


def resume_everywhere(folder: Path, workers: list[tuple[int, int]], every: int = 1) -> int:
    """Kill a run after every save, go on with another number of workers, compare the ends; returns how many."""
    wanted, count = unbroken(folder), 0
    for before, after in workers:
        for save in range(1, SAVES + 1, every):
            shutil.rmtree(folder / "run", ignore_errors=True)
            assert ended(forked(small_config(folder, workers=before), save)) == -signal.SIGKILL
            assert ended(forked(small_config(folder, workers=after))) == 0
            assert outcome(RunDir(folder / "run")) == wanted
            count += 1
    return count


def refused_write(config: Config, at: int, refuse: Callable[[], None], allow: Callable[[], None]) -> str:
    """Let the disk refuse from the `at`-th save on; last.pt must stay; returns the one line."""
    run, count, before = RunDir(config.output.output_dir), 0, b""

    def save(path: Path, content: Any, **kwargs: Any) -> None:
        nonlocal count, before
        count += 1
        if count == at:
            before = run.last.read_bytes() if run.last.exists() else b""
            refuse()
        save_checkpoint(path, content, **kwargs)

    simv0.training.fit.save_checkpoint = save  # type: ignore[attr-defined]
    try:
        fit(config, resume=True)
    except SimError as error:
        message = str(error)
    else:
        raise AssertionError("the save was not refused")
    finally:
        allow()
        simv0.training.fit.save_checkpoint = save_checkpoint  # type: ignore[attr-defined]
    assert "\n" not in message
    assert (run.last.read_bytes() if run.last.exists() else b"") == before
    assert not any(run.root.rglob("*.tmp"))
    return message


def full_disk(folder: Path, saves: list[int]) -> set[str]:
    """Files may not grow beyond 1 kB from some save on, then may again: the run must end as an unbroken one."""
    wanted, reasons = unbroken(folder), set()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    for at in saves:
        config = small_config(folder, "full")
        shutil.rmtree(config.output.output_dir, ignore_errors=True)
        message = refused_write(
            config,
            at,
            lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard)),
            lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard)),
        )
        assert "cannot be written: File too large; what was there before is intact" in message
        reasons.add(message.split(": ", 1)[1])
        assert outcome(fit(config, resume=True)) == wanted
    return reasons


def read_only(saves: list[int]) -> set[str]:
    """The same with a folder that becomes read-only; root, whom no mode stops, acts as another user meanwhile."""
    with tempfile.TemporaryDirectory() as name:
        folder, reasons = Path(name), set()
        wanted, is_root = unbroken(folder), os.geteuid() == 0
        for at in saves:
            config = small_config(folder, "sealed")
            run = RunDir(config.output.output_dir)
            shutil.rmtree(run.root, ignore_errors=True)

            def refuse(run: RunDir = run) -> None:
                folder.chmod(0o755)
                run.last.parent.chmod(0o555)
                if is_root:
                    os.seteuid(65534)

            def allow(run: RunDir = run) -> None:
                if is_root:
                    os.seteuid(0)
                run.last.parent.chmod(0o755)

            message = refused_write(config, at, refuse, allow)
            assert "cannot be written: Permission denied; what was there before is intact" in message
            reasons.add(message.split(": ", 1)[1])
            assert outcome(fit(config, resume=True)) == wanted
        return reasons


def main() -> None:
    torch.set_num_threads(1)
    logging.disable()
    rng, started = random.Random(0), time.monotonic()

    def say(what: str, figures: object) -> None:
        print(f"{time.monotonic() - started:6.0f} s  {what}: {figures}", flush=True)

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        say("100 SIGKILLs at random moments", random_kills(folder, 100, rng))
        pairs = [(0, 0), (2, 2), (0, 2), (2, 0)]
        say("resumed after every save, workers 0-0, 2-2, 0-2, 2-0", resume_everywhere(folder, pairs))
        run = RunDir(folder / "unbroken")
        say("2,000 mutated checkpoints", mutated_checkpoints(run.last, 2000, rng))
        say("2,000 mutated configs", mutated_configs(run.config.read_text(), folder, 2000, rng))
        say("5,000 fuzzed configs", fuzzed_configs(folder, 5000))
        say(f"{len(hostile_pickles())} hostile pickles in 3 coats", hostile_checkpoints(folder / "hostile.pt"))
        every = list(range(1, SAVES + 2))
        say("disk full at every save", full_disk(folder, every))
        say("read-only at every save", read_only(every))


if __name__ == "__main__":
    main()
