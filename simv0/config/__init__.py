"""One YAML file -> one typed `Config`: the schema, reading it, YAML without its traps. Imports only `simv0.errors`.

A new key goes into `schema`; `docs/generate.py` then rewrites the pages.
"""

from simv0.config.schema import (
    CacheConfig,
    Config,
    DataConfig,
    EvaluationConfig,
    ModelConfig,
    OutputConfig,
    Section,
    TrainingConfig,
)

__all__ = [
    "CacheConfig",
    "Config",
    "DataConfig",
    "EvaluationConfig",
    "ModelConfig",
    "OutputConfig",
    "Section",
    "TrainingConfig",
]
