"""`simv0 overlay`: check all that can be checked, then load the networks, then go frame by frame, with progress."""

import logging
import sys
import time
from collections.abc import Sequence
from contextlib import closing, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cli.numbers import check_number
from simv0.disk.files import check_out
from simv0.errors import ConfigError

log = logging.getLogger("simv0")


@dataclass(frozen=True)
class Wanted:
    """The command's options."""

    ckpt: Path
    frames: str
    out: Path | None
    telemetry: str | None
    spacing: float | None
    fps: float | None
    live: bool

    @property
    def is_live(self) -> bool:
        """Whether the frames come from a live source, and from no recording."""
        return "://" in self.frames or self.frames.startswith("/dev/")

    @property
    def telemetry_path(self) -> Path | None:
        """The file of telemetry, if it is one."""
        if self.telemetry is None or (self.is_live and (self.telemetry == "-" or "://" in self.telemetry)):
            return None
        return Path(self.telemetry)

    def check(self) -> None:
        """Report everything that the options alone show to be wrong, all at once; imports no torch.

        Raises:
            ConfigError: a line for each.
        """
        wrong = []
        for check in (self._inputs, self._fps, self._spacing, self._out):
            try:
                check()
            except ConfigError as error:
                wrong.append(str(error))
        if wrong:
            raise ConfigError("\n".join(wrong))

    def _inputs(self) -> None:
        missing = []
        if not self.ckpt.is_file():
            missing.append(f"--ckpt: {self.ckpt}: checkpoint not found")
        if not self.is_live and not Path(self.frames).exists():
            missing.append(f"--frames: {self.frames}: no such folder, video or sequence.jsonl")
        if self.is_live and self.telemetry is None:
            missing.append("--telemetry: a live source needs it: a file that grows, - or udp://HOST:PORT")
        if (path := self.telemetry_path) is not None and not path.is_file():
            missing.append(f"--telemetry: {path}: file not found")
        if missing:
            raise ConfigError("\n".join(missing))

    def _fps(self) -> None:
        check_number("--fps", self.fps, "frames per second", 1000)
        if self.fps is not None and not Path(self.frames).is_dir():
            timed = "a live source" if self.is_live else self.frames  # whose address may hold a password
            raise ConfigError(f"--fps: only applies to a folder of images; {timed} has its own times")

    def _spacing(self) -> None:
        check_number("--spacing", self.spacing, "seconds", 3600)

    def _out(self) -> None:
        if self.out is None:
            if not self.live:
                raise ConfigError("--out: name the MP4 to write, or give --live to watch, or both")
            return
        if self.out.suffix.lower() != ".mp4":
            raise ConfigError(f"--out: expected a name that ends in .mp4, found {self.out}")
        check_out(self.out, {"--frames": Path(self.frames), "--telemetry": self.telemetry_path})


def run_overlay(wanted: Wanted, config: Any, overrides: Sequence[str] = ()) -> None:
    """Write the MP4 of a recording, and show it live if requested.

    Args:
        wanted: the options, checked.
        config: where to find the frozen networks; None: where the checkpoint says.
        overrides: `section.key=value` on the checkpoint's own config, where there is no `config`.

    Raises:
        SimError: errors the user can fix.
    """
    from simv0.data.recordings.recording import open_recording
    from simv0.data.recordings.video import import_av
    from simv0.model.checkpoint import load_checkpoint
    from simv0.overlay.draw import check_recording, render_overlay
    from simv0.overlay.live import LivePage, Pace
    from simv0.predict import Predictor
    from simv0.runtime.progress import progress_of
    from simv0.stream import Stream

    import_av()
    sequence = open_recording(Path(wanted.frames), wanted.telemetry_path, wanted.fps)
    with closing(LivePage()) if wanted.live else nullcontext() as page:
        meta = load_checkpoint(wanted.ckpt).meta
        spacing = _spacing(wanted, meta.frame_spacing, sequence.interval)
        check_recording(sequence, meta.F, spacing, wanted.frames)
        count = "frames" if sequence.length is None else f"{sequence.length} frames"
        log.info(
            f"{wanted.frames}: {count} {sequence.interval:.3f} s apart; windows of {meta.F}, {spacing:.3f} s apart"
        )
        if page is not None:
            log.info(f"live: {page.url}")
        stream = Stream(Predictor.load(wanted.ckpt, config, overrides=overrides), spacing, live=False)
        pace = Pace()
        with progress_of("overlay", sequence.length, lambda: stream.counts["pushed"]) as step:

            def show(picture: Any, state: Any, t: float) -> None:
                if page is not None:
                    pace.wait(t)
                    page.show(picture, state, t)
                step()

            frames = render_overlay(stream, sequence, wanted.out, show)
        _tell(str(wanted.out or wanted.frames), frames, stream)
        if page is not None and sys.stdin.isatty():
            page.end()
            log.info("the page stays up until Ctrl-C")
            with suppress(KeyboardInterrupt):
                while True:
                    time.sleep(1)


def _spacing(wanted: Wanted, trained: float | None, interval: float) -> float:
    """Seconds between the frames of a window: as requested, as in training, or else the recording's own."""
    if (spacing := wanted.spacing or trained) is not None:
        return spacing
    log.warning(
        f"{wanted.ckpt}: does not say how far apart the frames of its training windows were: using the recording's "
        f"own, {interval:.3g} s; set the right one with --spacing"
    )
    return interval


def _tell(name: str, frames: int, stream: Any) -> None:
    """Report the result."""
    stats = stream.stats()
    log.info(
        f"{name}: {frames} frames, {stats['judged']} judged, {stats['waiting']} waiting, {stats['dropped']} dropped, "
        f"{stats['bad']} bad; windows of frames {stream.spacing:.3f} s apart; ms per prediction: "
        f"{stats['latency_p50_ms'] or 0:.0f} (median), {stats['latency_p99_ms'] or 0:.0f} (99th percentile)"
    )
    if not stats["judged"]:
        log.warning(f"warning: no window was judged; the last frame: {stream.state().problem}")
