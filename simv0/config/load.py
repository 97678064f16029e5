"""One YAML file -> one `Config`: overrides, environment, absolute paths, and every mistake in the user's words."""

import difflib
import logging
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from pydantic import ValidationError

from simv0.config.schema import Config, Section
from simv0.config.yaml import dump_yaml, parse_yaml
from simv0.errors import ConfigError, shown

log = logging.getLogger("simv0")


ConfigLike = Config | Mapping[str, Any] | str | os.PathLike[str]
"""How Python gives a config: its sections as a dict, the path of a YAML file, or one that is built already."""


def as_config(config: ConfigLike, overrides: Sequence[str] = ()) -> Config:
    """A config, however it is given. A dict may hold `Path` objects and tuples; its relative paths, as those of a file,
    are relative to the current folder.

    Raises:
        ConfigError: as `load_config`.
    """
    if isinstance(config, Config):
        return build_config(config.model_dump(), "config", environment=False, overrides=overrides)
    if isinstance(config, Mapping):
        return build_config(_plain(config), "config", overrides=overrides)
    return load_config(config, overrides)


def _plain(value: Any) -> Any:
    """A value of Python as YAML would have given it."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return os.fspath(value) if isinstance(value, os.PathLike) else value


def load_config(path: str | os.PathLike[str], overrides: Sequence[str] | None = None) -> Config:
    """Read a YAML config, apply `section.key=value` overrides, check it, make its paths absolute.

    Raises:
        ConfigError: every mistake, one line each, with the file, the key, and what to write instead.
    """
    return build_config(_read_tree(Path(path)), str(path), overrides=overrides or [])


def load_run_config(path: str | Path, overrides: Sequence[str] | None = None) -> Config:
    """Read a finished run's `config_resolved.yaml`, which may hold keys that this simv0 no longer knows.

    Raises:
        ConfigError: as `load_config`.
    """
    tree, unknown = known_keys(_read_tree(Path(path)))
    if unknown:
        log.info(f"{path}: keys unknown to this simv0 are ignored: {shown(', '.join(unknown))}")
    return build_config(tree, str(path), overrides=overrides or [])


def _read_tree(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"{path}: config file not found") from None
    except IsADirectoryError:
        raise ConfigError(f"{path}: is a folder; give the config file in it") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from None
    tree = parse_yaml(text, str(path))
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: expected sections ({', '.join(Config.model_fields)}), found something else")
    return tree


def build_config(
    tree: dict[str, Any], source: str, *, environment: bool = True, overrides: Sequence[str] = ()
) -> Config:
    """Check a tree of plain values and make its paths absolute.

    `source` starts every error line, or the one of the `section.key=value` overrides that brought the mistake.
    With `environment`, every ${NAME} is replaced: never for a tree that somebody else wrote.

    Raises:
        ConfigError: as `load_config`.
    """
    mistakes: list[str] = []
    given = dict(_apply_override(tree, override) for override in overrides)
    if environment:
        tree = _expand_environment(tree, "", mistakes)
    try:
        config = Config.model_validate(tree)
    except ValidationError as error:
        mistakes += [_explain(dict(item)) for item in error.errors()]
    if mistakes:
        raise ConfigError("\n".join(f"{_blamed(mistake, given) or source}: {mistake}" for mistake in mistakes))
    return _with_absolute_paths(config)


def dump_config(config: Config) -> str:
    """The config as YAML that `load_config` reads back to an equal `Config`."""
    return dump_yaml(config.model_dump())


def _blamed(mistake: str, given: dict[str, str]) -> str | None:
    """The `--set` that a mistake comes from, if any: it names its key."""
    for key, override in given.items():
        if re.search(rf"(?<![\w.]){re.escape(key)}(?!\w)", mistake):
            return f"--set {override}"
    return None


def _apply_override(tree: dict[str, Any], override: str) -> tuple[str, str]:
    """Put `section.key=value` into the tree; returns the key and the override."""
    dotted, equals, value = override.partition("=")
    keys = dotted.strip().split(".")
    if not equals or len(keys) < 2 or not all(keys):
        raise ConfigError(f"--set {override}: expected section.key=value, for example --set training.lr=3e-3")
    at = tree
    for key in keys[:-1]:
        inner = at.setdefault(key, {})
        if not isinstance(inner, dict):
            raise ConfigError(f"--set {override}: {key} is not a section")
        at = inner
    at[keys[-1]] = parse_yaml(value, f"--set {override}")
    return ".".join(keys), override


def _expand_environment(value: Any, where: str, mistakes: list[str]) -> Any:
    """Replace every ${NAME} in the texts of the tree."""
    if isinstance(value, dict):
        return {
            key: _expand_environment(item, f"{where}.{_printable(str(key))}".lstrip("."), mistakes)
            for key, item in value.items()
        }
    if isinstance(value, list):
        return [_expand_environment(item, f"{where}[{i}]", mistakes) for i, item in enumerate(value)]
    if not isinstance(value, str):
        return value

    def lookup(match: re.Match[str]) -> str:
        name = match[1]
        if name not in os.environ:
            mistakes.append(f"{where}: the environment variable {name} is not set; set it or write the path")
        return os.environ.get(name, "")

    return re.sub(r"\$\{(\w+)\}", lookup, value)


def _explain(error: dict[str, Any]) -> str:
    """One pydantic error as one line in the user's words."""
    location = [_printable(str(part)) for part in error["loc"] if part != "[key]"]  # pydantic's mark of a map's key
    where = ".".join(location)
    found = repr(error.get("input"))
    found = found if len(found) <= 60 else found[:57] + "..."
    match error["type"]:
        case "extra_forbidden":
            return f"{where}: unknown key; {_nearest(location)}"
        case "missing":
            return f"{where}: missing; it has no default"
        case "value_error":
            return str(error["ctx"]["error"])
        case "bool_type":
            return f"{where}: expected true or false, found {found}"
        case "model_type" | "model_attributes_type":
            return f"{where}: expected a section with keys, found {found}"
        case "string_type" if location[-1].endswith("_split_path"):
            return (
                f"{where}: expected the path that data.dataset_class_path is built with, found {found}; a dataset is "
                "named by its class or a function that returns it, not given itself"
            )
        case "literal_error":
            return f"{where}: expected {error['ctx']['expected']}, found {found}"
        case _:
            return f"{where}: {error['msg'][0].lower()}{error['msg'][1:]}, found {found}"


