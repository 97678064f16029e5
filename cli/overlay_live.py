"""`simv0 overlay` of a live source: watched until Ctrl-C, which closes the MP4 whole."""

import logging
from collections.abc import Sequence
from contextlib import closing, nullcontext
from typing import Any

from cli.overlay import Wanted

log = logging.getLogger("simv0")


def run_live(wanted: Wanted, config: Any, overrides: Sequence[str] = ()) -> None:
    """Watch the source until Ctrl-C or SIGTERM; write the MP4 and show the page as requested.

    Args:
        wanted: the options, checked.
        config: where to find the frozen networks; None: where the checkpoint says.
        overrides: `section.key=value` on the checkpoint's own config, where there is no `config`.

    Raises:
        SimError: errors the user can fix.
    """
    from simv0.data.spacing import choose_spacing
    from simv0.model.checkpoint import load_checkpoint
    from simv0.overlay.camera import Camera
    from simv0.overlay.live import LivePage
    from simv0.overlay.readings import Telemetry
    from simv0.overlay.watch import until_stopped, watch
    from simv0.predict import Predictor
    from simv0.runtime.progress import progress_of
    from simv0.stream import Stream

    assert wanted.telemetry is not None
    if wanted.spacing is None:  # refused before anything is opened; what is given is judged by the stream
        choose_spacing(None, load_checkpoint(wanted.ckpt).meta.frame_spacing)
    with (
        closing(LivePage()) if wanted.live else nullcontext() as page,
        closing(Telemetry(wanted.telemetry)) as telemetry,
        closing(Camera(wanted.frames)) as camera,
    ):
        if page is not None:
            log.info(f"live: {page.url}")
        stream = Stream(Predictor.load(wanted.ckpt, config, overrides=overrides), wanted.spacing)
        log.info(f"{camera.name}: windows of {stream.predictor.meta.F}, {stream.spacing:.3f} s apart; until Ctrl-C")
        said = ""

        def note() -> str:
            return f", now {said}"

        with (
            until_stopped() as stop,
            progress_of("overlay", None, lambda: stream.counts["pushed"], note) as step,
        ):

            def show(picture: Any, state: Any, t: float) -> None:
                nonlocal said
                said = f"unknown: {state.unknown}" if state.unknown else state.risk
                if page is not None:
                    page.show(picture, state, t)
                step()

            pictures = watch(stream, camera, telemetry, wanted.out, show, stop)
        _tell(wanted, pictures, stream, camera, telemetry)


def _tell(wanted: Wanted, pictures: int, stream: Any, camera: Any, telemetry: Any) -> None:
    """Report what was seen."""
    stats, frames, lines = stream.stats(), camera.counts, telemetry.counts
    log.info(
        f"{camera.name}: {frames['frames']} frames, {stats['pushed']} taken as the newest; {stats['judged']} judged, "
        f"{stats['waiting']} waiting, {stats['dropped']} dropped, {stats['bad']} bad; {frames['late']} late; "
        f"damaged {frames['damaged']} times, lost {frames['lost']} times; ms from a frame's arrival to its prediction: "
        f"{stats['age_p50_ms'] or 0:.0f} (median), {stats['age_p99_ms'] or 0:.0f} (99th percentile)"
    )
    log.info(f"{telemetry.name}: {lines['lines']} lines, {lines['bad']} bad")
    if pictures:
        log.info(f"{wanted.out}: {pictures} pictures")
    elif wanted.out is not None:
        log.warning(f"warning: {wanted.out}: not written: no picture came")
