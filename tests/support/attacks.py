"""Damage to feature files."""

from pathlib import Path

import numpy as np

from simv0.errors import CacheError
from simv0.features.info import USER_BLOCK, FeatureInfo
from simv0.features.reader import read_features
from simv0.labels import HEADS


def mutate(data: bytes, draw: np.random.Generator) -> bytes:
    """Flip a bit, cut the end off, or copy a piece elsewhere."""
    changed = bytearray(data)
    kind = draw.integers(4)
    if kind == 0:
        return bytes(changed[: draw.integers(len(data))])
    if kind == 1:
        length = int(draw.integers(1, 200))
        source, target = draw.integers(0, len(data) - length, 2)
        changed[target : target + length] = changed[source : source + length]
    else:  # half of the flips fall into the seal, where they could do most
        at = draw.integers(USER_BLOCK if kind == 2 else len(data))
        changed[at] ^= 1 << draw.integers(8)
    return bytes(changed)


def reads_right(path: Path, truth: bytes, info: FeatureInfo) -> bool:
    """Whether reading everything, digests checked, gives what was written; CacheError is the other good outcome."""
    file = read_features(path)
    feats = b"".join(block.tobytes() for block in file.blocks())
    labels, wanted = file.info.labels, info.labels
    return (
        feats == truth
        and file.info.identity == info.identity
        and file.info.class_weights == info.class_weights
        and (labels.sample_id, labels.group) == (wanted.sample_id, wanted.group)
        and np.array_equal(labels.telemetry, wanted.telemetry)
        and np.array_equal(labels.weight, wanted.weight)
        and all(np.array_equal(labels.ids[head], wanted.ids[head]) for head in HEADS)
    )


def attack(path: Path, data: bytes, info: FeatureInfo, truth: bytes, times: int, seed: int) -> tuple[int, int]:
    """Mutate a file many times; returns how many were refused, and how many read right all the same."""
    draw, refused, right = np.random.default_rng(seed), 0, 0
    for _ in range(times):
        path.write_bytes(mutate(data, draw))
        try:
            assert reads_right(path, truth, info), "something wrong was accepted"
            right += 1
        except CacheError as error:
            assert "\n" not in str(error)
            refused += 1
    return refused, right
