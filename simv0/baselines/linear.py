"""Linear models: multinomial logistic regression, its penalty chosen on recordings that it was not fitted on."""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as nnf
from jaxtyping import Float, Int
from torch import Tensor

from simv0.data.labels import Labels
from simv0.labels import HEADS, TELEMETRY
from simv0.training.splits import evenly_spaced

CS = (1e-3, 1e-2, 1e-1, 1.0)
"""Inverse strengths of the L2 penalty that are tried, as scikit-learn counts them."""
CHOSEN_ON = 2048
"""Windows, evenly spaced."""
FOLDS = 4
REDUCED = 256
"""Of wider inputs the largest components are taken: the penalty would shrink the others most."""
ITERATIONS = 200
FEW_ITERATIONS = 30
"""For each penalty that is tried, from where the stronger one ended."""

Targets = dict[str, tuple[Int[Tensor, " N"], Float[Tensor, " N"]]]
"""Head -> label and weight of each window (its own weight times that of its class)."""
CLASSES = [len(names) for names in HEADS.values()]


class Linear:
    """A matrix a head, on blocks of inputs.

    Inputs are standardised, and a block of more than eight is scaled to the variance of eight: one penalty would drown
    the telemetry beside a thousand features.

    Args:
        blocks: inputs to fit on.
        targets: what to fit.
        labels: of the same windows, to choose the penalty of each head by recording; without them it is 1.
    """

    def __init__(self, blocks: Sequence[Float[Tensor, "N _"]], targets: Targets, labels: Labels | None = None) -> None:
        self.stats = [stats(block) for block in blocks]
        x = self._scaled(blocks)
        self.reduce = components(x, REDUCED) if x.shape[1] > REDUCED else None
        x = self._inputs(blocks)
        self.cs = choose_c(x, targets, labels) if labels is not None else dict.fromkeys(HEADS, 1.0)
        self.maps = {
            head: logistic_regression(x, *targets[head], len(names), self.cs[head]) for head, names in HEADS.items()
        }

    def __call__(self, blocks: Sequence[Float[Tensor, "M _"]]) -> dict[str, Tensor]:
        """Logits of every head."""
        x = self._inputs(blocks)
        return {f"{head}_logits": x @ weight.T + bias for head, (weight, bias) in self.maps.items()}

    def _inputs(self, blocks: Sequence[Float[Tensor, "M _"]]) -> Float[Tensor, "M q"]:
        x = self._scaled(blocks)
        return x if self.reduce is None else x @ self.reduce

    def _scaled(self, blocks: Sequence[Float[Tensor, "M _"]]) -> Float[Tensor, "M p"]:
        scaled = [
            (block - mean) / std * min(1.0, (len(TELEMETRY) / len(mean)) ** 0.5)
            for block, (mean, std) in zip(blocks, self.stats, strict=True)
        ]
        return torch.cat(scaled, 1)


def stats(x: Float[Tensor, "N p"]) -> tuple[Float[Tensor, " p"], Float[Tensor, " p"]]:
    """Mean and std of each input; std 1 where it does not vary."""
    mean, std = x.mean(0), x.std(0, unbiased=False)
    return mean, torch.where(std <= 1e-6 * mean.abs().clamp(min=1e-6), 1.0, std)


def components(x: Float[Tensor, "N p"], at_most: int) -> Float[Tensor, "p q"]:
    """The directions of the largest variance of centred x, by the smaller of its two Gram matrices."""
    n, p = x.shape
    few = min(at_most, n, p)
    if n < p:
        values, vectors = torch.linalg.eigh((x @ x.T).double())
        largest = x.double().T @ vectors[:, -few:] / values[-few:].clamp(min=1e-12).sqrt()
    else:
        largest = torch.linalg.eigh((x.T @ x).double())[1][:, -few:]
    first: Tensor = largest.flip(1).float()
    return first


