"""Several processes that train one network: who writes, how work is shared (docs/cluster.md)."""

from __future__ import annotations

import gc
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

from tversky_seg.runtime.one_line import message_lines

logger = logging.getLogger("tversky_seg")
Item = TypeVar("Item")

CONNECT_TIMEOUT = timedelta(seconds=60)
N_TRIES = 3
STEP_TIMEOUT = timedelta(minutes=30)
"""Time that one process may be behind the others in a step or a validation case. The end of a
process is noticed at once; this is for one that hangs or was stopped."""

LONGEST_WAIT = timedelta(hours=6)
"""Time that the first process may need to prepare the data, or one to predict its share."""

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


# The group in which processes wait for a long time; None: the one in which they compute.
_waiting_group: dist.ProcessGroup | None = None


class LostProcess(RuntimeError):
    """Another process of the run has ended; its own message tells the cause."""


@contextmanager
def process_group() -> Iterator[None]:
    """Join the other processes if torchrun started this one; do nothing in a single process.

    Raises:
        LostProcess: Another process has ended; replaces what the network library says.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or not dist.is_torchelastic_launched():
        yield
        return
    global _waiting_group
    _waiting_group = _connect()
    try:
        yield
    except RuntimeError as error:
        if not _is_lost_connection(error):
            raise
        raise LostProcess(
            f"process {rank()}: another process ended or hangs; the line that one printed says why"
        ) from error
    finally:
        if dist.is_initialized():
            # DDP holds the group in a cycle. If that outlives this line, the threads of the group
            # end with the interpreter, which may abort the process.
            gc.collect()
            dist.destroy_process_group()
        _waiting_group = None


def _connect() -> dist.ProcessGroup:
    """Meet the other processes, in several short tries.

    A try has a minute, because gloo waits for an address that no longer answers.

    Returns:
        A second group of all processes, in which they may wait for a long time.

    Raises:
        LostProcess: No try brought all processes together.
    """
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    meeting_point, process, n_processes = next(rendezvous("env://"))
    # After a restart torchrun's store still holds the addresses of the processes before, so
    # every restart and every try has names of its own in it.
    restart = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    for attempt in range(1, N_TRIES + 1):
        store = PrefixStore(f"restart{restart}/try{attempt}", meeting_point)
        store.set_timeout(CONNECT_TIMEOUT)
        try:
            dist.init_process_group(
                backend, store=store, rank=process, world_size=n_processes, timeout=CONNECT_TIMEOUT
            )
        except RuntimeError as error:
            if dist.is_initialized():
                dist.destroy_process_group()
            logger.warning(
                "process %d: try %d of %d to meet the others failed: %s",
                process,
                attempt,
                N_TRIES,
                message_lines(error)[0],
            )
            continue
        _set_timeout(STEP_TIMEOUT)
        waiting_group: dist.ProcessGroup = dist.new_group(backend="gloo", timeout=LONGEST_WAIT)
        return waiting_group
    raise LostProcess(
        f"process {process}: the {n_processes} processes did not meet in {N_TRIES} tries; "
        "run the same command again"
    )


def _set_timeout(timeout: timedelta) -> None:
    """Set the time that collectives may take from now on.

    The one private interface of torch.distributed in use: `init_process_group` has a single timeout
    for connecting and for all that follows.
    """
    dist.distributed_c10d._set_pg_timeout(timeout)


def _is_lost_connection(error: RuntimeError) -> bool:
    """Tell the end of another process from other errors; gloo has no exception of its own."""
    if isinstance(error, dist.DistBackendError | dist.DistNetworkError):
        return True
    return "gloo" in str(error)


def rank() -> int:
    """Return the number of this process, from 0."""
    return dist.get_rank() if _is_grouped() else 0


def world_size() -> int:
    """Return how many processes train together."""
    return dist.get_world_size() if _is_grouped() else 1


def is_first() -> bool:
    """Tell whether this is the one process that writes files and log lines."""
    return rank() == 0


def wait_for_all() -> None:
    """Return when every process has come here."""
    if world_size() > 1:
        # A reduction on the host is a barrier, too, and one that NCCL's watchdog does not end.
        dist.all_reduce(torch.zeros(1), group=_waiting_group)


@contextmanager
def rank_zero_first() -> Iterator[None]:
    """Let the first process alone make what the others then find ready: data, caches, folders."""
    if not is_first():
        wait_for_all()
    yield
    if is_first():
        wait_for_all()


def any_process(condition: bool) -> bool:
    """Tell whether a condition holds in any process; all of them get the same answer."""
    if world_size() == 1:
        return condition
    # On the host, so that a GPU need not finish its work first.
    flag = torch.tensor([float(condition)])
    dist.all_reduce(flag, op=dist.ReduceOp.MAX)
    return bool(flag.item())


def all_gather_list(items: Sequence[Item]) -> list[Item]:
    """Join the lists of all processes, in the order of the processes."""
    if world_size() == 1:
        return list(items)
    lists: list[Any] = [None] * world_size()
    dist.all_gather_object(lists, list(items))
    joined = []
    for items_of_process in lists:
        joined.extend(items_of_process)
    return joined


def map_over_ranks(items: Sequence[Item], compute: Callable[[Item], Tensor]) -> Iterator[Tensor]:
    """Yield the results of all items in order, in every process.

    Each process computes every n-th result and broadcasts it: with two processes, the first
    computes items 0, 2, 4 and the second items 1, 3, 5.

    Args:
        items: The same items in every process.
        compute: Function from an item to a tensor on the CPU. All results have the same number of
            axes and the same type.
    """
    for first in range(0, len(items), world_size()):
        round_of_items = items[first : first + world_size()]
        own_result = None
        if rank() < len(round_of_items):
            own_result = compute(round_of_items[rank()])
        for source in range(len(round_of_items)):
            yield _broadcast(own_result, source=source)


def _broadcast(own_result: Tensor | None, *, source: int) -> Tensor:
    """Return the result of the process `source`, in every process."""
    if world_size() == 1:
        assert own_result is not None
        return own_result
    is_source = rank() == source
    # The receivers must know the shape before they can receive.
    header: list[Any] = [None]
    if is_source:
        assert own_result is not None
        header = [(tuple(own_result.shape), own_result.dtype)]
    dist.broadcast_object_list(header, src=source)
    if is_source:
        assert own_result is not None
        result = own_result.contiguous()
    else:
        shape, dtype = header[0]
        result = torch.empty(shape, dtype=dtype)
    dist.broadcast(result, src=source)
    return result


def run_sharded(work: Callable[[Sequence[Item]], Any], items: Sequence[Item]) -> Any:
    """Run file-producing, resumable work in parallel.

    Each process does its share; then the first one goes over all items, which finds the files of
    the others ready and completes the list.

    Returns:
        The result of `work` for all items in the first process, for its share in the others.
    """
    if world_size() == 1:
        return work(items)
    result_of_share = work(items[rank() :: world_size()])
    wait_for_all()
    return work(items) if is_first() else result_of_share


def wrap_ddp(network: nn.Module, device: torch.device) -> nn.Module:
    """Wrap a network so that all processes train it together: gradients are averaged over them.

    Batch norm takes its statistics from the global batch on CUDA. On the CPU it takes them from
    each process's share, with one warning: there the numbers depend on the number of processes.
    """
    if world_size() == 1:
        return network
    has_batch_norm = any(isinstance(module, BATCH_NORMS) for module in network.modules())
    if device.type == "cuda":
        if has_batch_norm:
            convert = nn.SyncBatchNorm.convert_sync_batchnorm
            network = convert(network)  # type: ignore[no-untyped-call]
        return DistributedDataParallel(network, device_ids=[device])
    if has_batch_norm and is_first():
        logger.warning(
            "on the CPU batch norm sees each process's share of the batch alone; "
            "norm=group does not depend on the batch"
        )
    return DistributedDataParallel(network)


def no_sync_until_last(network: nn.Module, *, is_last: bool) -> AbstractContextManager[None]:
    """Exchange gradients between processes only after the last part of a batch."""
    if isinstance(network, DistributedDataParallel) and not is_last:
        return network.no_sync()
    return nullcontext()


def _is_grouped() -> bool:
    return dist.is_available() and dist.is_initialized()
