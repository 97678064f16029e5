"""`train` moves within an epoch on a terminal, and says nothing more elsewhere."""

import io
import sys

import pytest
from commands import Terminal

from simv0.training.epoch_view import epoch_bar


def test_a_bar_counts_the_batches_of_an_epoch_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "80")
    with epoch_bar("epoch 3", total=5, done=2) as moved:
        moved()
        moved()
    shown = sys.stderr.getvalue()  # type: ignore[attr-defined]
    assert "epoch 3" in shown
    assert "4/5" in shown
    assert shown.rstrip().endswith("\x1b[2K")  # erased: the line of the epoch takes its place


@pytest.mark.parametrize("terminal", [True, False])
def test_nothing_is_shown_elsewhere(terminal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", Terminal() if terminal else io.StringIO())
    with epoch_bar("epoch 1", total=1, shown=not terminal) as moved:  # of another rank, or piped
        moved()
    assert sys.stderr.getvalue() == ""  # type: ignore[attr-defined]
