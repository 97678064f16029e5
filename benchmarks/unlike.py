"""Windows unlike the training data: which distance tells them, which limit keeps its rate, what a step of it costs.

    OMP_NUM_THREADS=1 SIMV0_REAL=... python -m benchmarks.unlike [--features FILE.npz]

Rover is one recording, cut into ten blocks of time, autocar is twelve recordings. Again and again some of them are
trained on, others give the limit, and the rest is new: at most 2 % of its windows should be called unlike, and all
those of the other places. `--features` keeps the features between calls (five minutes on 2 cores).
"""

import argparse
import os
import timeit
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import simv0.runtime.torchvision_fix  # noqa: F401  before open_clip
from simv0.alarm.unlike import AXES, LARGEST, RATE, Unlike, fit_unlike
from simv0.config.schema import ModelConfig
from simv0.data.images import load_image
from simv0.data.jsonl import read_jsonl
from simv0.vision.encoder import Encoder, load_encoder

REAL = Path(os.environ.get("SIMV0_REAL", "")) / "data"
F, STEP, BLOCKS, DIVISIONS, NEIGHBOURS, KEPT = 8, 6, 10, 20, 3, 512
Windows = tuple[np.ndarray, np.ndarray]
Distance = Callable[[np.ndarray], np.ndarray]
CHANGES: dict[str, Callable[[Tensor], Tensor]] = {
    "as they are": lambda frame: frame,
    "half as bright": lambda frame: frame // 2,
    "a tenth as bright": lambda frame: frame // 10,
    "black": torch.zeros_like,
    "upside down": lambda frame: frame.flip(1),
    "left half covered": lambda frame: frame * (torch.arange(frame.shape[-1]) >= frame.shape[-1] // 2),
    "BGR for RGB": lambda frame: frame.flip(0),
    "noise of 40 of 255": lambda frame: (frame + 40 * torch.randn(frame.shape)).clamp(0, 255).byte(),
}  # fmt: skip


def encoder() -> Encoder:
    name = f"local-dir:{REAL.parent / 'vision/mobilenetv2_100'}"
    return load_encoder(ModelConfig(vision_encoder_name=name, vision_pretrained=None), "fp32", torch.device("cpu"))


@torch.no_grad()
def features(path: Path | None) -> dict[str, np.ndarray]:
    """Place -> features of its frames, in the order of their names."""
    if path is not None and path.exists():
        return dict(np.load(path))
    tower, found = encoder(), {}
    for place in ("rover", "autocar", "gopro_walk"):
        paths = sorted((REAL / place / "images").iterdir())
        batches = (torch.stack([load_image(p) for p in paths[at : at + 32]]) for at in range(0, len(paths), 32))
        found[place] = torch.cat([tower(batch) for batch in batches]).numpy()
    if path is not None:
        np.savez(path, **found)  # type: ignore[arg-type]
    return found


def windows(place: str, feats: np.ndarray) -> tuple[np.ndarray, np.ndarray, list[str], np.ndarray]:
    """Features [N,F,dv], telemetry, recording and seconds of the windows of a place."""
    at = {path.name: i for i, path in enumerate(sorted((REAL / place / "images").iterdir()))}
    if place == "gopro_walk":
        rows = read_jsonl(REAL / place / "sequence.jsonl")
        names = [row["image"] for row in rows]
        last = range((F - 1) * STEP, len(rows))
        frames = [[names[i - STEP * k] for k in range(F)][::-1] for i in last]
        rows = [rows[i] for i in last]
    else:
        rows = [row for split in ("train", "val") for row in read_jsonl(REAL / place / f"{split}.jsonl")]
        frames = [row["frames"] for row in rows]
    picked = np.stack([feats[[at[Path(name).name] for name in some]] for some in frames])
    telemetry = np.array([row["telemetry"] for row in rows], np.float32)
    return picked, telemetry, [row.get("group", place) for row in rows], np.array([row["t"] for row in rows])


def divisions(groups: list[str], t: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Masks of the windows to train on, to read the limit off, and to test: 6 : 2 : 2 of the units."""
    inside = np.ones(len(t), bool)
    if len(set(groups)) > 1:
        unit = np.unique(groups, return_inverse=True)[1]
    else:
        edges = np.linspace(t.min(), t.max() + 1e-6, BLOCKS + 1)
        unit = np.digitize(t, edges) - 1
        inside = t - 1.6 >= edges[unit]  # not reaching into the block before
    rng, n = np.random.default_rng(1), unit.max() + 1
    for _ in range(DIVISIONS):
        order = rng.permutation(n)
        parts = np.split(order, [round(0.6 * n), round(0.8 * n)])
        yield tuple(inside & np.isin(unit, part) for part in parts)  # type: ignore[misc]


def distances(train: np.ndarray, std: np.ndarray, chosen: Unlike) -> dict[str, Distance]:
    """Ways to say how far a window's mean feature is from those of training."""
    mean = train.mean(0)

    def standard(means: np.ndarray) -> np.ndarray:
        return ((means - mean) / std).clip(-LARGEST, LARGEST)

    known = standard(train)
    axes, variance, off = chosen.axes.numpy().T, chosen.variance.numpy(), chosen.variance_off
    kept = known[np.linspace(0, len(known) - 1, min(KEPT, len(known))).round().astype(int)]

    def along(means: np.ndarray) -> np.ndarray:
        return (((standard(means) @ axes) ** 2) / variance).mean(1)

    def beside(means: np.ndarray) -> np.ndarray:
        z = standard(means)
        return ((z**2).sum(1) - ((z @ axes) ** 2).sum(1)) / off

    def neighbour(means: np.ndarray) -> np.ndarray:
        z = standard(means)
        squared = (z**2).sum(1)[:, None] + (kept**2).sum(1) - 2 * z @ kept.T
        return np.sort(np.sqrt(np.maximum(squared, 0)), 1)[:, NEIGHBOURS - 1]

    return {
        "from the mean alone": lambda means: np.linalg.norm(standard(means), axis=1),
        f"Mahalanobis along {AXES} axes": lambda means: np.sqrt(along(means)),
        "off these axes": lambda means: np.sqrt(beside(means)),
        f"to the {NEIGHBOURS}rd nearest of {KEPT} kept": neighbour,
        "both, as simv0": lambda means: chosen._distances(means, np.zeros((len(means), 8), np.float32)).frames,
    }


def limits(held_out: np.ndarray) -> dict[str, float]:
    ordered = np.sort(held_out)
    quantile = float(ordered[int(np.ceil((len(ordered) + 1) * (1 - RATE))) - 1])
    beyond = quantile - float(np.median(ordered))
    return {"quantile": quantile, "+ half": quantile + beyond / 2, "+ as far again": quantile + beyond}


def compare(place: str, made: dict[str, tuple[np.ndarray, np.ndarray, list[str], np.ndarray]]) -> None:
    feats, telemetry, groups, t = made[place]
    means = feats.mean(1)
    others = {name: some[0].mean(1) for name, some in made.items() if name != place}
    rates: dict[tuple[str, str], list[list[float]]] = {}
    for train, held_out, new in divisions(groups, t):
        frames = feats[train].reshape(-1, feats.shape[-1]).astype(np.float64).std(0)
        std = np.where(frames > 1e-6, frames, 1.0)
        chosen = fit_unlike((means[train], telemetry[train]), (means[held_out], telemetry[held_out]), std)
        for name, distance in distances(means[train], std, chosen).items():
            for limit, value in limits(distance(means[held_out])).items():
                row = [float((distance(some) > value).mean()) for some in (means[new], *others.values())]
                rates.setdefault((name, limit), []).append(row)
    print(f"\ntrained on {place}: windows called unlike, in {DIVISIONS} divisions")
    print(f"| distance | limit | new ones: mean | worst | over 2 % | {' | '.join(f'{o}: least' for o in others)} |")
    print("|---" * (5 + len(others)) + "|")
    for (name, limit), rows in rates.items():
        own, *far = np.array(rows).T
        cells = [f"{own.mean():.1%}", f"{own.max():.1%}", f"{(own > RATE).sum()}", *(f"{o.min():.1%}" for o in far)]
        print(f"| {name} | {limit} | {' | '.join(cells)} |")


@torch.no_grad()
def changed(made: dict[str, tuple[np.ndarray, np.ndarray, list[str], np.ndarray]]) -> None:
    """What one sees of rover's last quarter, its frames changed, with a limit from the quarter before it."""
    feats, telemetry, _, t = made["rover"]
    train, held_out = t < 0.6 * t.max(), (t > 0.6 * t.max() + 1.6) & (t < 0.8 * t.max())
    std = feats[train].reshape(-1, feats.shape[-1]).std(0)
    summary = fit_unlike(
        (feats[train].mean(1), telemetry[train]), (feats[held_out].mean(1), telemetry[held_out]), np.maximum(std, 1e-6)
    )
    rows = [row for split in ("train", "val") for row in read_jsonl(REAL / "rover" / f"{split}.jsonl")]
    new = [row for row in rows if row["t"] > 0.8 * t.max() + 1.6][::6]
    known = torch.tensor([row["telemetry"] for row in new])
    tower = encoder()
    print(f"\n{len(new)} new windows of rover, their frames changed")
    print("| frames | distance, median | unlike |\n|---|---|---|")
    for name, change in CHANGES.items():
        seen = [tower(torch.stack([change(load_image(REAL / "rover" / p)) for p in row["frames"]])) for row in new]
        far = summary.distances(torch.stack(seen), known).frames
        print(f"| {name} | {np.median(far):.2f} | {(far > 1).mean():.0%} |")
    means = np.zeros((len(new), feats.shape[-1]), np.float32)
    for name, channels, factor in (
        ("gx gy gz w in degrees/s", [3, 4, 5, 7], 57.3),
        ("ax ay az in g", [0, 1, 2], 1 / 9.81),
    ):
        wrong = known.numpy().copy()
        wrong[:, channels] *= factor
        print(f"| telemetry: {name} | | {(summary._distances(means, wrong).telemetry > 1).mean():.0%} |")


def cost() -> None:
    print("\n| dv | ms a step | KiB in the checkpoint |\n|---|---|---|")
    for dv in (512, 768, 1280, 2048):
        rng = np.random.default_rng(0)
        train, held_out = ((rng.normal(size=(100, dv)), rng.normal(size=(100, 8))) for _ in range(2))
        summary = fit_unlike(train, held_out, np.ones(dv))
        window, telemetry = torch.randn(1, F, dv), torch.randn(1, 8)
        seconds = min(timeit.repeat(lambda: summary.distances(window, telemetry), number=200, repeat=20)) / 200  # noqa: B023
        size = sum(tensor.nbytes for tensor in summary.tensors().values())
        print(f"| {dv} | {1e3 * seconds:.3f} | {size / 1024:.0f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--features", type=Path, help="an .npz file to keep the features in")
    args = parser.parse_args()
    cost()
    made = {place: windows(place, feats) for place, feats in features(args.features).items()}
    changed(made)
    for place in ("rover", "autocar"):
        compare(place, made)


if __name__ == "__main__":
    main()
