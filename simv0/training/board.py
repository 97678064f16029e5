"""TensorBoard on request: the lines of the metrics files once more, as curves. The JSONL files stay the truth."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from simv0.config.schema import Config
from simv0.disk.files import told_plainly
from simv0.errors import ConfigError
from simv0.model.metrics import Metrics
from simv0.runtime.distributed import rank

Write = Callable[[int, Metrics, Metrics], None]


def check_tensorboard(config: Config) -> None:
    """Refuse `training.tensorboard` without the package.

    Raises:
        ConfigError: it is not installed.
    """
    if config.training.tensorboard:
        try:
            import torch.utils.tensorboard  # noqa: F401
        except ImportError:
            raise ConfigError("training.tensorboard needs tensorboard: pip install 'simv0[tensorboard]'") from None


@contextmanager
def tensorboard(config: Config, folder: Path, epochs_done: int) -> Iterator[Write]:
    """For a `with` block, what writes one epoch's train and val metrics as `train/KEY` and `val/KEY`.

    Null and non-finite metrics are left out. An epoch is on disk when its call returns; what a killed run has left of
    epochs after `epochs_done` is hidden by TensorBoard itself (`purge_step`). Does nothing without
    `training.tensorboard`, and in all processes but the first.

    Raises:
        SimError: the folder cannot be written.
    """
    if not config.training.tensorboard or rank() > 0:
        yield lambda epoch, train, val: None
        return
    from torch.utils.tensorboard import SummaryWriter

    with told_plainly(folder):
        writer = SummaryWriter(folder, purge_step=epochs_done + 1)

    def write(epoch: int, train: Metrics, val: Metrics) -> None:
        with told_plainly(folder):
            for split, metrics in (("train", train), ("val", val)):
                for key, value in metrics.items():
                    if value is not None and math.isfinite(value):
                        writer.add_scalar(f"{split}/{key}", value, epoch)
            writer.flush()

    try:
        yield write
    finally:
        with told_plainly(folder):
            writer.close()
