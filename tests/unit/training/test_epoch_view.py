"""`train` moves within an epoch on a terminal, and says a line now and then elsewhere."""

import io
import logging
import sys

import pytest
from commands import Terminal

from simv0.runtime.progress import no_progress
from simv0.training import epoch_view
from simv0.training.epoch_view import batches_shown, table_head, table_row


def test_a_bar_counts_the_batches_of_an_epoch_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setattr("simv0.runtime.progress.DRAW_EVERY", 1e-9)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    with batches_shown("epoch 3", total=5, done=2) as moved:
        moved()
        moved()
    shown = sys.stderr.getvalue()  # type: ignore[attr-defined]
    assert "epoch 3" in shown
    assert "4 of 5 batches (80%)" in shown
    assert " left" in shown
    assert shown.rstrip().endswith("\x1b[2K")  # erased: the line of the epoch takes its place


def test_elsewhere_a_line_a_minute_says_how_far_it_is(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "simv0")
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    monkeypatch.setattr(epoch_view, "LOG_EVERY", -1.0)
    with batches_shown("epoch 3", total=4, done=1) as moved:
        moved()
    assert len(caplog.messages) == 1
    assert caplog.messages[0].startswith("epoch 3: 2 of 4 batches (50%), ")
    monkeypatch.setattr(epoch_view, "LOG_EVERY", 60.0)
    with batches_shown("epoch 3", total=4, done=1) as moved:
        moved()
    assert len(caplog.messages) == 1
    assert sys.stderr.getvalue() == ""  # type: ignore[attr-defined]


def test_other_ranks_and_the_quiet_show_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", Terminal())
    with batches_shown("epoch 1", total=1, shown=False) as moved:
        moved()
    with no_progress(), batches_shown("epoch 1", total=1) as moved:
        moved()
    assert sys.stderr.getvalue() == ""  # type: ignore[attr-defined]


def test_the_table_tells_what_the_project_asks_for() -> None:
    learnt = {"loss": 1.5, "data_wait_share": 0.25, "seconds": 3.0}
    measured = {
        "loss": 1.25,
        "risk_high_recall": 0.75,
        "risk_high_fn_rate": 0.25,
        "action_accuracy": 0.5,
        "macro_f1": 0.625,
        "composite": None,
    }
    head, row = table_head(), table_row(7, learnt, measured, better=True)
    titles = ["train loss", "val loss", "high recall", "high missed", "action accuracy", "macro F1", "composite"]
    ends = [head.index(title) + len(title) for title in titles]
    assert ends == sorted(ends)
    assert row.split() == ["7", "1.500", "1.250", "0.750", "0.250", "0.500", "0.625", "-", "25.0%", "3.0", "*"]
    assert row[: ends[3]].endswith("0.250")  # below its title
