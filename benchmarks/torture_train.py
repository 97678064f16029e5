"""Torture of training and of what it reads: kills, resumes, damaged and hostile files, full disks.

`make torture` runs everything at full size and prints the figures of docs/reliability.md; tests/test_torture_train.py
runs the same functions at a smaller size. A run here is a few seconds of the real `fit` on tiny networks, in children
of one process, forked so that each starts at once. Whatever is not as it must be is an AssertionError.
"""

import io
import json
import logging
import os
import pickle
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import simv0.fit
from simv0.checkpoint import check_fits, load_checkpoint, save_checkpoint, seal
from simv0.config import Config
from simv0.config_file import all_keys, build_config, load_config
from simv0.errors import CheckpointError, ConfigError, SimError
from simv0.fit import fit
from simv0.rundir import RunDir
from simv0.tiny import save_tiny_llm
from simv0.yaml_safe import dump_yaml

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


def outcome(run: RunDir) -> dict[str, Any]:
    """What must equal an unbroken run's, bit for bit: all but paths (in the config) and the git hash of the moment."""

    def bits(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return value.numpy().tobytes()
        if isinstance(value, dict):
            return {key: bits(item) for key, item in value.items() if key not in ("config", "provenance")}
        return value

    def rows(path: Path) -> list[dict[str, Any]]:
        clock = ("seconds", "data_wait_share")
        return [{k: v for k, v in json.loads(line).items() if k not in clock} for line in path.read_text().splitlines()]

    return {
        "last": bits(load_checkpoint(run.last).model_dump()),
        "best": bits(load_checkpoint(run.best).model_dump()),
        "train_metrics": rows(run.train_metrics),
        "val_metrics": rows(run.val_metrics),
    }


def unbroken(folder: Path) -> dict[str, Any]:
    """The outcome of a run that nothing hurts, in this process: its children find everything imported."""
    return outcome(fit(small_config(folder, "unbroken"), resume=True))


def forked(config: Config, die_at_save: int = 0) -> int:
    """Start `fit --resume` in a child and return its process id; it kills itself after that save of last.pt, if any."""
    child = os.fork()
    if child:
        return child
    saves = 0

    def dying_save(path: Path, content: Any, **kwargs: Any) -> None:
        nonlocal saves
        save_checkpoint(path, content, **kwargs)
        saves += path.name == "last.pt"
        if path.name == "last.pt" and saves == die_at_save:
            os.kill(os.getpid(), signal.SIGKILL)

    logging.disable()
    simv0.fit.save_checkpoint = dying_save  # type: ignore[attr-defined]
    try:
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
            time.sleep(rng.uniform(0, length))
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


def mutated(good: bytes, rng: random.Random) -> bytes:
    """Flip a bit, cut, splice, blank a stretch, or put something in."""
    data, at = bytearray(good), rng.randrange(len(good))
    match rng.randrange(5):
        case 0:
            data[at] ^= 1 << rng.randrange(8)
        case 1:
            del data[at:]
        case 2:
            start = rng.randrange(len(good))
            data[at : at + 40] = good[start : start + 40]
        case 3:
            data[at : at + 64] = bytes(min(64, len(data) - at))
        case _:
            data[at:at] = rng.randbytes(rng.randrange(1, 20))
    return bytes(data)


def mutated_checkpoints(good: Path, count: int, rng: random.Random) -> dict[str, int]:
    """Damage a checkpoint, and seal every second one anew, as an attacker would: one line, or weights that fit."""
    whole, path, ends = good.read_bytes(), good.with_name("mutated.pt"), Counter[str]()
    wanted = load_checkpoint(good).state
    body = whole[: -len(seal(b"\0\0"))] + b"\0\0"  # as it was before it was sealed
    assert seal(body) == whole
    for number in range(count):
        sealed_anew = number % 2 == 1
        data = seal(mutated(body, rng)) if sealed_anew else mutated(whole, rng)
        path.write_bytes(data)
        try:
            found = load_checkpoint(path)
            check_fits(found.state, wanted, "the model", path)
        except CheckpointError as error:
            check_line(str(error), str(path))
            ends["refused"] += 1
        else:
            assert sealed_anew or data == whole, "a damaged checkpoint was taken for good"
            assert all(tensor.isfinite().all() for tensor in found.tensors().values())
            ends["other numbers under a new seal"] += data != whole
    return dict(ends)


def check_line(line: str, start: str) -> None:
    assert line.startswith(start), line
    assert line.isprintable(), line


def mutated_configs(good: str, folder: Path, count: int, rng: random.Random) -> dict[str, int]:
    """Damage a config file: a config, or lines that start with the file's name."""
    path, ends = folder / "mutated.yaml", Counter[str]()
    for _ in range(count):
        path.write_bytes(mutated(good.encode(), rng))
        ends[read_config(path)] += 1
    return dict(ends)


def read_config(path: Path) -> str:
    """Load a config; whatever is wrong with it must be told line by line."""
    try:
        load_config(path)
    except ConfigError as error:
        for line in str(error).splitlines():
            check_line(line, f"{path}:")
        return "refused"
    return "read"


def fuzzed_configs(folder: Path, count: int) -> dict[str, int]:
    """Configs of right keys and wrong values, wrong keys, wrong shapes."""
    path, ends = folder / "fuzzed.yaml", Counter[str]()
    scalar = (
        st.none()
        | st.booleans()
        | st.integers()
        | st.floats(allow_nan=False, allow_infinity=False)
        | st.text()
        | st.sampled_from(["${HOME}", "${NOT_SET}", "~", "~nobody\0", "hf-hub:x", "local-dir:", "bf16", "-", "1e-4"])
    )
    value = st.recursive(
        scalar, lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(), inner, max_size=2)
    )
    sections = {name.split(".")[0] for name in all_keys()}

    def section(name: str) -> Any:
        keys = [key.split(".")[1] for key in all_keys() if key.startswith(f"{name}.")]
        return st.dictionaries(st.sampled_from(keys) | st.text(max_size=5), value, max_size=4) | value

    paths = st.fixed_dictionaries({"train_split_path": st.just("/t"), "val_split_path": st.text(min_size=1)})
    trees = st.fixed_dictionaries(
        {"data": paths | section("data")}, optional={name: section(name) for name in sections - {"data"}}
    )

    @settings(
        max_examples=count, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck)
    )
    @given(trees)
    def fuzz(tree: dict[str, Any]) -> None:
        path.write_text(dump_yaml(tree), encoding="utf-8")
        ends[read_config(path)] += 1

    fuzz()
    return dict(ends)


