"""Try to break the cache: kill it, cut its power, fill its disk, let writes fail, damage its files.

    python tests/torture/torture_cache.py [--size full|ci] [kills syscalls failing_syscalls short_writes disk_full
                                   power_cuts mutations]

Each attack prints one JSON line and ends the program with an error if a promise was broken. A run under attack is a
fork of this process, which has all imports behind it. What needs strace, root or a tmpfs is skipped with the reason.
"""

import argparse
import collections
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parents[1]), str(HERE.parent / "support"), str(HERE)]

import numpy as np  # noqa: E402
import torch  # noqa: E402
from arena import Arena, Run  # noqa: E402

from simv0.features.reader import read_features  # noqa: E402


@dataclass
class Size:
    kills: int
    points: int  # kill and fault points are thinned out to about this many
    disks: int
    limits: int
    mutations: int
    cuts: int


SIZES = {"full": Size(200, 10**6, 20, 40, 2000, 24), "ci": Size(4, 6, 4, 4, 100, 1)}


def kills(arena: Arena, size: Size) -> dict[str, Any]:
    """SIGKILL at random moments, 1, 2 or 4 processes, another number after each kill; sometimes one of them only."""
    draw = np.random.default_rng(0)
    counts: collections.Counter[str] = collections.Counter()
    arena.at(arena.folder / "kills")
    began = time.monotonic()
    Run(arena.config).end()
    whole = time.monotonic() - began
    arena.at(arena.folder / "kills")
    while counts["kills"] < size.kills:
        processes = int(draw.choice([1, 2, 4]))
        config = arena.config
        if draw.random() < 0.1:
            config = config.model_copy(update={"data": config.data.model_copy(update={"num_workers": 1})})
        runs = [Run(config) for _ in range(processes)]
        # the blow falls at a random moment, by design: no event is waited for
        time.sleep(draw.random() * whole * (0.75 + 0.25 * processes))
        one_only = processes > 1 and draw.random() < 0.3
        for i, run in enumerate(runs):
            run.end(kill=not one_only or i == 0)
            counts["kills"] += run.status == -signal.SIGKILL
            counts[f"kills of {processes}"] += run.status == -signal.SIGKILL
            counts["shards reported"] += len(run.done)
        for run in runs:
            arena.check(run)
        if one_only:
            assert all(run.status == 0 for run in runs[1:]), "a process died of its neighbour"
            counts["survivors finished"] += processes - 1
        if all((arena.dir / name).exists() for name in arena.truth):
            arena.finish()
            counts["files completed"] += 2
            arena.at(arena.folder / "kills")
    arena.finish()
    return {**counts, "reported shards lost": 0}


SYSCALLS = (
    "openat,write,ftruncate,rename,renameat,renameat2,link,unlink,unlinkat,mkdir,mkdirat,rmdir,fsync,fdatasync,flock"
)


def traced(arena: Arena, inject: str | None, log: Path) -> Run:
    """A run under strace; the calls before `cache_vis` do not count."""
    run = Run(arena.config, stopped=True)
    command = ["strace", "-qq", "-y", "-p", str(run.pid), "-o", str(log), "-e", f"trace={SYSCALLS}"]
    tracer = subprocess.Popen([*command, *(["-e", f"inject={inject}"] if inject else [])], stderr=subprocess.DEVNULL)
    while b"TracerPid:\t0\n" in Path(f"/proc/{run.pid}/status").read_bytes():
        time.sleep(0.002)  # strace says nothing when it has attached
    os.kill(run.pid, signal.SIGCONT)
    run.end()
    tracer.wait()
    return run


