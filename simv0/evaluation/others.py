"""The models that a checkpoint is compared with, on the windows that are evaluated."""

import logging
import time

from simv0.config.schema import Config
from simv0.errors import SimError
from simv0.evaluation.baselines import Logits, fit_baselines, predict_all
from simv0.evaluation.trees import trees_available
from simv0.model.checkpoint import Meta
from simv0.runtime.threads import limited_to
from simv0.training.splits import Split, open_split

log = logging.getLogger("simv0")

NO_TREES = "no boosted trees beside this checkpoint: they need scikit-learn (pip install 'simv0[report]')"


def simple_models(config: Config, meta: Meta, source: Split, data: str | None) -> dict[str, Logits] | str:
    """Name -> logits of simple models, fitted on the train split's features; or why there are none."""
    if source.identity is None:
        return "the baselines need feature files; run `simv0 cache-vis`"
    try:
        train = open_split(config, "train")
    except SimError as error:
        return f"the train split is not available: {error}"
    if train.identity is None or train.dv != source.dv or (source.name == "train" and data is None):
        return "they would be fitted on the same windows, or on different features"
    started = time.perf_counter()
    with limited_to(1):  # many small products: two threads took four times as long as one
        fitted = fit_baselines(train, config.training, meta.K, meta.d)
    log.info(f"fitted {len(fitted)} simple models in {time.perf_counter() - started:.0f} s")
    return predict_all(fitted, source, meta.K)


def notes_of(simple: dict[str, Logits] | str) -> list[str]:
    """What is missing from the comparison."""
    return [] if isinstance(simple, str) or trees_available() else [NO_TREES]
