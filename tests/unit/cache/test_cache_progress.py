"""What cache-vis shows while it works, and how it cuts its work."""

import logging
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cache_world import cache_until, fresh, train_file
from commands import Terminal
from strikes import while_running

from cache.pipeline import cache_vis
from simv0.config.schema import Config
from simv0.features.reader import read_features
from simv0.features.shards import shard_windows_of
from simv0.vision.encoder import Encoder


def test_lines_tell_frames_percentage_and_time_left(
    world: tuple[Config, bytes], tmp_path: Path, caplog: Any, monkeypatch: Any
) -> None:
    """26 frames in 92 places; stopped after 2 shards, then with a line after each job."""
    monkeypatch.setattr("simv0.runtime.progress.LOG_EVERY", 0)
    config = fresh(world[0], tmp_path)
    with caplog.at_level(logging.INFO, "simv0"):
        cache_until(config, 2)
        said = [line for line in caplog.messages if "reading the files once" not in line]
        assert len(said) < len(caplog.messages)
        assert said[0] == "train: 26 frames to encode, for 23 windows"
        assert re.fullmatch(
            r"train: 8 of 26 frames \(30%\), \d+\.\d frames/s, \d+ s left, \d+% waiting for data", said[1]
        )
        caplog.clear()
        cache_vis(config)
    said = [line for line in caplog.messages if "reading the files once" not in line]
    assert said[0] == "train: 13 frames to encode, for 23 windows; 13 are already done"
    shown = [int(found[1]) for line in caplog.messages if (found := re.match(r"train: (\d+) of 26 frames", line))]
    assert shown == sorted(shown)
    assert shown[-1] == 26


def test_a_bar_stands_on_a_terminal(world: tuple[Config, bytes], tmp_path: Path, monkeypatch: Any) -> None:
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setenv("TERM", "xterm")
    cache_vis(fresh(world[0], tmp_path))
    assert "26 of 26 frames (100%)" in re.sub(r"\x1b\[[\d;?]*[a-zA-Z]", "", terminal.getvalue())


def test_a_small_split_has_small_shards_that_share_batches(
    world: tuple[Config, bytes], tmp_path: Path, monkeypatch: Any
) -> None:
    """One window a shard: each adds one frame, and eight of them still fill a batch; the features are the same."""
    calls: list[int] = []
    with while_running(Encoder, lambda count, _: calls.append(count)):
        train, _ = cache_vis(fresh(world[0], tmp_path, shard_windows=1))
    assert len(calls) == 1 + 4 + 2  # one as it is loaded; then 26 and 10 frames, 8 a batch
    assert np.array_equal(read_features(train.path).map(), read_features(train_file(world[0])).map())
    sizes = {N: shard_windows_of(N, None) for N in (1, 23, 901, 10_000, 10**6)}
    assert sizes == {1: 64, 23: 64, 901: 64, 10_000: 156, 10**6: 1024}
    assert shard_windows_of(901, 1024) == 1024


def test_unfinished_work_keeps_the_plan_it_was_begun_with(
    world: tuple[Config, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = fresh(world[0], tmp_path)  # 5 windows a shard, as an older version's default may have been
    cache_until(config, 2)
    train, val = cache_vis(fresh(config, tmp_path, shard_windows=None))
    assert train.counts.windows == 23 - 2 * 5
    assert train_file(config).read_bytes() == world[1]
    assert read_features(val.path).info.block_windows == 64
