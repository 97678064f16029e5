"""All layers of a `FastStack` for one prefix, in one compiled loop that every core of a CPU runs at once.

Cores meet after each product. Before that they claim pieces of it, so that a core that comes late or is busy elsewhere
claims fewer, and none is waited for that has claimed nothing.
"""

import math
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float32, Int64, UInt16

from simv0.cpu_step.tiles import LANES, ROWS, compiled, fetch_add, nap, read, tile

TURNS = 10_000
"""Looks at the others' progress, some tens of microseconds, before a core that waits is left to other programs."""
NAP = 20
"""Microseconds from one look to the next after that. Only to yield would still keep a thread of lower priority, the one
waited for, from its work: under a real-time scheduler for ever."""


class PackedLayers(NamedTuple):
    """All layers' weights, each kind in one array; those of the products as `tiles.pack` lays them out."""

    qkv: UInt16[np.ndarray, "L n k 16"]
    out: UInt16[np.ndarray, "L n k 16"]
    gate_up: UInt16[np.ndarray, "L n k 16"]
    down: UInt16[np.ndarray, "L n k 16"]
    qkv_bias: Float32[np.ndarray, "L n"]
    out_bias: Float32[np.ndarray, "L n"]
    gate_up_bias: Float32[np.ndarray, "L n"]
    down_bias: Float32[np.ndarray, "L n"]
    head_norm: Float32[np.ndarray, "L h hd"]
    """Of queries and keys; empty without such norms."""
    cos: Float32[np.ndarray, "T h hd"]
    sin: Float32[np.ndarray, "T h hd"]
    masks: Float32[np.ndarray, "L T T"]
    eps: float


class Workspace(NamedTuple):
    """What the cores share during a step. `*_in` are inputs of products, as tiles read them: [tiles, depth, rows]."""

    x: Float32[np.ndarray, "T d"]
    qkv: Float32[np.ndarray, "T n"]
    out_in: Float32[np.ndarray, " size"]
    down_in: Float32[np.ndarray, " size"]
    counts: Int64[np.ndarray, "phases 2 8"]
    """Pieces claimed and pieces done in each phase; a cache line each."""
    share: float
    """What a core claims at once of the blocks that are left: 1 / (2 x cores)."""


@compiled
def run(s: PackedLayers, b: Workspace) -> None:
    """Every layer, on one core. The residual `b.x` goes in and comes out; the last layer changes its last row only."""
    T, d = b.x.shape
    tiles, rows = layout(T)
    h = np.zeros(tiles * d * rows, np.float32)  # the normed residual: each core makes its own
    sums = np.empty((2, ROWS, LANES), np.float32)
    for layer in range(len(s.qkv)):
        phase = 5 * layer
        project(s, b, layer, phase, h, sums)
        attend(s, b, layer, phase + 1)
        add(b, s.out[layer], s.out_bias[layer], b.out_in, phase + 2, layer == len(s.qkv) - 1, sums)
        gate(s, b, layer, phase + 3, h, sums)
        add(b, s.down[layer], s.down_bias[layer], b.down_in, phase + 4, layer == len(s.qkv) - 1, sums)


@compiled
def layout(n: int) -> tuple[int, int]:
    """Into how many tiles n rows go, and of how many rows each."""
    tiles = (n + ROWS - 1) // ROWS
    return tiles, (n + tiles - 1) // tiles


@compiled
def begin(b: Workspace, piece: int, n: int) -> int:
    """Where a piece of n blocks begins: each takes `b.share` of what is left, so long stretches come first."""
    return n - int(n * (1 - b.share) ** piece)


@compiled
def pieces_of(b: Workspace, n: int) -> int:
    """Into how many pieces n blocks are cut."""
    pieces = 1
    while begin(b, pieces, n) < n:
        pieces += 1
    return pieces


