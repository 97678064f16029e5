"""The overlay in a browser while it is computed: one page on this machine's loopback, pictures as MJPEG.

For looking at one's own machine, so the standard library's server is enough: it binds 127.0.0.1 only, and answers only
those who ask for that name (a foreign page that resolves to 127.0.0.1 is refused).
"""

import io
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from simv0.stream import State

PAGE = b"""<!doctype html><html lang="en"><head><meta charset="utf-8"><title>simv0 live</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>body { margin: 0; background: #15181e; display: grid; place-items: center; min-height: 100vh; }
img { max-width: 100%; max-height: 100vh; width: 960px; object-fit: contain; }</style></head>
<body><img src="/stream" alt="what the model sees and says"></body></html>
"""


class LivePage:
    """Serves the newest picture to whoever looks; a viewer that is slow misses pictures, never delays them.

    Args:
        port: on 127.0.0.1; 0 takes a free one.
    """

    def __init__(self, port: int = 0) -> None:
        self._changed = threading.Condition()
        self._count, self._jpeg, self._ended = 0, b"", False
        page = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                host = (self.headers.get("Host") or "").rpartition(":")[0]
                if host not in ("127.0.0.1", "localhost"):
                    self.send_error(403)
                elif self.path == "/":
                    self._answer("text/html; charset=utf-8", PAGE)
                elif self.path == "/stream":
                    page._stream(self)
                else:
                    self.send_error(404)

            def _answer(self, kind: str, body: bytes) -> None:
                self.send_response(200)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: Any) -> None:
                """Say nothing: the terminal belongs to the command."""

        self._server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self._server.daemon_threads = True
        self._server.block_on_close = False
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        """Where to look."""
        return f"http://127.0.0.1:{self._server.server_address[1]}/"

    def show(self, picture: UInt8[np.ndarray, "h w 3"], state: State, t: float) -> None:
        """Let `picture` be the newest; fits `overlay.render_overlay(show=...)`."""
        buffer = io.BytesIO()
        Image.fromarray(picture).save(buffer, "JPEG", quality=85)
        with self._changed:
            self._count, self._jpeg = self._count + 1, buffer.getvalue()
            self._changed.notify_all()

    def close(self) -> None:
        """Let every viewer have the last picture, and stop serving."""
        with self._changed:
            self._ended = True
            self._changed.notify_all()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def _stream(self, handler: BaseHTTPRequestHandler) -> None:
        """Send pictures until the end, or until the viewer leaves."""
        handler.send_response(200)
        handler.send_header("Content-Type", "multipart/x-mixed-replace; boundary=picture")
        handler.send_header("Cache-Control", "no-store")
        handler.end_headers()
        seen = 0
        while True:
            with self._changed:
                while self._count == seen and not self._ended:
                    self._changed.wait()
                if self._count == seen:
                    return
                seen, jpeg = self._count, self._jpeg
            head = f"--picture\r\nContent-Type: image/jpeg\r\nContent-Length: {len(jpeg)}\r\n\r\n".encode()
            try:
                handler.wfile.write(head + jpeg + b"\r\n")
            except OSError:  # the viewer has left
                return
