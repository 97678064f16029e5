#!/usr/bin/env python3
"""Predict with this run: python sim_v0_infer.py IMAGE_1 ... IMAGE_F --telemetry ax ay az gx gy gz v w

Prints one JSON object: risk, reason, action, their probabilities, and the alarm of this window alone. With --spacing
0.2 the images, any number of them, are a stream of frames 0.2 s apart: one line a frame, each encoded once, with the
alarm that a robot acts on, and `calm`: false unless the risk is known and no alarm is raised. Needs simv0, and the
LLM and the vision encoder where they were when the run was trained.
"""

import argparse
import json
from pathlib import Path

import torch

from simv0.data.images import load_image
from simv0.errors import SimError
from simv0.predict import Predictor
from simv0.stream import Stream


def main() -> None:
    """Parse, load, predict, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("frames", nargs="+", type=Path, help="the window's F images, oldest first")
    parser.add_argument("--telemetry", nargs=8, type=float, required=True, help="ax ay az gx gy gz v w")
    parser.add_argument("--spacing", type=float, help="take the images as a stream, so many seconds apart")
    parser.add_argument("--ckpt", type=Path, default=Path(__file__).parents[1] / "checkpoints" / "best.pt")
    args = parser.parse_args()

    try:
        predictor = Predictor.load(args.ckpt)
        if args.spacing is None:
            frames = torch.stack(
                [load_image(path, smallest=predictor.smallest) for path in args.frames]
            )  # [F,3,H,W] uint8
            print(json.dumps(predictor.predict(frames, torch.tensor(args.telemetry))))
        else:
            stream = Stream(predictor, args.spacing, live=False)  # on a robot: live, and t=time.monotonic()
            for i, path in enumerate(args.frames):
                state = stream.push(load_image(path, smallest=predictor.smallest), args.telemetry, t=i * args.spacing)
                calm = state.risk != "unknown" and state.alarm is False  # None, without a threshold, is no all-clear
                line = {"calm": calm, "risk": state.risk, "unknown": state.unknown, "alarm": state.alarm}
                print(json.dumps(line))
    except SimError as error:
        parser.exit(error.exit_code, f"error: {error}\n")


if __name__ == "__main__":  # spawned workers import this file
    main()