def points(arena: Arena, size: Size, kinds: str) -> Iterator[tuple[str, int]]:
    """(system call, n-th use of it) of a whole run, for the calls that can change files."""
    log = arena.folder / "strace.log"
    arena.at(arena.folder / "traced")
    traced(arena, None, log)
    counts: collections.Counter[str] = collections.Counter()
    found = []
    for line in log.read_text().splitlines():
        if match := re.match(r"(\w+)\(", line):
            counts[match[1]] += 1
            reading = match[1] == "openat" and "O_WRONLY" not in line and "O_RDWR" not in line
            pipe = match[1] == "write" and '"done ' in line
            if re.fullmatch(kinds, match[1]) and not reading and not pipe:
                found.append((match[1], counts[match[1]]))
    yield from found[:: -(-len(found) // size.points)]


def syscalls(arena: Arena, size: Size) -> dict[str, Any]:
    """SIGKILL at every system call that changes files."""
    if not shutil.which("strace"):
        return {"skipped": "there is no strace"}
    counts: collections.Counter[str] = collections.Counter()
    for name, n in points(arena, size, r".*"):
        arena.at(arena.folder / "syscalls")
        run = traced(arena, f"{name}:signal=KILL:when={n}", arena.folder / "strace.log")
        counts[name] += run.status == -signal.SIGKILL
        arena.check(run)
        arena.finish()
    return {**counts, "kills": sum(counts.values()), "reported shards lost": 0}


def failing_syscalls(arena: Arena, size: Size) -> dict[str, Any]:
    """EIO at every write, fsync and rename: one line, nothing reported that is not there, and it goes on afterwards."""
    if not shutil.which("strace"):
        return {"skipped": "there is no strace"}
    counts: collections.Counter[str] = collections.Counter()
    for name, n in points(arena, size, r"write|fsync|rename|mkdir|ftruncate"):
        arena.at(arena.folder / "failing")
        log = arena.folder / "strace.log"
        run = traced(arena, f"{name}:error=EIO:when={n}", log)
        arena.check(run)
        (failed,) = (line for line in log.read_text().splitlines() if line.endswith("(INJECTED)"))
        if run.status == 0 and (name == "mkdir" or "/known" in failed):  # a folder that is there, kept facts
            counts["no harm done"] += 1
        else:
            assert run.status == 1, f"{name} {n}: an I/O error went unnoticed"
            assert len(run.errors) == 1, run.errors
            assert "Input/output error" in run.errors[0], run.errors
            counts[name] += 1
        arena.finish()
    return {**counts, "failures noticed": sum(counts.values()) - counts["no harm done"]}


def short_writes(arena: Arena, size: Size) -> dict[str, Any]:
    """No file may grow beyond a limit: the write that reaches it is cut short, the next one fails."""
    counts: collections.Counter[str] = collections.Counter()
    largest = max(map(len, arena.truth.values()))
    for limit in np.linspace(100, largest + 1000, size.limits).astype(int):
        arena.at(arena.folder / "short")
        run = Run(arena.config, lambda limit=limit: resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit), -1))).end()
        arena.check(run)
        if limit < largest:
            assert run.status == 1, f"limit {limit}: went unnoticed"
            assert "File too large" in run.errors[0]
            counts["short writes noticed"] += 1
        else:
            counts["unharmed"] += 1
        arena.finish()
    return dict(counts)


@contextmanager
def small_disk(folder: Path, kilobytes: int) -> Iterator[None]:
    """A tmpfs of this size."""
    folder.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(folder)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def disk_full(arena: Arena, size: Size) -> dict[str, Any]:
    """Disks of many sizes that fill up in every stage; half of the runs believe that there is room."""
    disk = arena.folder / "disk"
    try:
        with small_disk(disk, 100):
            pass
    except (OSError, subprocess.CalledProcessError):
        return {"skipped": "no permission to mount a tmpfs"}
    counts: collections.Counter[str] = collections.Counter()
    total = sum(map(len, arena.truth.values()))
    for i, kilobytes in enumerate(np.linspace(8, 9 * total / 1024, size.disks).astype(int)):
        with small_disk(disk, int(kilobytes)):
            arena.at(disk / "cache")
            run = Run(arena.config, _believe_in_room if i % 2 else lambda: None).end()
            arena.check(run)
            counts["refused before"] += any("are free" in error for error in run.errors)
            counts["full while writing"] += any("No space left" in error for error in run.errors)
            counts["done, or left as shards"] += run.status == 0
            assert run.status in (0, 1)
            assert len(run.errors) == run.status, run.errors
            subprocess.run(["mount", "-o", "remount,size=50m", str(disk)], check=True)
            arena.finish()
    return dict(counts)


