"""The overlay in a browser while it is computed: one page on this machine's loopback, pictures as server-sent events.

For looking at one's own machine: it binds 127.0.0.1 only, and answers only those who ask for that name (a foreign page
that resolves to 127.0.0.1 is refused).
"""

import asyncio
import io
import os
import socket
import threading
import time
from base64 import b64encode
from collections.abc import AsyncIterator, Callable
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from simv0.errors import ConfigError
from simv0.stream import State

LOOK_EVERY = 0.02
"""Seconds between a viewer's checks for a newer picture."""
PATIENCE = 2
"""Seconds that closing waits for a viewer that does not read."""
STILL = 3
"""Seconds without a new picture after which a page no longer calls itself live: old calm must not look like calm."""
PAGE = """<!doctype html><html lang="en"><head><meta charset="utf-8"><title>simv0 live</title>
<meta name="viewport" content="width=device-width, initial-scale=1"><link rel="icon" href="data:,">
<style>:root { color-scheme: light dark; font: 1rem/1.5 system-ui, sans-serif; }
body { margin: 0; min-height: 100vh; display: grid; place-content: center; justify-items: center; }
img { max-width: 100%; max-height: calc(100vh - 3.5rem); width: 960px; object-fit: contain; }
p { margin: 1rem; }</style></head>
<body><img id="picture" alt=""><p id="note" role="status">Waiting for the first picture.</p>
<script>
const source = new EventSource("pictures");
let last = Date.now();
const watchdog = setInterval(() => {
  const since = (Date.now() - last) / 1000;
  if (picture.alt && since > STILL) stand(`No new picture for ${since.toFixed(0)} s.`);
}, 500);
const stand = (text) => { note.textContent = text; picture.style.opacity = 0.3; };
const end = (text) => { source.close(); clearInterval(watchdog); note.textContent = text; };
source.onmessage = (event) => {
  last = Date.now();
  picture.style.opacity = 1;
  picture.src = "data:image/jpeg;base64," + event.data;
  picture.alt = "what the model sees and says";
  note.textContent = "Live.";
};
source.addEventListener("end", () => end("The overlay has ended."));
source.onerror = () => { end(""); stand("The command has stopped."); };
</script></body></html>
""".replace("STILL", str(STILL))


class Pace:
    """Holds back pictures that are computed faster than they were recorded; late ones are shown at once."""

    def __init__(
        self, clock: Callable[[], float] = time.monotonic, sleep: Callable[[float], None] = time.sleep
    ) -> None:
        self._clock, self._sleep = clock, sleep
        self._began: float | None = None

    def wait(self, t: float) -> None:
        """Sleep until as many seconds have passed since the first call as in the recording, whose time is `t`."""
        now = self._clock()
        self._began = now - t if self._began is None else self._began
        self._sleep(max(0.0, self._began + t - now))


class LivePage:
    """Serves the newest picture to whoever looks; a viewer that is slow misses pictures, never delays them.

    Args:
        port: on 127.0.0.1; 0 takes a free one.

    Raises:
        ConfigError: Starlette or uvicorn is not installed, or the port is in use.
    """

    def __init__(self, port: int = 0) -> None:
        self._newest, self._ended = b"", False
        self._server = _server(self._events)
        try:
            self._listener = socket.create_server(("127.0.0.1", port))
        except OSError as error:
            reason = os.strerror(error.errno or 0).lower()
            raise ConfigError(f"live page: port {port} of 127.0.0.1: {reason}; 0 takes a free one") from None
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}/"
        """The page's address."""
        self._thread = threading.Thread(target=self._server.run, args=([self._listener],), daemon=True)
        self._thread.start()

    def show(self, picture: UInt8[np.ndarray, "h w 3"], state: State, t: float) -> None:
        """Make `picture` the newest one; fits `draw.render_overlay(show=...)`."""
        buffer = io.BytesIO()
        Image.fromarray(picture).save(buffer, "JPEG", quality=85)
        self._newest = b"data: " + b64encode(buffer.getvalue()) + b"\n\n"

    def end(self) -> None:
        """Let every viewer, later ones included, have the last picture and be told of the end."""
        self._ended = True

    def close(self) -> None:
        """`end`, and stop serving within about `PATIENCE`. Open pages keep the last picture."""
        self.end()
        self._server.should_exit = True
        self._thread.join()
        self._listener.close()  # a server that had not begun leaves it open

    async def _events(self) -> AsyncIterator[bytes]:
        """What one viewer is sent: the newest picture each time, then word of the end."""
        sent = b""
        while True:
            ended, newest = self._ended, self._newest  # in this order: what is newest after the end is the last
            if newest is not sent:
                yield (sent := newest)
            elif ended:
                yield b"event: end\ndata:\n\n"
                return
            else:
                await asyncio.sleep(LOOK_EVERY)


def _server(events: Callable[[], AsyncIterator[bytes]]) -> Any:
    """The server of the page and, to each of its viewers, of what `events` yields; silent, and without signal handlers.

    Raises:
        ConfigError: Starlette or uvicorn is not installed.
    """
    try:
        import uvicorn
        from starlette.applications import Starlette
        from starlette.middleware import Middleware
        from starlette.middleware.trustedhost import TrustedHostMiddleware
        from starlette.requests import Request
        from starlette.responses import HTMLResponse, Response, StreamingResponse
        from starlette.routing import Route
    except ImportError:
        raise ConfigError("a live page needs Starlette and uvicorn: pip install 'simv0[live]'") from None

    async def page(_: Request) -> Response:
        return HTMLResponse(PAGE)

    async def pictures(_: Request) -> Response:
        return StreamingResponse(events(), headers={"Cache-Control": "no-store"}, media_type="text/event-stream")

    own_names = Middleware(TrustedHostMiddleware, allowed_hosts=["127.0.0.1", "localhost"])
    app = Starlette(routes=[Route("/", page), Route("/pictures", pictures)], middleware=[own_names])
    config = uvicorn.Config(app, log_config=None, log_level="critical", timeout_graceful_shutdown=PATIENCE)
    return uvicorn.Server(config)
