"""Keys of samples that nearly match one of the contract's."""

import difflib
import functools
import logging
from collections.abc import Mapping
from typing import Any

from simv0.labels import HEADS

log = logging.getLogger("simv0")

KNOWN_KEYS = frozenset(
    {"frames", "vis_feats", "telemetry", *(f"{head}_id" for head in HEADS), "weight", "sample_id", "group", "t"}
)


class Misspelt:
    """Collects the misspelt keys of samples: each with its first place and the number of samples that have it."""

    def __init__(self) -> None:
        self.first: dict[str, str] = {}
        self.count: dict[str, int] = {}

    def note(self, sample: Any, where: str) -> None:
        """Look at the keys of one sample."""
        for key in sample.keys() - KNOWN_KEYS if isinstance(sample, Mapping) else ():
            near = _nearest(str(key))
            if near is not None and near not in sample:
                self.first.setdefault(key, f"{where}: the key {key!r} is ignored; did you mean {near!r}?")
                self.count[key] = self.count.get(key, 0) + 1

    def warn(self) -> None:
        """Warn of ignored keys that look misspelt."""
        for key in sorted(self.first):
            others = self.count[key] - 1
            log.warning(self.first[key] + (f" (and {others} more like it)" if others else ""))


@functools.lru_cache(maxsize=4096)
def _nearest(key: str) -> str | None:
    """The known key that this one nearly matches."""
    return next(iter(difflib.get_close_matches(key.lower(), KNOWN_KEYS, n=1, cutoff=0.8)), None)