def _printable(key: str) -> str:
    return key if key.isprintable() else repr(key)


def _nearest(location: list[str]) -> str:
    """The known key closest to an unknown one: in its own section first, else anywhere."""
    *section, key = location
    everywhere = all_keys()
    here = [
        name for name in (everywhere if section else Config.model_fields) if not section or name.startswith(section[0])
    ]
    for names, cutoff in ((here, 0.5), (everywhere, 0.8)):  # elsewhere only what is nearly the same
        candidates = {name.split(".")[-1]: name for name in names}
        close = difflib.get_close_matches(key, candidates, n=1, cutoff=cutoff)
        if close:
            return f"did you mean {candidates[close[0]]}?"
    known = [name.split(".")[-1] for name in here]
    return f"known here: {', '.join(known)}"


def all_keys() -> dict[str, Any]:
    """`section.key` -> pydantic's FieldInfo, in the order of the code."""
    return {
        f"{section}.{key}": info
        for section, outer in Config.model_fields.items()
        for key, info in _section_class(outer).model_fields.items()
    }


def known_keys(tree: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The part of another version's config that this version knows, and the names of the keys that it does not."""
    known, kept, unknown = all_keys(), {}, []
    for section, values in tree.items():
        if not isinstance(values, Mapping):
            kept[section] = values  # a mistake, which is reported when the config is built
            continue
        gone = [key for key in values if f"{section}.{key}" not in known]
        unknown += [f"{section}.{key}" for key in gone]
        if section in Config.model_fields:
            kept[section] = {key: value for key, value in values.items() if key not in gone}
    return kept, unknown


def _section_class(info: Any) -> type[Section]:
    annotation: type[Section] = info.annotation or get_args(info)[0]
    return annotation


def _with_absolute_paths(config: Config) -> Config:
    data, model, training = config.data, config.model, config.training
    return config.model_copy(
        update={
            "data": data.model_copy(
                update={
                    "train_split_path": _absolute(data.train_split_path),
                    "val_split_path": _absolute(data.val_split_path),
                    "calibration_split_path": data.calibration_split_path and _absolute(data.calibration_split_path),
                }
            ),
            "cache": config.cache.model_copy(update={"dir": _absolute(config.cache.dir)}),
            "model": model.model_copy(
                update={
                    "llm_name_or_path": _absolute_if_folder(model.llm_name_or_path),
                    "vision_encoder_name": _absolute_local_dir(model.vision_encoder_name),
                    "vision_weights": model.vision_weights and _absolute(model.vision_weights),
                }
            ),
            "training": training.model_copy(update={"init_from": training.init_from and _absolute(training.init_from)}),
            "output": config.output.model_copy(update={"output_dir": _absolute(config.output.output_dir)}),
        }
    )


def _absolute(path: str) -> str:
    return path if "://" in path else os.path.abspath(os.path.expanduser(path))


def _absolute_if_folder(name: str) -> str:
    """A hub name such as `HuggingFaceTB/SmolLM2-135M` looks like a relative path: only an existing folder, or a name
    that is clearly a path, counts as one.
    """
    is_path = name.startswith((".", "~", "/")) or os.path.isdir(name)
    return _absolute(name) if is_path else name


def _absolute_local_dir(name: str) -> str:
    prefix = "local-dir:"
    return prefix + _absolute(name.removeprefix(prefix)) if name.startswith(prefix) else name
