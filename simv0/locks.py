"""Locks that end with the process that took them: `flock`ed descriptors which no forked child keeps."""

import os

_held: set[int] = set()


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


os.register_at_fork(after_in_child=_forget)
