"""Checks of the arguments of public classes: one line that names the argument."""

from numbers import Real
from typing import Any

from simv0.errors import ConfigError


def require(holds: bool, name: str, expected: str, found: Any, remedy: str = "") -> None:
    """Refuse an argument that is not as expected.

    Raises:
        ConfigError: naming the argument.
    """
    if not holds:
        raise ConfigError(f"{name}: expected {expected}, found {found!r:.60}{remedy}")


def is_number(value: Any) -> bool:
    """Whether this is a Python or numpy number; a bool does not count."""
    return isinstance(value, Real) and not isinstance(value, bool)
