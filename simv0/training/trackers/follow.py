"""Following a run elsewhere: its points, from the metrics files to the trackers.

The files stay the truth. A point is in a file before a tracker hears of it, and before the checkpoint that comes after
it; a resumed run cuts the files back to its checkpoint, and whoever opens the trackers gives them all points again. So
each point is there once, whenever a run was killed. A thread of its own delivers: no step waits for a server.
"""

import json
import logging
import math
import secrets
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from threading import Event, Thread
from typing import Any, Literal

from simv0.config.schema import Config
from simv0.disk.files import told_plainly, write_atomically
from simv0.errors import SimError
from simv0.model.checkpoint import load_checkpoint
from simv0.model.metrics import Metrics
from simv0.runtime.distributed import rank
from simv0.training.rundir import CONTROL, RunDir
from simv0.training.trackers.kinds import TRACKERS, Followed, Point, Tracker, check_trackers, trackers_of

log = logging.getLogger("simv0")

STEP_EVERY = 25
"""Steps between points within an epoch."""
GATHER = 1.0
"""Seconds for which points are gathered before they are delivered together."""
PATIENCE = 300.0
"""Seconds that the end of a run waits for its trackers."""
WITHOUT = "going on without it (metrics/ has every point; train --resume delivers them)"


class Follower:
    """A run's points on their way to its metrics files and its trackers.

    Args:
        run: its metrics files hold the points so far, which the trackers are given first.
        trackers: those that could be opened, by name; None where none was asked for: then it does nothing.
    """

    def __init__(self, run: RunDir, trackers: dict[str, Tracker] | None) -> None:
        self.run, self.trackers, self._asked = run, trackers or {}, trackers is not None
        self.count = self._delivered = 0
        self._points: SimpleQueue[Point] = SimpleQueue()
        self._pictures: dict[str, bytes] = {}
        self._ended = Event()
        self._thread = Thread(target=self._deliver, name="simv0-trackers", daemon=True)
        if self._asked:
            with told_plainly(run.step_metrics):
                self._file = run.step_metrics.open("a", encoding="utf-8")
            for axis, row in rows_of(run):
                self._hand(axis, row)
            self._thread.start()

    def step(self, epoch: int, step: int, loss: float, lr: float) -> None:
        """A point after step `step` of the run, in epoch `epoch`, both from 1."""
        if self._asked:
            row = {"epoch": epoch, "step": step, "step/loss": loss, "step/lr": lr}
            with told_plainly(self.run.step_metrics):
                self._file.write(json.dumps(row) + "\n")
                self._file.flush()  # so that a kill leaves it
            self._hand("step", row)

    def epoch(self, epoch: int, train: Metrics, val: Metrics) -> None:
        """The point of an epoch, whose lines are written."""
        if self._asked:
            self._hand("epoch", _of_epoch({"epoch": epoch, **train}, val))

    def show(self, pictures: Mapping[str, bytes]) -> None:
        """Pictures (name -> PNG) that lie in `evaluation/NAME.png`, for when all points are delivered."""
        self._pictures.update(pictures)

    def close(self) -> None:
        """Deliver what is left."""
        if not self._asked:
            return
        self._file.close()
        self._ended.set()
        self._thread.join(PATIENCE)
        if self._thread.is_alive():
            log.warning(f"{', '.join(self.trackers)}: not done after {PATIENCE:.0f} s; metrics/ has every point")

    @property
    def waiting(self) -> int:
        """Points that are not delivered yet."""
        return self.count - self._delivered

    def _hand(self, axis: Literal["epoch", "step"], row: Mapping[str, Any]) -> None:
        self.count += 1
        values = {key: value for key, value in row.items() if key not in ("epoch", "step") and _is_number(value)}
        self._points.put(Point(self.count, axis, row[axis], values))

    def _deliver(self) -> None:
        ended = False
        while not ended:
            ended = self._ended.wait(GATHER)  # read first: what comes before the end is delivered
            points = [self._points.get() for _ in range(self._points.qsize())]
            if points:
                self._each(partial(_write, points))
                self._delivered += len(points)
        kept = {
            str(path.relative_to(self.run.root).with_suffix("")): path.read_bytes()
            for path in sorted(self.run.evaluation.rglob("*.png"))
        }
        self._each(partial(_show, kept, self._pictures))
        self._each(lambda tracker: tracker.close())

    def _each(self, do: Callable[[Tracker], None]) -> None:
        """Let every tracker do something; who cannot is left out from then on."""
        for name, tracker in list(self.trackers.items()):
            try:
                do(tracker)
            except Exception as error:  # a foreign package, a network, a full disk: no reason to lose a run
                del self.trackers[name]
                log.warning(f"{name}: {_first_line(error)}; {WITHOUT}")


