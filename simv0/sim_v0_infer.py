#!/usr/bin/env python3
"""Predict with this run: python sim_v0_infer.py IMAGE_1 ... IMAGE_F --telemetry ax ay az gx gy gz v w

Prints one JSON object: risk, reason, action, their probabilities. Needs simv0 installed, and the LLM and the vision
encoder where they were when the run was trained.
"""

import argparse
import json
from pathlib import Path

import torch

from simv0.datasets import load_image
from simv0.errors import SimError
from simv0.predict import Predictor

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("frames", nargs="+", type=Path, help="the window's F images, oldest first")
parser.add_argument("--telemetry", nargs=8, type=float, required=True, help="ax ay az gx gy gz v w")
parser.add_argument("--ckpt", type=Path, default=Path(__file__).parents[1] / "checkpoints" / "best.pt")
args = parser.parse_args()

try:
    predictor = Predictor.load(args.ckpt)
    frames = torch.stack([load_image(path) for path in args.frames])  # [F,3,H,W] uint8
    print(json.dumps(predictor.predict(frames, torch.tensor(args.telemetry))))
except SimError as error:
    parser.exit(error.exit_code, f"error: {error}\n")