def _believe_in_room() -> None:
    shutil.disk_usage = lambda _: collections.namedtuple("usage", "free")(10**12)  # type: ignore[assignment]


@contextmanager
def mounted_image(image: Path, folder: Path) -> Iterator[None]:
    """An ext4 file system in a file."""
    folder.mkdir(exist_ok=True)
    subprocess.run(["mount", "-o", "loop", str(image), str(folder)], check=True, stderr=subprocess.DEVNULL)
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def power_cuts(arena: Arena, size: Size) -> dict[str, Any]:
    """What a power cut leaves: the image of an ext4 file system without its dirty pages, taken at a random moment."""
    disk, image, left = arena.folder / "power", arena.folder / "image", arena.folder / "left"
    draw = np.random.default_rng(2)
    counts: collections.Counter[str] = collections.Counter()
    while counts["cuts"] < size.cuts:
        assert counts["torn copies"] <= counts["cuts"] + 2
        with image.open("wb") as file:
            file.truncate(64 << 20)
        try:
            subprocess.run(["mkfs.ext4", "-q", "-F", str(image)], check=True)
            with mounted_image(image, disk):
                subprocess.run(["sync", "-f", str(disk)], check=True)  # this file system; others may take minutes
                arena.at(disk / "cache")
                run = Run(arena.config)
                time.sleep(draw.random() * 4)  # the power fails at a random moment
                os.kill(run.pid, signal.SIGSTOP)
                shutil.copyfile(image, left)
                run.end(kill=True)
        except (OSError, subprocess.CalledProcessError):
            return {"skipped": "no permission to mount an image of ext4"}
        try:
            with mounted_image(left, disk):
                arena.dir.mkdir(exist_ok=True)  # a cut before anything was synced
                arena.check(run)
                counts["shards reported"] += len(run.done)
                counts["final files"] += len(list(arena.dir.glob("*.h5")))
                arena.finish()
            counts["cuts"] += 1
        except subprocess.CalledProcessError:  # the kernel wrote while the image was copied: no power cut leaves that
            counts["torn copies"] += 1
    return {**counts, "reported shards lost": 0}


def mutations(arena: Arena, size: Size) -> dict[str, Any]:
    """Flipped bits, cut ends, copied pieces: refused, or read right."""
    from attacks import attack

    truth = arena.folder / "cache" / "train.h5"
    file = read_features(truth)
    feats = file.map().tobytes()
    pid = os.fork()
    if pid == 0:
        target = arena.folder / "mutated.h5"
        refused, right = attack(target, truth.read_bytes(), file.info, feats, size.mutations, seed=1)
        (arena.folder / "mutations.json").write_text(json.dumps({"refused": refused, "read right": right}))
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0, "the reader died"
    counts: dict[str, Any] = json.loads((arena.folder / "mutations.json").read_text())
    return {**counts, "wrong data accepted": 0}


ATTACKS = {f.__name__: f for f in (kills, syscalls, failing_syscalls, short_writes, disk_full, power_cuts, mutations)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("attacks", nargs="*", choices=[*ATTACKS, []], default=[])
    parser.add_argument("--size", choices=SIZES, default="full")
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # the forks must not wait for threads that they do not have
    with tempfile.TemporaryDirectory() as folder:
        many = Arena(Path(folder) / "many", windows=60, shard_windows=5)
        few = Arena(Path(folder) / "few", windows=7, shard_windows=3)
        for name in arguments.attacks or ATTACKS:
            began = time.monotonic()
            result = ATTACKS[name](few if "syscalls" in name else many, SIZES[arguments.size])
            print(json.dumps({"attack": name, **result, "seconds": round(time.monotonic() - began)}), flush=True)


if __name__ == "__main__":
    main()
