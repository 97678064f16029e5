"""The overlay: as many frames as came in, and what the stream says can be seen in the pixels."""

import json
import math
from pathlib import Path
from typing import Any

import commands
import numpy as np
import pytest
import torch
from small_world import MakeConfig
from stream_states import state
from videos import write_csv, write_video

from simv0.data.recordings.video import VideoReader
from simv0.labels import HEADS
from simv0.overlay.draw import COLORS, Overlay
from simv0.training.fit import fit

UNKNOWN: dict[str, Any] = {"unknown": "the window is not full yet: 1 of 8 frames", "prediction": None, "alarm": None}


def rgb(color: str) -> tuple[int, ...]:
    return tuple(bytes.fromhex(color[1:]))


def share(picture: np.ndarray, color: str) -> float:
    return float((picture == np.array(rgb(color), np.uint8)).all(-1).mean())


@pytest.mark.parametrize(("width", "height"), [(320, 160), (1280, 720), (641, 361), (64, 48)])
def test_it_shows_what_the_state_says(width: int, height: int) -> None:
    frame = torch.full((3, height, width), 90, dtype=torch.uint8)
    calm = Overlay(0.5).draw(frame, state("none", "continue"), 0.0)
    assert calm.shape[0] % 2 == calm.shape[1] % 2 == 0
    assert calm.shape[1] == max(320, width // 2 * 2)
    assert share(calm, COLORS["none"]) > 0.01
    top = calm[: calm.shape[0] // 4]
    assert (top == 90).all()  # nothing hides the picture
    alarmed = Overlay(0.5).draw(frame, state("high", "stop", alarm=True), 0.0)
    assert tuple(alarmed[0, 0]) == tuple(alarmed[alarmed.shape[0] // 3, 0]) == rgb(COLORS["high"])
    blind = Overlay(0.5).draw(frame, state("unknown", "stop", **UNKNOWN), 0.0)
    assert share(blind[: blind.shape[0] // 3], COLORS["unknown"]) > 0.005
    arrows = {action: Overlay().draw(frame, state("low", action), 0.0).tobytes() for action in HEADS["action"]}
    assert len(set(arrows.values())) == 6


def test_the_time_line_moves_and_forgets() -> None:
    overlay = Overlay(0.5)
    frame = torch.full((3, 160, 320), 90, dtype=torch.uint8)
    for i in range(200):
        picture = overlay.draw(frame, state("high" if i < 20 else "none"), i / 10)
        if i == 60:
            reds = (picture[-5] == np.array(rgb(COLORS["high"]))).all(-1).nonzero()[0]
            assert 110 < reds.min() < reds.max() < 190  # 6 to 4 seconds ago on a line of 10 s
    assert share(picture[-6:-4], COLORS["high"]) == 0
    assert len(overlay._past) <= 102


def test_nothing_is_drawn_over_words_and_none_is_flickering() -> None:
    frame = torch.full((3, 160, 320), 90, dtype=torch.uint8)
    now = {risk: Overlay() for risk in ("high", "none")}
    for i in range(1, 100):  # P(high) is 0.7 or 0.1 for ten seconds
        drawn = {risk: overlay.draw(frame, state(risk), i / 10) for risk, overlay in now.items()}
    words = {risk: picture[-44:-38, :80] for risk, picture in drawn.items()}
    assert words["high"].max() > 120
    assert (words["high"] == words["none"]).all()
    spare = state("none", outcome="dropped", problem="push[9]: more than 8 frames per spacing of 0.2 s")
    assert (Overlay().draw(frame, spare, 1.0) == Overlay().draw(frame, state("none"), 1.0)).all()


def test_time_and_speed_stand_in_the_lower_corners() -> None:
    frame = torch.full((3, 160, 320), 90, dtype=torch.uint8)

    def corners(t: float, v: float, w: float) -> list[bytes]:
        picture = Overlay().draw(frame, state("none"), t, [0.0] * 6 + [v, w])[:160]
        assert (picture[:135] == 90)[:, :100].all()
        return [picture[135:, :120].tobytes(), picture[135:, 200:].tobytes()]

    plain = corners(1.0, 0.5, 0.1)
    assert corners(1.01, 0.5, 0.1) == [corners(1.01, 9.0, 9.0)[0], plain[1]] != plain
    assert corners(1.0, 0.6, 0.1)[0] == plain[0]
    assert len({corners(1.0, *speed)[1] for speed in ((0.5, 0.1), (0.5, -0.1), (0.6, 0.1), (math.nan, 0.1))}) == 4
    assert corners(1.7e9, 0.5, 0.1)[0] == corners(1.8e9, 0.5, 0.1)[0]  # since the beginning: +0.00 s


def test_all_options_are_checked_before_anything_is_read(tmp_path: Path) -> None:
    args = ["--ckpt", "no.pt", "--frames", "no", "--telemetry", "no.csv", "--fps", "0", "--spacing", "nan"]
    result = commands.run("overlay", *args, "--out", tmp_path)
    assert (result.exit_code, result.stderr.splitlines()) == (
        2,
        [
            "error: --ckpt: no.pt: checkpoint not found",
            "error: --frames: no: no such folder, video or sequence.jsonl",
            "error: --telemetry: no.csv: file not found",
            "error: --fps: expected frames per second, above 0 and at most 1000, found 0",
            "error: --spacing: expected seconds, above 0 and at most 3600, found nan",
            f"error: --out: expected a name that ends in .mp4, found {tmp_path}",
        ],
    )
    for name in ("best.pt", "run.mp4", "run.csv"):
        (tmp_path / name).touch()
    (tmp_path / "out.mp4").mkdir()
    args = ["--ckpt", "best.pt", "--frames", "run.mp4", "--telemetry", "run.csv", "--out", "out.mp4"]
    args = [str(tmp_path / arg) if arg[0] != "-" else arg for arg in args]
    result = commands.run("overlay", *args, "--fps", "5")
    assert (result.exit_code, result.stderr.splitlines()) == (
        2,
        [
            f"error: --fps: only applies to a folder of images; {tmp_path}/run.mp4 has its own times",
            f"error: --out: {tmp_path}/out.mp4: is a folder",
        ],
    )


def test_overlay_writes_as_many_frames_as_came_in(
    make_config: MakeConfig, features: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("simv0.runtime.progress.LOG_EVERY", 0.0)
    run = fit(make_config(cache={"dir": str(features)}))
    video = write_video(tmp_path / "in.mp4", 30)
    telemetry = write_csv(tmp_path / "t.csv", [i / 10 for i in range(15)])
    out = tmp_path / "out.mp4"
    args = ["overlay", "--ckpt", run.best, "--frames", video, "--telemetry", telemetry, "--out", out, "--live"]
    result = commands.run(*args)
    assert result.exit_code == 0, result.output
    read, where, kept, *steps, said = result.stdout.splitlines()
    assert kept.startswith("this checkpoint keeps no summary of its training data")
    assert read == f"{video}: 30 frames 0.050 s apart; windows of 4, 0.050 s apart"
    assert where.startswith("live: http://127.0.0.1:")
    assert [step.split(" frames/s")[0].rsplit(",", 1)[0] for step in steps][::10] == [
        f"overlay: {i} of 30 frames ({share}%)" for i, share in ((1, 3), (11, 36), (21, 70))
    ]
    assert result.stderr == (
        f"{run.best}: does not say how far apart the frames of its training windows were: using the recording's own, "
        "0.05 s; set the right one with --spacing\n"
    )
    assert said.startswith(
        f"{out}: 30 frames, 27 judged, 3 waiting, 0 dropped, 0 bad; windows of frames 0.050 s apart; ms "
    )
    written = list(VideoReader(out))
    assert len(written) == 30
    assert [t for t, _ in written] == pytest.approx([i / 20 for i in range(30)], abs=1e-3)
    assert written[0][1].shape[2] == 320

    def said_of(*more: object, frames: Path = video) -> tuple[int, str]:
        args = ["overlay", "--ckpt", run.best, "--frames", frames, "--telemetry", telemetry, *more]
        result = commands.run(*args)
        return result.exit_code, result.stderr

    # Nothing that was there is lost to a wrong word.
    before = video.read_bytes()
    link = tmp_path / "link.mp4"
    link.symlink_to(video)
    lost = "reads and would be lost; give another name\n"
    assert said_of("--out", video) == (2, f"error: --out: {video} is what --frames {lost}")
    assert said_of("--out", link) == (2, f"error: --out: {link} is what --frames {lost}")
    assert said_of("--out", telemetry) == (2, f"error: --out: expected a name that ends in .mp4, found {telemetry}\n")
    assert said_of("--out", "nowhere/x.mp4") == (
        2,
        "error: --out: nowhere/x.mp4: the folder nowhere does not exist; create it first\n",
    )
    assert video.read_bytes() == before
    for option, what, most in (("--spacing", "seconds", 3600), ("--fps", "frames per second", 1000)):
        for number in ("0", "-1", "nan", "inf", "1e9"):
            found = f"{float(number):g}"
            assert said_of("--out", out, option, number) == (
                2,
                f"error: {option}: expected {what}, above 0 and at most {most}, found {found}\n",
            )
    assert said_of("--out", out, "--spacing", 5) == (
        2,
        f"error: {video}: is 1.5 s long, too short for windows of 4 frames 5 s apart\n",
    )
    assert said_of("--out", out, "--spacing", 0.03) == (
        2,
        f"error: {video}: its frames are 0.05 s apart, too far for windows of 4 frames 0.03 s apart\n",
    )

    (tmp_path / "bad.jsonl").write_text(json.dumps({"image": "x.png", "t": "now"}) + "\n")
    assert said_of("--out", out, frames=tmp_path / "bad.jsonl") == (
        1,
        f"error: {tmp_path}/bad.jsonl:1: t: expected seconds, found 'now'\n",
    )
