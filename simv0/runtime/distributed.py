"""Several processes, one run: torchrun starts them, torch.distributed connects them, each works on its share.

With one process, every function here is a plain call and costs nothing. With several, all of them must call the same
functions in the same order; when one exits, so do the others.
"""

import logging
import os
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from itertools import chain
from typing import Any, ParamSpec, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from simv0.errors import TrainingError

log = logging.getLogger("simv0")

T = TypeVar("T")
P = ParamSpec("P")


def rank() -> int:
    """The number of this process, from 0; only the first one writes."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def world_size() -> int:
    """How many processes work on the run."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def processes() -> int:
    """How many processes torchrun has started, connected or not; 1 without torchrun."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def local_world_size() -> int:
    """How many processes torchrun has started on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def local_device() -> torch.device:
    """The GPU of this process (`LOCAL_RANK` counts them on a machine), or the CPU."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())


@contextmanager
def process_group() -> Iterator[None]:
    """Join the processes that torchrun has started (it sets `WORLD_SIZE`), for a `with` block; alone without it.

    Raises:
        TrainingError: the processes do not find each other; another one has ended before its work was done.
    """
    if processes() == 1 or dist.is_initialized():
        yield
        return
    device, level = local_device(), log.level
    if device.type == "cuda":
        torch.cuda.set_device(device)
    try:
        dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")
    except (ValueError, RuntimeError) as error:
        raise TrainingError(
            f"the {processes()} processes of WORLD_SIZE failed to connect ({str(error).splitlines()[0]}): "
            "start them with torchrun, or unset WORLD_SIZE"
        ) from error
    if rank() > 0:
        log.setLevel(logging.ERROR)  # the first one speaks for all
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, dist.DistError) and "gloo/transport" not in str(error):
            raise
        raise TrainingError(
            f"another of the {world_size()} processes exited (killed, out of memory?), so this one stops too: "
            "restart them (train: with --resume)"
        ) from error
    finally:
        log.setLevel(level)
    dist.destroy_process_group()  # not after an error: it can wait for ever for the ones that are gone


def first_to_fail() -> bool:
    """Whether no other process has failed yet: later failures are consequences, and one message is enough.

    Only torchrun can tell, since its store outlives the processes; True without it, and after it was killed.
    """
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return True
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    try:
        address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        socket.create_connection((address, port), timeout=10).close()  # a store that is gone: torch would wait for 20 s
        store = dist.TCPStore(address, port, is_master=False, timeout=timedelta(seconds=10))  # type: ignore[attr-defined]
        return bool(store.add(f"simv0/failed/{attempt}", 1) == 1)
    except (KeyError, OSError, RuntimeError):
        return True


def share_of(n: int) -> tuple[int, int]:
    """The rows start..stop-1 of `n` that are this process's; the shares differ by at most one row.

    Without rows (start == stop) `start` still names a row, a stand-in to compute on.
    """
    return rank() * n // world_size(), (rank() + 1) * n // world_size()


def broadcast_from_rank0(make: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call `make` in the first process, and return its result in every process."""
    if world_size() == 1:
        return make(*args, **kwargs)
    box = [make(*args, **kwargs) if rank() == 0 else None]
    dist.broadcast_object_list(box, 0)
    return box[0]  # type: ignore[return-value]


def check_same(facts: Mapping[str, Any]) -> None:
    """Refuse to join a run whose facts differ from the first process's: another machine may hold different files.

    Raises:
        TrainingError: naming what differs.
    """
    first = broadcast_from_rank0(dict, facts)
    differing = [name for name, fact in facts.items() if fact != first[name]]
    if differing:
        raise TrainingError(
            f"process {rank()} on {socket.gethostname()} differs from rank 0 in: {', '.join(differing)}; give "
            "every machine the same config and the same files"
        )


def gather_in_order(steps: Sequence[T]) -> list[T]:
    """Gather the items of every process (all have equally many), by step and then by rank: the order of the rows."""
    if world_size() == 1:
        return list(steps)
    gathered: list[Sequence[T]] = [[] for _ in range(world_size())]
    dist.all_gather_object(gathered, list(steps))
    return list(chain.from_iterable(zip(*gathered, strict=True)))


def summed(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors summed over the processes."""
    result = {name: tensor.clone() for name, tensor in tensors.items()}
    if world_size() > 1:
        for tensor in result.values():
            dist.all_reduce(tensor)
    return result


def any_rank(flag: bool) -> bool:
    """Whether the flag is set in any process."""
    if world_size() == 1:
        return flag
    flags = torch.tensor(int(flag))
    dist.all_reduce(flags)
    return bool(flags)


def whole_weights(sums: Mapping[str, tuple[Tensor, Tensor]]) -> Mapping[str, tuple[Tensor, Tensor]]:
    """`losses.loss_sums` with sum(w) over the whole batch instead of this process's share.

    The loss of a share is then its part of the batch's loss: losses and gradients add up over the processes, however
    unevenly weights and labels fall (a mean of the processes' means would not).
    """
    if world_size() == 1:
        return sums
    weights = torch.stack([weight.detach() for _, weight in sums.values()])
    dist.all_reduce(weights)
    return {head: (total, weight) for (head, (total, _)), weight in zip(sums.items(), weights, strict=True)}


def add_gradients(parameters: Sequence[nn.Parameter]) -> None:
    """Replace every gradient by its sum over the processes, in one message (a few MB: the frozen weights have none)."""
    if world_size() == 1:
        return
    gradients = [p.grad if p.grad is not None else torch.zeros_like(p) for p in parameters]
    flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
    dist.all_reduce(flat)
    for p, own in zip(parameters, torch.split(flat, [p.numel() for p in parameters]), strict=True):
        p.grad = own.view_as(p)


@torch.no_grad()
def broadcast_tensors(tensors: Mapping[str, Tensor]) -> None:
    """Overwrite the tensors with the first process's."""
    if world_size() > 1:
        for tensor in tensors.values():
            dist.broadcast(tensor, 0)


def shard_blocks(blocks: nn.ModuleList, device: torch.device) -> None:
    """Split the weights of every block over the processes; each is put together when it runs, then dropped (FSDP2)."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(device.type, (world_size(),))
    for block in blocks:
        fully_shard(block, mesh=mesh, reshard_after_forward=True)