@compiled
def claim(b: Workspace, phase: int, pieces: int) -> int:
    """A piece of this phase that nobody else has; -1 when all are claimed, and then all are done."""
    counts = b.counts[phase].ctypes.data
    if read(counts) < pieces:
        piece = fetch_add(counts, 1)
        if piece < pieces:
            return int(piece)
    turns = 0
    while read(counts + np.uintp(64)) < pieces:
        turns += 1
        if turns > TURNS:
            nap(NAP)
    return -1


@compiled
def finish(b: Workspace, phase: int) -> None:
    """The piece in hand is done."""
    fetch_add(b.counts[phase].ctypes.data + np.uintp(64), 1)


@compiled
def normed(x: Float32[np.ndarray, "n d"], eps: float, h: Float32[np.ndarray, " size"]) -> None:
    """RMSNorm of each row (its weight is in the product that follows), laid out for tiles."""
    n, d = x.shape
    _, rows = layout(n)
    for i in range(n):
        total = np.float32(0)
        for j in range(d):
            total += x[i, j] * x[i, j]
        scale = np.float32(1 / math.sqrt(total / d + eps))
        start = (i // rows) * d * rows + i % rows
        for j in range(d):
            h[start + j * rows] = x[i, j] * scale


@compiled
def project(s: PackedLayers, b: Workspace, layer: int, phase: int, h: Any, sums: Any) -> None:
    """Queries, keys and values."""
    weight, bias = s.qkv[layer], s.qkv_bias[layer]
    blocks, depth, _ = weight.shape
    T = len(b.x)
    tiles, rows = layout(T)
    first = True
    pieces = pieces_of(b, blocks)
    piece = claim(b, phase, pieces)
    while piece >= 0:
        if first:
            normed(b.x, s.eps, h)
            first = False
        for block in range(begin(b, piece, blocks), begin(b, piece + 1, blocks)):
            for t in range(tiles):
                tile(rows, h[t * depth * rows :].ctypes.data, weight[block].ctypes.data, sums.ctypes.data, depth)
                for m in range(min(rows, T - t * rows)):
                    for j in range(LANES):
                        column = block * LANES + j
                        b.qkv[t * rows + m, column] = sums[0, m, j] + bias[column]
        finish(b, phase)
        piece = claim(b, phase, pieces)


@compiled
def add(b: Workspace, weight: Any, bias: Any, inputs: Any, phase: int, last: bool, sums: Any) -> None:
    """Add a product to the residual."""
    blocks, depth, _ = weight.shape
    T = len(b.x)
    n = 1 if last else T
    tiles, rows = layout(n)
    pieces = pieces_of(b, blocks)
    piece = claim(b, phase, pieces)
    while piece >= 0:
        for block in range(begin(b, piece, blocks), begin(b, piece + 1, blocks)):
            for t in range(tiles):
                tile(rows, inputs[t * depth * rows :].ctypes.data, weight[block].ctypes.data, sums.ctypes.data, depth)
                for m in range(min(rows, n - t * rows)):
                    for j in range(LANES):
                        column = block * LANES + j
                        b.x[T - n + t * rows + m, column] += sums[0, m, j] + bias[column]
        finish(b, phase)
        piece = claim(b, phase, pieces)


@compiled
def gate(s: PackedLayers, b: Workspace, layer: int, phase: int, h: Any, sums: Any) -> None:
    """silu(gate) * up, laid out for the product that follows."""
    weight, bias = s.gate_up[layer], s.gate_up_bias[layer]
    blocks, depth, _ = weight.shape
    half = blocks // 2
    T = len(b.x)
    n = 1 if layer == len(s.qkv) - 1 else T
    tiles, rows = layout(n)
    first = True
    pieces = pieces_of(b, half)
    piece = claim(b, phase, pieces)
    while piece >= 0:
        if first:
            normed(b.x[T - n :], s.eps, h)
            first = False
        for block in range(begin(b, piece, half), begin(b, piece + 1, half)):
            for t in range(tiles):
                hp = h[t * depth * rows :].ctypes.data
                tile(rows, hp, weight[2 * block].ctypes.data, sums[0].ctypes.data, depth)
                tile(rows, hp, weight[2 * block + 1].ctypes.data, sums[1].ctypes.data, depth)
                start = (t * half + block) * LANES * rows
                for m in range(rows):
                    for j in range(LANES):
                        g = sums[0, m, j] + bias[2 * block * LANES + j]
                        u = sums[1, m, j] + bias[(2 * block + 1) * LANES + j]
                        b.down_in[start + j * rows + m] = silu(g) * u
        finish(b, phase)
        piece = claim(b, phase, pieces)


@compiled
def silu(x: Any) -> Any:
    """SiLU, x * sigmoid(x), by Eigen's rational tanh (good to a few units in the last place), which needs no calls."""
    half = min(max(np.float32(0.5) * x, np.float32(-7.9053111)), np.float32(7.9053111))
    q = half * half
    p = np.float32(-2.76076847742355e-16)
    for c in (
        2.00018790482477e-13,
        -8.60467152213735e-11,
        5.12229709037114e-08,
        1.48572235717979e-05,
        6.37261928875436e-04,
        4.89352455891786e-03,
    ):
        p = p * q + np.float32(c)
    r = np.float32(1.19825839466702e-06)
    for c in (1.18534705686654e-04, 2.26843463243900e-03, 4.89352518554385e-03):
        r = r * q + np.float32(c)
    return x * (np.float32(0.5) + np.float32(0.5) * half * p / r)


@compiled
def attend(s: PackedLayers, b: Workspace, layer: int, phase: int) -> None:
    """Attention, a key head and the query heads that share it at a time."""
    T = len(b.x)
    hd = s.cos.shape[2]
    heads = s.out.shape[2] // hd
    kv_heads = s.cos.shape[1] - heads
    group = heads // kv_heads
    n = 1 if layer == len(s.qkv) - 1 else T
    _, rows = layout(n)
    mask = s.masks[layer]
    k = np.empty((T, hd), np.float32)
    q = np.empty(hd, np.float32)
    weights = np.empty(T, np.float32)
    mixed = np.empty(hd, np.float32)
    pieces = kv_heads
    shared = claim(b, phase, pieces)
    while shared >= 0:
        for t in range(T):
            rotated(s, layer, b.qkv[t], t, heads + shared, k[t])
        for head in range(shared * group, (shared + 1) * group):
            for i in range(n):
                t = T - n + i
                rotated(s, layer, b.qkv[t], t, head, q)
                top = np.float32(-np.inf)
                for u in range(t + 1):
                    score = np.float32(0)
                    for j in range(hd):
                        score += q[j] * k[u, j]
                    weights[u] = score + mask[t, u]
                    top = max(top, weights[u])
                total = np.float32(0)
                for u in range(t + 1):
                    weights[u] = math.exp(weights[u] - top)
                    total += weights[u]
                mixed[:] = 0
                for u in range(t + 1):
                    v = b.qkv[u, (heads + kv_heads + shared) * hd :]
                    for j in range(hd):
                        mixed[j] += weights[u] * v[j]
                start = (i // rows) * heads * hd * rows + head * hd * rows + i % rows
                for j in range(hd):
                    b.out_in[start + j * rows] = mixed[j] / total
        finish(b, phase)
        shared = claim(b, phase, pieces)


@compiled
def rotated(s: PackedLayers, layer: int, row: Any, t: int, head: int, out: Any) -> None:
    """A query or key of one position, normed where the family does that, with rope."""
    hd = len(out)
    x = row[head * hd : (head + 1) * hd]
    if len(s.head_norm):
        total = np.float32(0)
        for j in range(hd):
            total += x[j] * x[j]
        scale = np.float32(1 / math.sqrt(total / hd + s.eps))
        for j in range(hd):
            x[j] *= scale * s.head_norm[layer, head, j]
    half = hd // 2
    for j in range(half):
        out[j] = x[j] * s.cos[t, head, j] + x[half + j] * s.sin[t, head, j]
    for j in range(half, hd):
        out[j] = x[j] * s.cos[t, head, j] + x[j - half] * s.sin[t, head, j]
