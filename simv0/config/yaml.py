"""YAML without its traps: what a user writes is what the program reads.

YAML 1.1 as PyYAML reads it turns `no` into false, `1e-4` into text and `010` into 8, keeps the last of two equal keys
and expands aliases without bound. This loader follows the core schema of YAML 1.2 for scalars and refuses the rest.
"""

import math
import re
from typing import Any

import yaml

from simv0.errors import ConfigError

MAX_BYTES = 1 << 20
MAX_DEPTH = 16

_SCALARS = {
    "tag:yaml.org,2002:null": (r"^(?:~|null|Null|NULL|)$", ["~", "n", "N", ""]),
    "tag:yaml.org,2002:bool": (r"^(?:true|True|TRUE|false|False|FALSE)$", list("tTfF")),
    "tag:yaml.org,2002:int": (r"^[-+]?[0-9]+$", list("-+0123456789")),
    "tag:yaml.org,2002:float": (
        r"^(?:[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$",
        list("-+.0123456789"),
    ),
}


def _error(problem: str, mark: Any) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=problem, problem_mark=mark)


class _Loader(yaml.SafeLoader):
    depth = 0
    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012

    def compose_node(self, parent: Any, index: Any) -> Any:
        event: Any = self.peek_event()  # type: ignore[no-untyped-call]
        if isinstance(event, yaml.AliasEvent):
            raise _error("aliases (*name) are not supported", event.start_mark)
        if event.tag is not None:  # !!int [1] and the like fail in ways of their own
            raise _error("tags (!name) are not supported", event.start_mark)
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise _error(f"nested deeper than {MAX_DEPTH}", event.start_mark)
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if key.tag != "tag:yaml.org,2002:str":
                raise _error(f"the key {key.value!r} is not text; quote it", key.start_mark)
            if key.value in seen:
                raise _error(f"the key {key.value!r} appears twice here", key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)

    def construct_yaml_int(self, node: Any) -> int:
        return int(node.value)  # 010 is ten

    def construct_yaml_float(self, node: Any) -> float:
        value = float(node.value.lower().replace(".inf", "inf").replace(".nan", "nan"))
        if not math.isfinite(value):
            raise _error(f"{node.value} is not a finite number", node.start_mark)
        return value


class _Dumper(yaml.SafeDumper):
    """Quotes what `_Loader` would read as something else than text."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012


for _tag, (_pattern, _first) in _SCALARS.items():
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(_tag, re.compile(_pattern), _first)
_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_yaml_int)
_Loader.add_constructor("tag:yaml.org,2002:float", _Loader.construct_yaml_float)


def parse_yaml(text: str, source: str) -> Any:
    """Parse one YAML document into plain values.

    Raises:
        ConfigError: not YAML, larger than 1 MiB, nested deeper than 16, duplicate or non-text keys, aliases, tags that
            name types, numbers that are not finite. The message starts with `source` and the line.
    """
    if len(text.encode("utf-8", "replace")) > MAX_BYTES:
        raise ConfigError(f"{source}: larger than {MAX_BYTES} bytes; a config should be about a page long")
    try:
        return yaml.load(text, _Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f" line {mark.line + 1}" if mark else ""
        raise ConfigError(f"{source}:{where} {_one_line(error.problem or str(error))}") from None
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError(f"{source}: not YAML: {_one_line(str(error))}") from None


def dump_yaml(value: Any) -> str:
    """The inverse of `parse_yaml`, keys in the order given."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, width=120)


def _one_line(text: str) -> str:
    return " ".join(text.split())
