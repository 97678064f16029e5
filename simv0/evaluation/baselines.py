"""What simple models make of the same windows: whoever trains an LLM around them should see that it earns its keep.

Majority class; logistic regression on telemetry; logistic regression on the mean feature and telemetry of a window.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as nnf
from jaxtyping import Bool, Float, Int
from torch import Tensor

from simv0.alarm.threshold import threshold_for_false_alarms
from simv0.data.contract import Batch
from simv0.labels import HEADS, HIGH
from simv0.model.losses import loss_sums
from simv0.model.metrics import Metrics, Tally
from simv0.training.splits import Split, evenly_spaced, fetch

C = 1.0
"""Inverse strength of the L2 penalty, as scikit-learn counts it (and its default)."""
MAX_ITERATIONS = 200
FITTED_ON = 65_536
"""Windows, evenly spaced, of a larger train split: its features need not fit into RAM."""
FALSE_ALARMS = 0.05
"""Rate of false alarms at which the recall of "high" is compared."""

Encode = Callable[[Batch], Float[Tensor, "B F dv"]]


def cached_features(batch: Batch) -> Float[Tensor, "B F dv"]:
    """The features that the batch brings."""
    return batch["vis_feats"].float()


def fit_baselines(train: Split, val: Split, encode: Encode = cached_features) -> dict[str, Metrics]:
    """Fit each baseline on `train` and measure it on `val`; seconds on cached features.

    Args:
        train: split to fit on, or on `FITTED_ON` windows of it; its sample weights count, class weights do not.
        val: split to measure on.
        encode: batch -> features, for splits that yield frames (`SimV0Model.encode`).

    Returns:
        Name -> the metrics of an epoch, and `risk_high_recall_at_5` (see `recall_at_false_alarms`).
    """
    known, new = read_inputs(train, encode, FITTED_ON), read_inputs(val, encode)
    return {name: score(logits, new) for name, logits in baseline_logits(known, new).items()}


def read_inputs(split: Split, encode: Encode = cached_features, at_most: int | None = None) -> Batch:
    """A split, or `at_most` windows of it, as one batch, features averaged over the window: `vis_feats` is [N,1,dv]."""
    labels = split.labels
    rows = evenly_spaced(len(labels), at_most or len(labels))
    batches = (fetch(split.dataset, rows[at : at + 256]) for at in range(0, len(rows), 256))
    feats = [encode(batch).mean(1, keepdim=True).cpu() for batch in batches]
    ids = {head: torch.from_numpy(labels.ids[head][rows]) for head in HEADS}
    return {
        "vis_feats": torch.cat(feats),
        "telemetry": torch.from_numpy(labels.telemetry[rows]).float(),
        "weight": torch.from_numpy(labels.weight[rows]).float(),
        "risk_id": ids["risk"],
        "reason_id": ids["reason"],
        "action_id": ids["action"],
    }


def baseline_logits(known: Batch, new: Batch) -> dict[str, dict[str, Tensor]]:
    """Baseline -> logits of every head for `new`, fitted on `known`."""
    telemetry = known["telemetry"], new["telemetry"]
    both = [torch.cat([batch["vis_feats"].mean(1), batch["telemetry"]], -1) for batch in (known, new)]
    nothing = torch.zeros(len(telemetry[0]), 1), torch.zeros(len(telemetry[1]), 1)
    inputs = {"majority class": nothing, "linear, telemetry": telemetry, "linear, features + telemetry": tuple(both)}
    return {name: _fit_heads(x, z, known) for name, (x, z) in inputs.items()}


def _fit_heads(x: Float[Tensor, "N p"], z: Float[Tensor, "M p"], known: Batch) -> dict[str, Tensor]:
    mean, std = x.mean(0), x.std(0, unbiased=False)
    std = torch.where(std <= 1e-6 * mean.abs().clamp(min=1e-6), 1.0, std)
    x, z = (x - mean) / std, (z - mean) / std
    logits = {}
    for head, names in HEADS.items():
        weight, bias = logistic_regression(x, known[f"{head}_id"], known["weight"], len(names))  # type: ignore[literal-required]
        logits[f"{head}_logits"] = z @ weight.T + bias
    return logits


def logistic_regression(
    x: Float[Tensor, "N p"], ids: Int[Tensor, " N"], sample_weight: Float[Tensor, " N"], classes: int, c: float = C
) -> tuple[Float[Tensor, "classes p"], Float[Tensor, " classes"]]:
    """Multinomial logistic regression: minimises sum(w * cross entropy) + |W|^2 / 2c by LBFGS, the bias unpenalised.

    Returns:
        Weight [classes, p] and bias [classes], float32.
    """
    x, sample_weight = x.double(), sample_weight.double()
    weight = torch.zeros(classes, x.shape[1], dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(classes, dtype=torch.float64, requires_grad=True)
    solver = torch.optim.LBFGS(
        [weight, bias], max_iter=MAX_ITERATIONS, tolerance_grad=1e-5, history_size=20, line_search_fn="strong_wolfe"
    )

    def loss() -> Tensor:
        solver.zero_grad()
        errors = nnf.cross_entropy(x @ weight.T + bias, ids, reduction="none")
        total = ((sample_weight * errors).sum() + weight.square().sum() / (2 * c)) / sample_weight.sum()
        total.backward()  # type: ignore[no-untyped-call]
        return total

    with torch.enable_grad():
        solver.step(loss)  # type: ignore[no-untyped-call]
    return weight.detach().float(), bias.detach().float()


def score(logits: dict[str, Tensor], batch: Batch) -> Metrics:
    """The metrics of an epoch, and the recall of "high" at `FALSE_ALARMS`."""
    tally = Tally()
    tally.add(logits, batch, loss_sums(logits, batch))
    recall = recall_at_false_alarms(logits["risk_logits"].softmax(-1)[:, HIGH], batch["risk_id"] == HIGH)
    return {**tally.metrics(), "risk_high_recall_at_5": recall}


def recall_at_false_alarms(p_high: Float[Tensor, " N"], is_high: Bool[Tensor, " N"]) -> float | None:
    """Recall of "high" at the lowest threshold that raises at most `FALSE_ALARMS` false alarms.

    None where there is no high window, or nothing else.

    A model that gives every window the same p recalls nothing.
    """
    if is_high.all() or not is_high.any():
        return None
    p, high = p_high.double().numpy(), is_high.numpy()
    return float((p[high] >= threshold_for_false_alarms(p, high, FALSE_ALARMS)).mean())
