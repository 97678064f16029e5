"""The control of a run: the same recipe, data and seed around a randomised copy of the LLM.

output_dir/llm_control/            a run like any other
output_dir/llm_control/randomised/ the copy, a transformers folder
"""

from pathlib import Path

from simv0.config.schema import Config
from simv0.llm.randomised import save_randomised
from simv0.training.rundir import CONTROL

COPY = "randomised"


def control_config(config: Config) -> Config:
    """The config of the control's run."""
    folder = Path(config.output.output_dir) / CONTROL
    return config.model_copy(
        update={
            "model": around_copy(config, folder).model,
            "training": config.training.model_copy(update={"llm_control": False}),
            "output": config.output.model_copy(update={"output_dir": str(folder)}),
        }
    )


def around_copy(config: Config, folder: Path) -> Config:
    """The config with the copy that lies in a control's folder for its LLM."""
    copy = {"llm_name_or_path": str(folder / COPY), "llm_revision": None}
    return config.model_copy(update={"model": config.model.model_copy(update=copy)})


def write_copy(config: Config) -> None:
    """Make the copy, where it is not there yet.

    Raises:
        ModelError: as `save_randomised`.
    """
    folder = Path(config.output.output_dir) / CONTROL / COPY
    if not folder.exists():
        save_randomised(config.model.llm_name_or_path, config.model.llm_revision, folder, config.training.seed)
