"""simv0: how risky a window of camera frames and telemetry is, why, and what to do.

Importing this package is cheap (no torch): the modules are imported where they are needed, `fit`, `evaluate`,
`Predictor` and `Stream` when they are asked for (`from simv0 import Predictor`).

Import it before torch: it asks the threads of torch's OpenMP not to spin for long while they wait, which torch reads
once, when it is loaded.
"""

from typing import TYPE_CHECKING, Any

import simv0.runtime.waiting  # noqa: F401  before torch

if TYPE_CHECKING:
    from simv0.api import evaluate, fit
    from simv0.predict import Predictor
    from simv0.stream import Stream

__version__ = "0.1.0"
__all__ = ["Predictor", "Stream", "__version__", "evaluate", "fit"]

_HOMES = {"Predictor": "simv0.predict", "Stream": "simv0.stream", "evaluate": "simv0.api", "fit": "simv0.api"}


def __getattr__(name: str) -> Any:
    """The public names, imported when they are first asked for."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
