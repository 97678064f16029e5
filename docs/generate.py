"""Write docs/config.md, docs/cli.md and configs/sim_v0.yaml from the code: python docs/generate.py

A test holds the files to the code, so run this after changing a config field or a command.
"""

import textwrap
from pathlib import Path
from typing import Any

from typer.main import get_command

from cli.main import app
from simv0.config.load import all_keys
from simv0.config.schema import Config
from simv0.config.yaml import dump_yaml

ROOT = Path(__file__).resolve().parents[1]
SPLITS = {"data.train_split_path": "data/train.jsonl", "data.val_split_path": "data/val.jsonl"}


def default(key: str, info: Any) -> Any:
    """The default of a field; the two that have none get a place where data often lies."""
    return SPLITS[key] if key in SPLITS else info.get_default(call_default_factory=True)


def config_yaml() -> str:
    """configs/sim_v0.yaml: every key with its default and what it means."""
    lines = ["# The defaults and the recommended recipe, key by key (docs/config.md). Written by docs/generate.py."]
    section = ""
    for key, info in all_keys().items():
        if key.split(".")[0] != section:
            section = key.split(".")[0]
            lines += [f"{section}:  # {Config.model_fields[section].annotation.__doc__.split('.')[0]}"]
        lines += textwrap.wrap(info.description, 112, initial_indent="  # ", subsequent_indent="  # ")
        lines += textwrap.indent(dump_yaml({key.split(".")[1]: default(key, info)}), "  ").splitlines()
    return "\n".join(lines) + "\n"


def config_md() -> str:
    """docs/config.md: the same as a table."""
    lines = [
        "# Config keys",
        "",
        "One YAML file; unknown keys are refused. `--set section.key=value` overrides a key on every command that",
        "takes `--config`. `${NAME}` in a text is taken from the environment. Relative paths are relative to the",
        "current folder.",
        "Written by `docs/generate.py`.",
    ]
    section = ""
    for key, info in all_keys().items():
        if key.split(".")[0] != section:
            section = key.split(".")[0]
            lines += ["", f"## {section}", "", Config.model_fields[section].annotation.__doc__, ""]
            lines += ["| key | default | what |", "|---|---|---|"]
        value = (
            "(needed)"
            if info.is_required()
            else f"`{dump_yaml(default(key, info)).strip().removesuffix('...').strip()}`"
        )
        lines.append(f"| `{key.split('.')[1]}` | {' '.join(value.split())} | {' '.join(info.description.split())} |")
    return "\n".join(lines) + "\n"


def cli_md() -> str:
    """docs/cli.md: the commands and their options."""
    lines = ["# Commands", "", "Written by `docs/generate.py` from the code; `simv0 COMMAND --help` shows the same."]
    for name, command in get_command(app).commands.items():
        lines += ["", f"## simv0 {name}", "", command.help, "", "| option | what |", "|---|---|"]
        for option in command.params:
            shown = ", ".join(f"`{text}`" for text in [*option.opts, *option.secondary_opts])
            lines.append(f"| {shown} | {option.help}{' Needed.' if option.required else ''} |")
    return "\n".join(lines) + "\n"


FILES = {"configs/sim_v0.yaml": config_yaml, "docs/config.md": config_md, "docs/cli.md": cli_md}

if __name__ == "__main__":
    for name, make in FILES.items():
        (ROOT / name).write_text(make())
