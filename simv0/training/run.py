"""A trained run, read from its folder."""

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

from rich.text import Text

from simv0.alarm.stored import Alarm
from simv0.data.jsonl import read_jsonl
from simv0.model.checkpoint import Meta, load_checkpoint
from simv0.model.metrics import Metrics
from simv0.runtime.speaking import Printed, from_here
from simv0.training.epoch_view import table_head, table_row
from simv0.training.rundir import RunDir


class Run(Printed):
    """What `fit` leaves; its files are read when they are asked for.

    Attributes:
        folder: `output.output_dir`.
        best_checkpoint: what `evaluate`, `Predictor.load` and a robot take.
    """

    def __init__(self, folder: str | Path) -> None:
        self._dir = RunDir(folder)
        self.folder, self.best_checkpoint = self._dir.root, self._dir.best

    @property
    def best_epoch(self) -> int:
        """The epoch of `best_checkpoint`, from 1."""
        return self._best.epoch

    @property
    def metrics(self) -> Metrics:
        """Of the best epoch, on val, by the names of `val_metrics.jsonl`; None where nothing could be measured."""
        return self._best.metrics

    @property
    def alarm(self) -> Alarm | None:
        """The threshold on P(high) that is stored in `best_checkpoint`, and what it promises."""
        return self._best.alarm

    @cached_property
    def train_epochs(self) -> list[dict[str, Any]]:
        """The lines of `train_metrics.jsonl`, one an epoch."""
        return read_jsonl(self._dir.train_metrics)

    @cached_property
    def val_epochs(self) -> list[dict[str, Any]]:
        """The lines of `val_metrics.jsonl`, one an epoch."""
        return read_jsonl(self._dir.val_metrics)

    @cached_property
    def _best(self) -> Meta:
        return load_checkpoint(self.best_checkpoint).meta

    def parts(self) -> Iterator[Text]:
        """What it prints: the line of the best epoch, and the alarm."""
        learnt, measured = (
            {name: value for name, value in epochs[self.best_epoch - 1].items() if name != "epoch"}
            for epochs in (self.train_epochs, self.val_epochs)
        )
        count = len(self.val_epochs)
        yield Text(f"{from_here(self.folder)}: {count} epoch{'s' * (count > 1)}, the best is")
        yield Text(f"{table_head()}\n{table_row(self.best_epoch, learnt, measured, False)}")
        yield Text(str(self.alarm))
        yield Text(f"best checkpoint: {from_here(self.best_checkpoint)}")