def logistic_regression(
    x: Float[Tensor, "N p"], ids: Int[Tensor, " N"], sample_weight: Float[Tensor, " N"], classes: int, c: float = 1.0
) -> tuple[Float[Tensor, "classes p"], Float[Tensor, " classes"]]:
    """Multinomial logistic regression: minimises sum(w * cross entropy) + |W|^2 / 2c by LBFGS, the bias unpenalised.

    Returns:
        Weight [classes, p] and bias [classes], float32.
    """
    solution = [torch.zeros(classes, n, dtype=torch.float64) for n in (x.shape[1], 1)]
    _go_down(x.double(), [(ids, sample_weight.double())], [classes], solution, c, ITERATIONS)
    return solution[0].float(), solution[1].squeeze(1).float()


def choose_c(x: Float[Tensor, "N p"], targets: Targets, labels: Labels) -> dict[str, float]:
    """Head -> the C of the least cross entropy on windows whose recordings were left out. All heads are fitted at once.

    Args:
        x: inputs.
        targets: what to fit.
        labels: say which recording a window is of; without `group`, a fold is a stretch of the windows.
    """
    rows = torch.tensor(evenly_spaced(len(x), CHOSEN_ON))
    x, fold = x[rows].double(), torch.from_numpy(folds(labels.group, len(x)))[rows]
    cut = [(ids[rows], weight[rows].double()) for ids, weight in targets.values()]
    loss = torch.zeros(len(CS), len(HEADS), dtype=torch.float64)
    for number in range(int(fold.max()) + 1):
        known, new = fold != number, fold == number
        solution = [torch.zeros(sum(CLASSES), n, dtype=torch.float64) for n in (x.shape[1], 1)]
        for i, c in enumerate(CS):
            kept = [(ids[known], weight[known]) for ids, weight in cut]
            _go_down(x[known], kept, CLASSES, solution, c, FEW_ITERATIONS)
            loss[i] += torch.stack(_losses(x[new], [(ids[new], weight[new]) for ids, weight in cut], CLASSES, solution))
    return {head: CS[int(best)] for head, best in zip(HEADS, loss.argmin(0), strict=True)}


def folds(group: Sequence[str] | None, n: int) -> Int[np.ndarray, " N"]:
    """The fold of each of n windows: recordings as a whole, the largest first, each to the smallest fold; or stretches
    of the windows, where there are no two recordings.
    """
    names, unit = np.unique(group if group is not None else [""] * n, return_inverse=True)
    if len(names) < 2:
        stretches: np.ndarray = np.arange(n) * FOLDS // n
        return stretches
    sizes, filled = np.bincount(unit), np.zeros(min(FOLDS, len(names)))
    fold_of = np.zeros(len(names), int)
    for recording in np.argsort(-sizes, kind="stable"):
        fold_of[recording] = filled.argmin()
        filled[fold_of[recording]] += sizes[recording]
    return fold_of[unit]


def _go_down(
    x: Float[Tensor, "N p"],
    targets: Sequence[tuple[Int[Tensor, " N"], Float[Tensor, " N"]]],
    classes: list[int],
    solution: list[Tensor],
    c: float,
    iterations: int,
) -> None:
    """Move `solution` (weight [classes,p] and bias [classes,1] of all targets) to the minimum."""
    variables = [part.clone().requires_grad_() for part in solution]
    scale = 1 / max(float(weight.sum()) for _, weight in targets)
    solver = torch.optim.LBFGS(
        variables, max_iter=iterations, tolerance_grad=1e-5, history_size=20, line_search_fn="strong_wolfe"
    )

    def loss() -> Tensor:
        solver.zero_grad()
        penalty = variables[0].square().sum() / (2 * c)
        total = (penalty + torch.stack(_losses(x, targets, classes, variables)).sum()) * scale
        total.backward()  # type: ignore[no-untyped-call]
        return total

    with torch.enable_grad():
        solver.step(loss)  # type: ignore[no-untyped-call]
    for part, found in zip(solution, variables, strict=True):
        part.copy_(found.detach())


def _losses(
    x: Float[Tensor, "N p"],
    targets: Sequence[tuple[Int[Tensor, " N"], Float[Tensor, " N"]]],
    classes: list[int],
    solution: list[Tensor],
) -> list[Tensor]:
    """sum(w * cross entropy) of each target."""
    logits = torch.split(x @ solution[0].T + solution[1].T, classes, -1)
    return [
        (weight * nnf.cross_entropy(own, ids, reduction="none")).sum()
        for own, (ids, weight) in zip(logits, targets, strict=True)
    ]
