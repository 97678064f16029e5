"""Gradient boosted trees on the largest components of the features, and the telemetry. Needs scikit-learn."""

from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from simv0.baselines.linear import Targets, components, stats
from simv0.labels import HEADS

COMPONENTS = 64
SETTINGS = {"max_iter": 50, "learning_rate": 0.1, "max_leaf_nodes": 8, "max_bins": 63, "early_stopping": False}
"""Small trees: some hundred windows are the usual case, and a large split takes seconds."""
UNSEEN = 1e-6
"""Probability of a class that train never shows."""


def trees_available() -> bool:
    """Whether scikit-learn is installed."""
    try:
        import sklearn.ensemble  # noqa: F401
    except ImportError:
        return False
    return True


class Trees:
    """One ensemble a head.

    Args:
        feats: of every window, averaged over it.
        telemetry: of every window.
        targets: what to fit.
    """

    def __init__(self, feats: Float[Tensor, "N dv"], telemetry: Float[Tensor, "N 8"], targets: Targets) -> None:
        from sklearn.ensemble import HistGradientBoostingClassifier
        from threadpoolctl import threadpool_limits

        self.mean, self.std = stats(feats)
        self.components = components((feats - self.mean) / self.std, COMPONENTS)
        x = self._reduced(feats, telemetry)
        self.ensembles: dict[str, Any] = {}
        for head, (ids, weight) in targets.items():
            if len(torch.unique(ids[weight > 0])) < 2:  # nothing to tell apart
                self.ensembles[head] = int(ids[weight.argmax()])
                continue
            with threadpool_limits(1):  # threads that meet at every small tree take longer than one
                trees = HistGradientBoostingClassifier(random_state=0, **SETTINGS)
                self.ensembles[head] = trees.fit(x, ids.numpy(), weight.numpy())

    def __call__(self, feats: Float[Tensor, "M dv"], telemetry: Float[Tensor, "M 8"]) -> dict[str, Tensor]:
        """Logits of every head."""
        x, logits = self._reduced(feats, telemetry), {}
        for head, names in HEADS.items():
            p, ensemble = np.full((len(x), len(names)), UNSEEN), self.ensembles[head]
            if isinstance(ensemble, int):
                p[:, ensemble] = 1
            else:
                p[:, ensemble.classes_] = ensemble.predict_proba(x).clip(UNSEEN)
            logits[f"{head}_logits"] = torch.from_numpy(p).log().float()
        return logits

    def _reduced(self, feats: Float[Tensor, "M dv"], telemetry: Float[Tensor, "M 8"]) -> Float[np.ndarray, "M _"]:
        x: np.ndarray = torch.cat([(feats - self.mean) / self.std @ self.components, telemetry], 1).numpy()
        return x