def hostile_pickles() -> list[bytes]:
    """Pickles that run code when a plain unpickler reads them, by every opcode that can."""
    calls = [
        ("os", "system", "touch PWNED"), ("posix", "system", "touch PWNED"), ("os", "popen", "touch PWNED"),
        ("os", "unlink", "PWNED"), ("os", "mkdir", "PWNED"), ("os", "putenv", "A"), ("os", "_exit", 7),
        ("subprocess", "Popen", "true"), ("subprocess", "call", "true"), ("subprocess", "getoutput", "touch PWNED"),
        ("builtins", "eval", "open('PWNED', 'w')"), ("builtins", "exec", "open('PWNED', 'w')"),
        ("builtins", "__import__", "antigravity"), ("builtins", "open", "PWNED"), ("builtins", "getattr", "x"),
        ("builtins", "compile", "x"), ("builtins", "input", "x"), ("builtins", "breakpoint", "x"),
        ("importlib", "import_module", "antigravity"), ("runpy", "run_path", "PWNED"), ("pty", "spawn", "true"),
        ("webbrowser", "open", "http://x.invalid"), ("urllib.request", "urlopen", "http://x.invalid"),
        ("socket", "create_connection", ("x.invalid", 1)), ("ctypes", "CDLL", "libc.so.6"), ("code", "interact", "x"),
        ("shutil", "rmtree", "PWNED"), ("tempfile", "mkstemp", "PWNED"), ("pathlib", "Path", "PWNED"),
        ("pickle", "loads", b"cos\nsystem\n(S'touch PWNED'\ntR."), ("marshal", "loads", b"x"), ("types", "CodeType", 1),
        ("operator", "attrgetter", "x"), ("timeit", "timeit", "open('PWNED', 'w')"),
        ("cProfile", "run", "open('PWNED', 'w')"), ("numpy", "load", "PWNED"), ("numpy", "fromfile", "PWNED"),
        ("torch", "load", "PWNED"), ("torch.hub", "load", "x"), ("torch.jit", "load", "PWNED"), ("torch", "vmap", "x"),
        ("torch.serialization", "load", "PWNED"), ("torch._utils", "_rebuild_wrapper_subclass", "x"),
        ("simv0.datasets", "import_class", "antigravity.x"),
    ]  # fmt: skip

    def reduce(module: str, name: str, argument: Any) -> bytes:
        return f"c{module}\n{name}\n(".encode() + pickle.dumps(argument, 0)[:-1] + b"tR."

    by_opcode = [
        b"(S'touch PWNED'\nios\nsystem\n.",  # INST
        b"(cos\nsystem\nS'touch PWNED'\no.",  # OBJ
        b"\x80\x04\x8c\x02os\x8c\x06system\x93(S'touch PWNED'\ntR.",  # STACK_GLOBAL
        b"\x80\x02cos\nsystem\n(S'touch PWNED'\nt\x81.",  # NEWOBJ
        b"\x80\x02ctorch._tensor\n_rebuild_from_type_v2\n(cos\nsystem\ncbuiltins\nint\n(S'touch PWNED'\nt}tR.",
        b"\x80\x02ctorch.serialization\nos.system\n(S'touch PWNED'\ntR.",  # a dotted name through a module that is safe
        b"\x80\x02ccollections\nOrderedDict\n)R}S'__class__'\ncos\nsystem\nsb.",  # BUILD
    ]
    return [reduce(*call) for call in calls] + by_opcode


