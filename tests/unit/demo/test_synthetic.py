"""The demo world: hand-worked geometry, telemetry against motion, and files that the rest of simv0 can read."""

import itertools
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from simv0.data.contract import check_sample
from simv0.data.labels import read_labels
from simv0.data.manifest import ManifestDataset
from simv0.demo.hazards import Pose, Thing, arc, contact_time, judge
from simv0.demo.render import Look, project, render
from simv0.demo.world import RATE, drive, make_scene, measure, write_world
from simv0.labels import HEADS, HIGH, TELEMETRY

LOOK = Look(floor=(110, 110, 110), walls=((150, 150, 150), (150, 150, 150)), light=1.0, tile=1.0)


def state(*things: Thing, v: float = 1.0, w: float = 0.0, heading: float = 0.0) -> Pose:
    return Pose(x=0.0, y=0.0, heading=heading, v=v, w=w, acceleration=0.0, things=things)


def box(ahead: float, left: float = 0.0) -> Thing:
    """A box of radius 0.4 whose contact with the rover (radius 0.25) comes after `ahead` metres."""
    return Thing("box", ahead + 0.65, left, radius=0.4, height=0.8)


@pytest.mark.parametrize(
    ("ahead", "v", "risk", "action"),
    [
        (3.0, 1.0, "low", "slow"),
        (2.0, 1.0, "med", "turn_right"),
        (1.0, 1.0, "high", "stop"),
        (1.0, 0.5, "med", "turn_right"),  # the same picture, half the speed: 2 s
        (0.3, 1.0, "high", "stop"),
        (0.3, 0.0, "high", "reverse"),  # the same picture at standstill, judged as if it crept: 0.6 s
        (5.0, 1.0, "none", "continue"),
    ],
)
def test_a_box_straight_ahead_is_judged_by_its_time_to_collision(
    ahead: float, v: float, risk: str, action: str
) -> None:
    here = state(box(ahead, left=0.001), v=v)
    verdict = judge(here)
    assert (verdict.risk, verdict.action) == (risk, action)
    assert verdict.reason == ("unknown" if risk == "none" else "obstacle")
    if risk != "none":
        assert contact_time(here, here.things[0]) == pytest.approx(ahead / max(v, 0.5), abs=0.051)


def test_it_turns_away_from_the_side_the_box_is_on() -> None:
    assert judge(state(box(2.0, left=0.3))).action == "turn_right"
    assert judge(state(box(2.0, left=-0.3))).action == "turn_left"


def test_a_person_is_extrapolated_with_their_own_speed() -> None:
    """3 m ahead and 1.5 m to the left at 1 m/s: the rover is there after 3 s, the person in its way after 1.5 s."""
    person = Thing("person", 1.5, 1.0, radius=0.3, height=1.7)
    assert judge(state(person)).risk == "none"  # stands aside
    assert judge(state(replace(person, vy=0.6))).risk == "none"  # walks away
    crossing = judge(state(replace(person, vy=-0.6)))  # meets the rover
    assert (crossing.risk, crossing.reason, crossing.action) == ("high", "human", "stop")
    passed = state(replace(person, y=-0.4, vy=-0.6))  # right in front now, but gone when the rover comes
    assert judge(replace(passed, things=(replace(person, y=-0.4),))).risk == "high"
    assert judge(passed).risk == "none"


def test_turning_away_makes_the_way_free() -> None:
    here = state(box(2.0))
    assert judge(here).risk == "med"
    assert judge(replace(here, w=0.8)).risk == "none"


def test_a_narrow_gap_is_a_tight_space_one_step_milder_than_a_wall_there() -> None:
    posts = tuple(Thing("post", 1.5, side * 0.6, radius=0.2, height=1.5) for side in (-1, 1))
    verdict = judge(state(*posts))
    assert (verdict.risk, verdict.reason, verdict.action) == ("med", "tight_space", "slow")
    wide = tuple(replace(post, y=2 * post.y) for post in posts)
    assert judge(state(*wide)).risk == "none"


def test_arc_is_the_circle_of_radius_v_over_w() -> None:
    t = np.array([np.pi])  # half a turn at 1 rad/s and 2 m/s: back beside the start, 2 radii = 4 m to the left
    np.testing.assert_allclose(arc(2.0, 1.0, t), [[0.0, 4.0]], atol=1e-12)
    np.testing.assert_allclose(arc(2.0, 0.0, t), [[2 * np.pi, 0.0]])


def test_pinhole_projection_by_hand() -> None:
    """96 px over 90 degrees: focal length 48 px; 1 m left at 2 m is 24 px left, 0.4 m below the camera 9.6 px down."""
    assert project(2.0, 1.0, 0.0, (96, 64)) == pytest.approx((48 - 24, 32 + 9.6))
    assert project(4.0, -1.0, 0.4, (96, 64)) == pytest.approx((48 + 12, 32))


def test_a_thing_is_painted_where_the_projection_puts_it() -> None:
    person = Thing("person", 2.0, 0.5, radius=0.3, height=1.7)
    picture = render(state(person), 4.0, LOOK, (96, 64), np.random.default_rng(0))
    pixels = np.asarray(picture).astype(int)
    orange = (pixels[..., 0] - pixels[..., 2]) > 100
    columns = np.flatnonzero(orange.any(axis=0))
    # centre 0.5 m left of the axis: column 48 - 24 * 0.5 = 36, half a width of 0.3 m = 7.2 px either side
    assert (columns.min(), columns.max()) == (pytest.approx(28.8, abs=1), pytest.approx(43.2, abs=1))
    turned = render(state(person, heading=np.pi), 4.0, LOOK, (96, 64), np.random.default_rng(0))
    assert not (np.asarray(turned)[..., 0].astype(int) - np.asarray(turned)[..., 2] > 100).any()


