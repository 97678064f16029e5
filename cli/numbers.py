"""Numeric options of the command line."""

from simv0.errors import ConfigError


def check_number(option: str, value: float | None, what: str, at_most: float) -> None:
    """Refuse a number that is not above 0 and at most `at_most`; None means the option was not given.

    Raises:
        ConfigError: naming the option.
    """
    if value is not None and not 0 < value <= at_most:  # NaN is not either
        raise ConfigError(f"{option}: expected {what}, above 0 and at most {at_most:g}, found {value:g}")
