"""An RTSP server for one viewer at a time, as small as it gets (RFC 2326): H.264 by RTP within the TCP connection."""

import socket
import struct
import threading
from typing import BinaryIO

SDP = (
    "v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\ns=test\r\nc=IN IP4 0.0.0.0\r\nt=0 0\r\nm=video 0 RTP/AVP 96\r\n"
    "a=rtpmap:96 H264/90000\r\na=fmtp:96 packetization-mode=1\r\na=control:track1\r\n"
)
ANSWERS = {
    "OPTIONS": ("Public: OPTIONS, DESCRIBE, SETUP, PLAY, TEARDOWN, GET_PARAMETER\r\n", ""),
    "DESCRIBE": ("Content-Type: application/sdp\r\n", SDP),
    "SETUP": ("Transport: RTP/AVP/TCP;unicast;interleaved=0-1\r\nSession: 1\r\n", ""),
    "PLAY": ("Session: 1\r\n", ""),
}


class RtspServer:
    """Hands on what comes as RTP to `rtp_port` (rtp://127.0.0.1:PORT) to whoever plays `url`."""

    def __init__(self) -> None:
        self._rtp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._rtp.bind(("127.0.0.1", 0))
        self._rtp.settimeout(0.2)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.settimeout(0.2)
        self.rtp_port = self._rtp.getsockname()[1]
        self.url = f"rtsp://me:secret@127.0.0.1:{self._listener.getsockname()[1]}/live"
        self._viewer: socket.socket | None = None
        self._closing = threading.Event()
        self._threads = [threading.Thread(target=work, daemon=True) for work in (self._serve, self._relay)]
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        self._closing.set()
        for thread in self._threads:
            thread.join()
        self._rtp.close()
        self._listener.close()

    def _relay(self) -> None:
        while not self._closing.is_set():
            try:
                packet = self._rtp.recv(65536)
                if self._viewer is not None:
                    self._viewer.sendall(b"$\0" + struct.pack(">H", len(packet)) + packet)
            except OSError:  # nothing has come, or the viewer has gone
                pass

    def _serve(self) -> None:
        while not self._closing.is_set():
            try:
                viewer, _ = self._listener.accept()
            except TimeoutError:
                continue
            with viewer, viewer.makefile("rb") as requests:
                viewer.settimeout(60)
                try:
                    while request := self._request(requests):
                        method, number = request
                        head, body = ANSWERS.get(method, ("Session: 1\r\n", ""))
                        length = f"Content-Length: {len(body)}\r\n" if body else ""
                        viewer.sendall(f"RTSP/1.0 200 OK\r\nCSeq: {number}\r\n{head}{length}\r\n{body}".encode())
                        if method == "PLAY":
                            self._viewer = viewer
                        if method == "TEARDOWN":
                            break
                except OSError:
                    pass
                self._viewer = None

    @staticmethod
    def _request(requests: BinaryIO) -> tuple[str, str] | None:
        """Method and number of the next one; reports that the viewer sends between them are passed over."""
        while (first := requests.read(1)) == b"$":
            _, size = struct.unpack(">BH", requests.read(3))
            requests.read(size)
        lines = [first + requests.readline()]
        while lines[-1].strip():
            lines.append(requests.readline())
        if len(lines) < 2:
            return None
        head = dict(line.decode().strip().split(": ", 1) for line in lines[1:] if b": " in line)
        return lines[0].decode().split()[0], head["CSeq"]
