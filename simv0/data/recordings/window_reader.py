"""Windows at random places of a video with near key frames: nothing is decoded but what their frames refer to."""

from collections.abc import Sequence
from typing import Any

from jaxtyping import UInt8
from torch import Tensor

from simv0.data.recordings.video import FIRST_STEP_BACK, VideoReader

FAR = 16
"""Packets; where key frames are further apart, windows that overlap gain more from frames that are kept."""


class WindowReader(VideoReader):
    """A video of which windows are read here and there (`frames_at`), or frames forwards (`frame_at`)."""

    _keys_are_far = False

    def frames_at(self, times: Sequence[float], within: float) -> list[UInt8[Tensor, "3 H W"]]:
        """The frames nearest to some times that rise, in seconds from the video's beginning, each `within` reach.

        Raises:
            DataError: as `frame_at`.
        """
        frames = None if self._keys_are_far else self._decode_apart(times, within)
        if frames is None:
            return [self.frame_at(t, within) for t in times]
        return [self._as_tensor(frame) for frame in frames]

    def _decode_apart(self, times: Sequence[float], within: float) -> list[Any] | None:
        """The frames; None where key frames are far, or one was not found: `frame_at` then finds it or says why."""
        self._lose_place()
        runs: list[tuple[list[Any], list[int]]] = []  # packets, a key frame first; frames wanted of them
        for t in times:
            packets, stamp = self._packets_for(t, within)
            if not packets:
                return None
            if runs and runs[-1][0][0].pts == packets[0].pts:
                runs[-1] = max(runs[-1][0], packets, key=len), [*runs[-1][1], stamp]
            else:
                runs.append((packets, [stamp]))
        frames = []
        for packets, stamps in runs:
            found = self._decode_run(packets, stamps)
            if not found.keys() >= {packets[0].pts, *stamps}:  # no decoder can begin there: intra refresh
                return None
            frames += [found[stamp] for stamp in stamps]
        return frames

    def _packets_for(self, t: float, within: float) -> tuple[list[Any], int]:
        """What must be decoded for the frame nearest to `t`, a key frame first, and its time stamp; else no packets."""
        target, at, reach = self._stamp(t), (t + self._start) / self._time_base, within / self._time_base
        for back in (0.0, 4 * within, FIRST_STEP_BACK):  # with B-frames a search may lead to the key frame after `t`
            self._land(t - back)
            packets: list[Any] = []
            for packet in self._packets():
                if packet.pts is None or packet.dts is None or packet.dts > at + reach:
                    break
                if packet.is_keyframe and packet.pts <= target:
                    packets.clear()
                packets.append(packet)
                if len(packets) > FAR:
                    self._keys_are_far = packets[0].is_keyframe
                    return [], 0
            if not packets:
                continue
            key, nearest = packets[0], min(packets, key=lambda packet: (abs(packet.pts - at), packet.pts))
            if key.is_keyframe and key.pts <= nearest.pts and abs(nearest.pts - at) <= reach:
                return packets[: packets.index(nearest) + 1], nearest.pts
        return [], 0

    def _decode_run(self, packets: list[Any], stamps: list[int]) -> dict[int, Any]:
        """Time stamp -> frame, of those that come out until all wanted ones have."""
        found: dict[int, Any] = {}
        decoder = self._stream.codec_context
        with self._damage_told():
            decoder.flush_buffers()
            for packet in (*packets, None):  # None: give what is held back
                if found.keys() >= set(stamps):
                    break
                for frame in decoder.decode(packet):
                    found[frame.pts] = frame
                    self.decoded += 1
                    self.corrupt += frame.is_corrupt
        return found