def test_integrating_the_telemetry_gives_the_path() -> None:
    """Odometry from the noisy v and w alone: noise averages out, so the end is met within some 5 % of the way."""
    for seed in range(5):
        rng = np.random.default_rng(seed)
        states = drive(make_scene(rng), rng, 60, reckless=seed / 5)
        telemetry = measure(states, rng)
        assert telemetry[:, 2].mean() == pytest.approx(9.81, abs=0.1)
        assert np.abs(telemetry[:, 5] - telemetry[:, 7]).max() < 0.15  # gyro and odometry agree on the yaw rate
        x, y, heading, way = states[0].x, states[0].y, states[0].heading, 0.0
        for before, now in itertools.pairwise(telemetry):
            v, w = (before[6] + now[6]) / 2, (before[7] + now[7]) / 2
            x, y = x + v / RATE * np.cos(heading + w / RATE / 2), y + v / RATE * np.sin(heading + w / RATE / 2)
            heading, way = heading + w / RATE, way + abs(v) / RATE
        assert np.hypot(x - states[-1].x, y - states[-1].y) < 0.3 + 0.05 * way


def test_the_rover_hits_nobody() -> None:
    for seed in range(5):
        rng = np.random.default_rng(seed)
        for now in drive(make_scene(rng), rng, 60, reckless=seed / 5):
            room = min(np.hypot(thing.x - now.x, thing.y - now.y) - thing.radius for thing in now.things)
            assert room > 0


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    write_world(folder, train_windows=1000, val_windows=600, seed=0, F=4, size=(24, 16))
    return folder


def test_the_files_keep_the_sample_contract(world: Path) -> None:
    groups = {}
    for split, windows in (("train", 1000), ("val", 600)):
        dataset = ManifestDataset(world / f"{split}.jsonl")
        labels = read_labels(dataset, split, F=4)
        assert len(labels) == windows
        sample = check_sample(dataset[windows // 2], split, windows // 2, F=4)
        assert sample["frames"].shape == (4, 3, 16, 24)
        assert labels.group is not None
        groups[split] = set(labels.group)
        for head, names in HEADS.items():
            share = np.bincount(labels.ids[head], minlength=len(names)) / windows
            assert share.min() > 0.01, (split, head, share)
        assert 0.08 < (labels.ids["risk"] == HIGH).mean() < 0.3
    assert not groups["train"] & groups["val"]


def test_same_seed_same_bytes_and_windows_share_frames(tmp_path: Path) -> None:
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        write_world(tmp_path / name, train_windows=25, val_windows=3, seed=seed, size=(24, 16))
    a, b, c = (
        {path.relative_to(tmp_path / name): path.read_bytes() for path in (tmp_path / name).rglob("*.*")}
        for name in "abc"
    )
    assert a == b
    assert a != c
    rows = [json.loads(line) for line in a[Path("train.jsonl")].splitlines()]
    assert rows[0]["frames"][1:] == rows[1]["frames"][:-1]


def test_sensor_noise_leaves_the_labels_nearly_decided() -> None:
    """The ceiling: judging by the measured v and w instead of the true ones changes few labels."""
    same, total = 0, 0
    for seed in range(8):
        rng = np.random.default_rng(seed)
        states = drive(make_scene(rng), rng, 60, reckless=seed / 8)
        for truth, measured in zip(states, measure(states, rng), strict=True):
            seen = replace(truth, v=float(measured[TELEMETRY.index("v")]), w=float(measured[TELEMETRY.index("w")]))
            same, total = same + (judge(seen) == judge(truth)), total + 1
    assert 0.95 < same / total < 1


def test_telemetry_alone_and_one_frame_alone_know_less_than_both(world: Path) -> None:
    from sklearn.ensemble import HistGradientBoostingClassifier
    from sklearn.metrics import f1_score

    inputs, risks = {}, {}
    for split in ("train", "val"):
        dataset = ManifestDataset(world / f"{split}.jsonl")
        frame = np.stack([colour_grid(dataset[i]["frames"][-1].numpy()) for i in range(len(dataset))])
        labels = read_labels(dataset, split, F=4)
        risks[split] = labels.ids["risk"]
        inputs[split] = {
            "telemetry": labels.telemetry,
            "frame": frame,
            "both": np.hstack([frame, labels.telemetry]),
        }
    f1 = {}
    for name in ("telemetry", "frame", "both"):
        model = HistGradientBoostingClassifier(max_iter=40, random_state=0)
        model.fit(inputs["train"][name], risks["train"])
        f1[name] = f1_score(risks["val"], model.predict(inputs["val"][name]), average="macro")
    assert f1["both"] > f1["telemetry"] + 0.15, f1
    assert f1["both"] > f1["frame"] + 0.03, f1


def colour_grid(frame: np.ndarray) -> np.ndarray:
    """How orange, blue and magenta each 4x4 block of a [3,H,W] frame is, and the extent of each colour."""
    r, g, b = frame.astype(float)
    masks = np.stack([(r - b > 60), (b - r > 60), ((r - g > 60) & (b - g > 30))]).astype(float)
    blocks = masks.reshape(3, masks.shape[1] // 4, 4, masks.shape[2] // 4, 4).mean((2, 4))
    return np.concatenate([blocks.ravel(), masks.sum(1).ravel(), masks.mean((1, 2))])