EVENTS: list[str] | None = None


def _listen(event: str, args: tuple[Any, ...]) -> None:
    if EVENTS is not None and not (event == "open" and args[1] in ("r", "rb", None)):
        EVENTS.append(event)


def hostile_checkpoints(path: Path) -> int:
    """Load every hostile pickle in every coat; no audit event may tell of anything but reading. Returns how many."""
    global EVENTS
    sys.addaudithook(_listen)  # for the rest of the process; silent while EVENTS is None
    coats: list[Callable[[bytes], bytes]] = [zipped, lambda raw: zipped(b"\x80\x02}S'meta'\n" + raw[:-1] + b"s."), seal]
    count = 0
    for raw in hostile_pickles():
        for coat in coats:
            path.write_bytes(coat(raw))
            for listen in (False, True):  # the first time, modules may be imported that were not needed before
                EVENTS = [] if listen else None
                try:
                    load_checkpoint(path)
                    raise AssertionError("a hostile checkpoint was taken for good")
                except CheckpointError:
                    heard, EVENTS = EVENTS, None
                unexpected = set(heard or []) - {"object.__getattr__", "pickle.find_class"}
                assert not unexpected, f"{raw!r}: {unexpected}"
            count += 1
    assert not Path("PWNED").exists()
    return count


def zipped(raw: bytes) -> bytes:
    """A sealed file as torch.save writes it around a pickle."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        for name, content in (("data.pkl", raw), ("byteorder", b"little"), ("version", b"3\n")):
            file.writestr(f"a/{name}", content)
    return seal(buffer.getvalue())


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

    simv0.fit.save_checkpoint = save  # type: ignore[attr-defined]
    try:
        fit(config, resume=True)
    except SimError as error:
        message = str(error)
    else:
        raise AssertionError("the save was not refused")
    finally:
        allow()
        simv0.fit.save_checkpoint = save_checkpoint  # type: ignore[attr-defined]
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
