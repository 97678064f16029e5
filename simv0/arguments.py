"""Checks of what a program gives to a public class: one line that names the argument."""

from numbers import Real
from typing import Any

from simv0.errors import ConfigError


def require(holds: bool, name: str, expected: str, found: Any, remedy: str = "") -> None:
    """Refuse an argument that does not hold.

    Raises:
        ConfigError: it does not hold.
    """
    if not holds:
        raise ConfigError(f"{name}: expected {expected}, found {found!r:.60}{remedy}")


def is_number(value: Any) -> bool:
    """Whether it is a number of Python or numpy; a bool is none."""
    return isinstance(value, Real) and not isinstance(value, bool)
