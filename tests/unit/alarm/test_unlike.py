"""Windows unlike the training data: by hand, by a second way, by what must not matter, and on clouds of known shape."""

import numpy as np
import pytest
import torch

from simv0.alarm.unlike import LARGEST, RATE, Unlike, _limit, fit_unlike

RNG = np.random.default_rng(0)
DV, N = 60, 400


def cloud(n: int, dv: int = DV, *, shift: float = 0.0, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Features that vary more along some directions than others, and telemetry within -1..1 of a constant last one."""
    rng = np.random.default_rng(seed)
    mix = np.random.default_rng(9).normal(size=(dv, dv)) / np.arange(1, dv + 1)[:, None]
    telemetry = rng.uniform(-1, 1, (n, 8))
    telemetry[:, 7] = 9.81
    return ((rng.normal(size=(n, dv)) + shift) @ mix).astype(np.float32), telemetry.astype(np.float32)


def fitted(train: tuple[np.ndarray, np.ndarray], held_out: tuple[np.ndarray, np.ndarray]) -> Unlike:
    return fit_unlike(train, held_out, np.where(train[0].std(0) > 1e-6, train[0].std(0), 1.0))


def frames_of(unlike: Unlike, windows: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """Distances of the frames, of windows of two frames around their mean."""
    means = torch.from_numpy(windows[0])
    noise = torch.randn(means.shape, generator=torch.Generator().manual_seed(0))
    return unlike.distances(torch.stack([means - noise, means + noise], 1), torch.from_numpy(windows[1])).frames


@pytest.fixture(scope="module")
def unlike() -> Unlike:
    return fitted(cloud(N), cloud(N, seed=1))


def test_the_limit_by_hand() -> None:
    """The 49th of 49, the 98th of 99; and as far again as it lies beyond the median."""
    assert _limit(np.arange(1.0, 50)) == 49 + (49 - 25)
    assert _limit(np.arange(99.0, 0, -1)) == 98 + (98 - 50)


def test_its_own_kind_is_known_and_a_shifted_cloud_is_not(unlike: Unlike) -> None:
    own = (frames_of(unlike, cloud(5000, seed=2)) > 1).mean()
    assert own <= RATE - 3 * np.sqrt(RATE * (1 - RATE) / 5000)
    assert (frames_of(unlike, cloud(500, shift=6.0, seed=3)) > 1).mean() > 0.99
    assert unlike.limit_windows == unlike.windows == N
    assert unlike.limit_share is not None
    assert unlike.limit_share <= RATE


def test_along_the_axes_it_is_the_mahalanobis_distance() -> None:
    mix = np.eye(5) + 0.4
    train, held_out, other = ((RNG.normal(size=(N, 5)).astype(np.float32) @ mix, cloud(N)[1]) for _ in range(3))
    unlike = fitted(train, held_out)
    centred = other[0] - train[0].mean(0)
    squared = np.einsum("ni,ij,nj->n", centred, np.linalg.inv(np.cov(train[0].T, bias=True)), centred) / 5
    np.testing.assert_allclose(frames_of(unlike, other) * unlike.frames_limit, np.sqrt(squared), rtol=1e-3)


def test_what_lies_off_the_axes_counts() -> None:
    """Training fills 3 of 200 directions; a window as near as the others, but into a new direction, is far."""
    rng, dv = np.random.default_rng(5), 200
    plane, noise = rng.normal(size=(3, dv)), 0.01
    windows = [rng.normal(size=(N, 3)) @ plane + noise * rng.normal(size=(N, dv)) for _ in range(2)]
    telemetry = cloud(N)[1]
    unlike = fitted((windows[0].astype(np.float32), telemetry), (windows[1].astype(np.float32), telemetry))
    off = rng.normal(size=dv)
    off -= np.linalg.lstsq(plane.T, off, rcond=None)[0] @ plane
    moved = windows[1] + 0.5 * np.linalg.norm(windows[1], axis=1).mean() * off / np.linalg.norm(off)
    assert (frames_of(unlike, (moved.astype(np.float32), telemetry)) > 1).all()


def test_the_scale_of_a_feature_does_not_matter(unlike: Unlike) -> None:
    scale = 10.0 ** RNG.integers(-3, 4, DV)
    scaled = [(means * scale, telemetry) for means, telemetry in (cloud(N), cloud(N, seed=1), cloud(50, shift=2.0))]
    other = fitted(scaled[0], scaled[1])
    means = torch.from_numpy(scaled[2][0])[:, None]
    found = other.distances(means, torch.from_numpy(scaled[2][1])).frames
    wanted = unlike.distances(torch.from_numpy(cloud(50, shift=2.0)[0])[:, None], torch.from_numpy(cloud(50)[1])).frames
    np.testing.assert_allclose(found, wanted, rtol=1e-2)


def test_a_constant_feature_divides_by_nothing_and_decides_nothing_alone() -> None:
    train, held_out, other = (cloud(N, seed=seed) for seed in range(3))
    for windows in (train, held_out, other):
        windows[0][:, 0] = 7
    unlike = fitted(train, held_out)
    before = frames_of(unlike, other)
    other[0][:, 0] = 1e6
    after = frames_of(unlike, other)
    assert np.isfinite(after).all()
    assert (after > before).all()
    unlimited = np.sqrt(before**2 + (LARGEST / unlike.frames_limit) ** 2 / unlike.variance_off)
    np.testing.assert_allclose(after, unlimited, rtol=1e-3)


@pytest.mark.parametrize(
    ("channel", "value", "reason"),
    [
        (2, 0.9, None),
        (2, 2.9, None),  # a range beyond the range
        (2, -3.2, "telemetry az -3.2, in training -0.9"),
        (5, 57.3, "telemetry gz 57.3, in training -0.9"),
        (7, 9.81, None),
        (7, 1.0, "telemetry w 1, in training 8.81 to 10.81"),  # a constant channel: +-1
    ],
)
def test_telemetry_out_of_its_range(unlike: Unlike, channel: int, value: float, reason: str | None) -> None:
    means, telemetry = cloud(1)
    telemetry[0, channel] = value
    batch = torch.from_numpy(means)[:, None], torch.from_numpy(telemetry)
    found = unlike.distances(*batch)
    assert (found.telemetry[0] > 1) == (reason is not None)
    distance = {"frames": 0.5, "telemetry": float(found.telemetry[0])}
    said = unlike.reason(distance, batch[1][0])
    assert said is None if reason is None else (said or "").startswith(f"unlike the training data: {reason}")


def test_a_glitch_in_training_widens_no_range() -> None:
    train, held_out = cloud(N), cloud(N, seed=1)
    train[1][7, 3] = 1e6
    assert float(fitted(train, held_out).half_range[3]) < 1.1


def test_both_reasons_are_said(unlike: Unlike) -> None:
    telemetry = torch.zeros(8)
    said = unlike.reason({"frames": 1.26, "telemetry": 2.9}, telemetry)
    assert said == (
        "unlike the training data: frames 1.3 times as far as the limit; telemetry w 0, in training 8.81 to 10.81"
    )