@contextmanager
def followed(config: Config, run: RunDir, steps: int | None = None) -> Iterator[Follower]:
    """For a `with` block, follow a run whose metrics files hold its finished epochs.

    Args:
        config: says where.
        run: its folder, which this process owns.
        steps: how many steps of the run are done; points of later ones are dropped. None: all are.

    Raises:
        SimError: the metrics cannot be written.
    """
    names = trackers_of(config) if rank() == 0 else []
    if names and steps is not None:
        kept = [row for row in _rows(run.step_metrics) if row["step"] <= steps]
        write_atomically(run.step_metrics, "".join(json.dumps(row) + "\n" for row in kept).encode())
    follower = Follower(run, _open(names, config, run) if names else None)
    try:
        yield follower
    finally:
        follower.close()


def show_pictures(config: Config, run: RunDir, pictures: Mapping[str, bytes]) -> None:
    """Give a finished run's trackers pictures (name -> PNG), which are kept beside the evaluation they are of.

    Before its end a run's points would come after them, and a tracker that only grows would take them for its own.

    Raises:
        SimError: the pictures cannot be written.
    """
    for name, picture in pictures.items():
        write_atomically((run.root / name).with_suffix(".png"), picture)
    try:
        run.claim()
        try:
            if not _is_finished(run, config):
                log.info("the trackers get no pictures of a run that is not finished")
                return
            check_trackers(config)
            with followed(config, run) as follower:
                follower.show(pictures)
        finally:
            run.release()
    except SimError as error:  # the evaluation is done
        log.warning(f"the trackers did not get its pictures: {error}")


def _is_finished(run: RunDir, config: Config) -> bool:
    last, patience = load_checkpoint(run.last), config.training.patience
    gave_up = patience is not None and last.training is not None and last.training.since_best >= patience
    return last.meta.epoch >= config.training.epochs or gave_up


def _open(names: list[str], config: Config, run: RunDir) -> dict[str, Tracker]:
    """The trackers, by name."""
    identity, logs = run.root / "logs" / "trackers.json", run.root / "logs"
    if not identity.exists():
        write_atomically(identity, json.dumps({"id": secrets.token_hex(4)}).encode())
    name = run.root.name if run.root.name != CONTROL else f"{run.root.parent.name}-{CONTROL}"
    about = Followed(name, json.loads(identity.read_text())["id"], logs, config)
    opened: dict[str, Tracker] = {}
    for kind in names:
        try:
            opened[kind] = TRACKERS[kind](about)
        except Exception as error:  # of a foreign package: no reason to lose a run
            log.warning(f"{kind}: cannot be opened: {_first_line(error)}; {WITHOUT}")
    return opened


def rows_of(run: RunDir) -> list[tuple[Literal["epoch", "step"], dict[str, Any]]]:
    """The points that a run's metrics files hold, in order."""
    found: list[tuple[Literal["epoch", "step"], dict[str, Any]]] = [("step", row) for row in _rows(run.step_metrics)]
    val = {row["epoch"]: row for row in _rows(run.val_metrics)}
    found += [("epoch", _of_epoch(row, val[row["epoch"]])) for row in _rows(run.train_metrics) if row["epoch"] in val]
    return sorted(found, key=lambda item: (item[1]["epoch"], item[0] == "epoch"))  # steps keep their order


def _of_epoch(train: Mapping[str, Any], val: Mapping[str, Any]) -> dict[str, Any]:
    splits = {"train": train, "val": val}
    values = {f"{name}/{key}": value for name, row in splits.items() for key, value in row.items() if key != "epoch"}
    return {"epoch": train["epoch"], **values}


def _rows(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a metrics file."""
    rows = []
    for line in path.read_bytes().split(b"\n") if path.exists() else []:
        with suppress(ValueError):  # torn by a kill
            rows.append(json.loads(line))
    return rows


def _write(points: list[Point], tracker: Tracker) -> None:
    tracker.write(points)


def _show(kept: dict[str, bytes], new: dict[str, bytes], tracker: Tracker) -> None:
    if pictures := kept if tracker.anew else new:  # showing none would take the next point's place
        tracker.show(pictures)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__
