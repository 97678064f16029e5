"""The overlay: as many frames as came in, and what the stream says can be seen in the pixels."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import MakeConfig
from test_video import write_csv, write_video
from typer.testing import CliRunner

from cli.main import app
from simv0.fit import fit
from simv0.labels import HEADS
from simv0.overlay import COLORS, Overlay
from simv0.stream import State
from simv0.video import VideoReader


def state(risk: str = "high", action: str = "stop", **changes: Any) -> State:
    probs = {head: dict.fromkeys(names, 0.1) for head, names in HEADS.items()}
    probs["risk"][risk] = 0.7
    prediction = {"sample_id": "0", "risk": risk, "reason": "human", "action": action, "probs": probs}
    fields: dict[str, Any] = {
        "outcome": "judged", "problem": None, "risk": risk, "unknown": None, "prediction": prediction,
        "alarm": False, "age": 0.0,
    }  # fmt: skip
    return State(**{**fields, **changes})


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


def test_overlay_writes_as_many_frames_as_came_in(make_config: MakeConfig, features: Path, tmp_path: Path) -> None:
    run = fit(make_config(cache={"dir": str(features)}))
    video = write_video(tmp_path / "in.mp4", 30)
    telemetry = write_csv(tmp_path / "t.csv", [i / 10 for i in range(15)])
    out = tmp_path / "out.mp4"
    args = ["overlay", "--ckpt", run.best, "--frames", video, "--telemetry", telemetry, "--out", out, "--live"]
    result = CliRunner().invoke(app, [str(arg) for arg in args], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    where, said = result.stdout.splitlines()
    assert where.startswith("live: http://127.0.0.1:")
    assert said.startswith(
        f"{out}: 30 frames, 27 judged, 3 waiting, 0 dropped, 0 bad; windows of frames 0.050 s apart; ms "
    )
    written = list(VideoReader(out))
    assert len(written) == 30
    assert [t for t, _ in written] == pytest.approx([i / 20 for i in range(30)], abs=1e-3)
    assert written[0][1].shape[2] == 320

    def said_of(*more: object, frames: Path = video) -> tuple[int, str]:
        args = ["overlay", "--ckpt", run.best, "--frames", frames, "--telemetry", telemetry, *more]
        result = CliRunner().invoke(app, [str(arg) for arg in args])
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
        "error: --out: nowhere/x.mp4: there is no folder nowhere; make it first\n",
    )
    assert video.read_bytes() == before
    for option, what, most in (("--spacing", "seconds", 3600), ("--fps", "frames a second", 1000)):
        for number in ("0", "-1", "nan", "inf", "1e9"):
            found = f"{float(number):g}"
            assert said_of("--out", out, option, number) == (
                2,
                f"error: {option}: expected {what}, above 0 and at most {most}, found {found}\n",
            )
    code, warning = said_of("--out", out, "--spacing", 5)
    assert code == 0
    assert warning.startswith("warning: no window was judged; the last frame: push[29]: more than 8 frames in one ")

    (tmp_path / "bad.jsonl").write_text(json.dumps({"image": "x.png", "t": "now"}) + "\n")
    assert said_of("--out", out, frames=tmp_path / "bad.jsonl") == (
        1,
        f"error: {tmp_path}/bad.jsonl:1: t: expected seconds, found 'now'\n",
    )
