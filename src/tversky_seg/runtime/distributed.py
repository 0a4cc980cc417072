"""Several processes that train one network: who they are, who writes, and how they share work (docs/cluster.md)."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous
from torch.nn.parallel import DistributedDataParallel

logger = logging.getLogger("tversky_seg")
LONGEST_WAIT = timedelta(
    hours=6
)  # for the first process to prepare the data; a process that ends is noticed at once
CONNECT_WITHIN, N_TRIES = timedelta(seconds=60), 3
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
Item = TypeVar("Item")


class LostProcess(RuntimeError):
    """Another process of the run has ended; what it said is the cause."""


@contextmanager
def process_group() -> Iterator[None]:
    """Join the other processes where torchrun started this one; alone, nothing happens.

    Raises:
        LostProcess: Instead of what the network says when another process has ended.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or not dist.is_torchelastic_launched():
        yield
        return
    _connect()
    try:
        yield
    except RuntimeError as fault:
        if "gloo" in str(fault) or isinstance(fault, dist.DistBackendError | dist.DistNetworkError):
            cause = "it lost another process"
            raise LostProcess(
                f"process {rank()}: {cause}; the line that one printed says why"
            ) from fault
        raise
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def _connect() -> None:
    """Meet the others; each try has a minute, since gloo waits for an address that no longer answers.

    After a restart torchrun's store still holds the addresses of the processes before: names in it count the restarts.

    Raises:
        LostProcess: When no try brought all together.
    """
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    meeting_point, number, size = next(rendezvous("env://"))
    restart = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    for attempt in range(N_TRIES):
        store = PrefixStore(f"restart{restart}/try{attempt}", meeting_point)
        store.set_timeout(CONNECT_WITHIN)
        try:
            dist.init_process_group(
                backend, store=store, rank=number, world_size=size, timeout=CONNECT_WITHIN
            )
        except RuntimeError as fault:
            if dist.is_initialized():
                dist.destroy_process_group()
            cause = str(fault).splitlines()[0]
            logger.warning(
                "process %d: try %d of %d to meet the others failed: %s",
                number,
                attempt + 1,
                N_TRIES,
                cause,
            )
            continue
        dist.distributed_c10d._set_pg_timeout(LONGEST_WAIT)
        return
    raise LostProcess(
        f"process {number}: the {size} processes did not meet in {N_TRIES} tries; start the command again"
    )


def rank() -> int:
    """Number of this process, from 0."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def world_size() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def is_first() -> bool:
    """Whether this is the one process that writes and speaks."""
    return rank() == 0


def wait_for_all() -> None:
    """Return when every process has come here."""
    if world_size() > 1:
        dist.all_reduce(torch.zeros(1))  # a barrier through the host: it may take long


@contextmanager
def rank_zero_first() -> Iterator[None]:
    """Let the first process do alone what the others then find done: data that are made, prepared, written."""
    if not is_first():
        wait_for_all()
    yield
    if is_first():
        wait_for_all()


def any_process(condition: bool) -> bool:
    """Whether it holds in one of the processes; all of them get the same answer."""
    if world_size() == 1:
        return condition
    flag = torch.tensor([float(condition)])
    dist.all_reduce(flag, op=dist.ReduceOp.MAX)
    return bool(flag.item())


def all_gather_list(items: Sequence[Item]) -> list[Item]:
    """The items of all processes, in the order of the processes."""
    if world_size() == 1:
        return list(items)
    of_all: list[Any] = [None] * world_size()
    dist.all_gather_object(of_all, list(items))
    return [item for items_of_one in of_all for item in items_of_one]


def map_over_ranks(items: Sequence[Item], compute: Callable[[Item], Tensor]) -> Iterator[Tensor]:
    """The results of all items in order, in every process, though each computes only every n-th of them.

    Args:
        items: The same in every process.
        compute: Makes a tensor on the CPU from an item; its number of axes and type are those of every result.
    """
    for first in range(0, len(items), world_size()):
        together = items[first : first + world_size()]
        mine = compute(together[rank()]) if rank() < len(together) else None
        for source in range(len(together)):
            yield _broadcast(mine if source == rank() else None, source=source)


def _broadcast(result: Tensor | None, *, source: int) -> Tensor:
    if world_size() == 1:
        assert result is not None
        return result
    facts: list[Any] = [None if result is None else (tuple(result.shape), result.dtype)]
    dist.broadcast_object_list(facts, src=source)
    shape, dtype = facts[0]
    result = torch.empty(shape, dtype=dtype) if result is None else result.contiguous()
    dist.broadcast(result, src=source)
    return result


def run_sharded(work: Callable[[Sequence[Item]], Any], items: Sequence[Item]) -> Any:
    """Work that leaves files and skips what is there: each process does its share, then the first goes over all.

    Returns:
        What `work` returns for all items, in the first process; elsewhere what it returns for its share.
    """
    if world_size() == 1:
        return work(items)
    of_share = work(items[rank() :: world_size()])
    wait_for_all()
    return work(items) if is_first() else of_share


def wrap_ddp(network: nn.Module, device: torch.device) -> nn.Module:
    """The network as all processes train it together: gradients are averaged over them.

    Batch norm takes its statistics from the global batch on CUDA, and from each process's share on the CPU (one
    warning): there the numbers depend on how many processes there are.
    """
    if world_size() == 1:
        return network
    if any(isinstance(module, BATCH_NORMS) for module in network.modules()):
        if device.type == "cuda":
            network = nn.SyncBatchNorm.convert_sync_batchnorm(network)  # type: ignore[no-untyped-call]
        elif is_first():
            logger.warning(
                "batch norm sees each process's share of the batch alone on the CPU; norm=group sees no batch"
            )
    return DistributedDataParallel(network, device_ids=[device] if device.type == "cuda" else None)


def no_sync_until_last(network: nn.Module, *, is_last: bool) -> AbstractContextManager[None]:
    """Within, gradients of a part of the batch are kept in each process, unless it is the last part."""
    if isinstance(network, DistributedDataParallel) and not is_last:
        return network.no_sync()
    return nullcontext()
