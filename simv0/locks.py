"""Locks that end with the process that took them: `flock`ed descriptors which no forked child keeps."""

import os

from simv0.errors import ConfigError

_held: set[int] = set()


def check_platform() -> None:
    """Refuse a system without `flock`.

    Raises:
        ConfigError: it is Windows.
    """
    try:
        import fcntl  # noqa: F401
    except ImportError:
        raise ConfigError("simv0 needs Linux or macOS (there is no fcntl here); on Windows, use WSL2") from None


def flock(descriptor: int, *, shared: bool = False, wait: bool = True) -> None:
    """Lock an open file.

    Raises:
        BlockingIOError: somebody else holds it, and `wait` is false.
        OSError: the file system has no locks.
        ConfigError: nor has the system.
    """
    check_platform()
    import fcntl

    fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB))


def hold(descriptor: int) -> None:
    """Remember a locked descriptor: a forked child closes it, since a loader's worker may outlive a killed parent."""
    _held.add(descriptor)


def let_go(descriptor: int) -> None:
    """Close the descriptor, and with it give the lock back."""
    _held.discard(descriptor)
    os.close(descriptor)


def _forget() -> None:
    for descriptor in _held:
        os.close(descriptor)
    _held.clear()


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_forget)
