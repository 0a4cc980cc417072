"""Work in threads beside the GPU's: the next item is read and the last one written meanwhile.

    with OneBehind(in_thread=True) as writing:
        for item, read in zip(items, read_ahead(items, load, in_thread=True)):
            result = compute(read())         # on the GPU
            writing.start(partial(write, item, result))

At most one item is read ahead and one is still being written, so that memory stays flat. With
`in_thread=False` the same lines run one after the other. `map_in_threads` is for what a GPU has no
part in.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from types import TracebackType
from typing import Generic, TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")

MOST_THREADS = 4  # each holds the volumes of a case


def map_in_threads(function: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
    """Compute a function of each item, several at once, and list the results in order.

    As many threads are taken as torch has on the CPU (OMP_NUM_THREADS, `threads`), up to four. Only
    functions that spend their time in numpy and the like gain by it.
    """
    n_threads = min(MOST_THREADS, torch.get_num_threads(), len(items))
    if n_threads < 2:
        return [function(item) for item in items]
    with ThreadPoolExecutor(n_threads) as threads:
        return list(threads.map(function, items))


class _Task(Generic[Result]):
    """A function that runs in a thread of its own.

    The thread does not keep the process alive: after Ctrl-C nobody needs what it reads.
    """

    def __init__(self, function: Callable[[], Result]) -> None:
        self._function: Callable[[], Result] | None = function
        self._result: Result | None = None
        self._error: BaseException | None = None
        # Signals end the wait for an event, which not all versions of Python do for a thread.
        self._has_ended = threading.Event()
        threading.Thread(target=self._run, daemon=True).start()

    def wait(self) -> None:
        """Return when the function has ended, by an error or not."""
        self._has_ended.wait()

    def result(self) -> Result:
        """Return what the function gave, once and for all, or raise its error."""
        self.wait()
        if self._error is not None:
            raise self._error
        # Not kept, since the next item may already be read.
        result, self._result = self._result, None
        return result  # type: ignore[return-value]

    def _run(self) -> None:
        assert self._function is not None
        try:
            self._result = self._function()
        except BaseException as error:  # raised again by `result`, in the thread that asks
            self._error = error
        finally:
            self._function = None  # with all that it holds
            self._has_ended.set()


def read_ahead(
    items: Iterable[Item], read: Callable[[Item], Result], *, in_thread: bool
) -> Iterator[Callable[[], Result]]:
    """Yield, for each item, a function that gives `read(item)`, once, or raises its error.

    Args:
        items: Items in order.
        read: Function of one item.
        in_thread: Whether an item is read in a thread while the caller works on the one before;
            otherwise it is read when the caller asks.
    """
    if not in_thread:
        for item in items:
            yield partial(read, item)
        return
    task: _Task[Result] | None = None
    for item in items:
        if task is None:
            task = _Task(partial(read, item))
            continue
        task.wait()
        following = _Task(partial(read, item))
        yield task.result
        # Only now, so that the caller is done with the one before.
        task = following
    if task is not None:
        yield task.result


class OneBehind:
    """Runs functions one after the other in a thread, while the caller goes on with the next item.

    At the end of the block the last one has ended, so that what it writes is whole. An error of a
    function is raised by the next call, or at the end of the block.

    Args:
        in_thread: Otherwise each function runs when it is given.
    """

    def __init__(self, *, in_thread: bool) -> None:
        self._in_thread = in_thread
        self._task: _Task[None] | None = None

    def start(self, function: Callable[[], None]) -> None:
        """Wait for the function before, and start this one."""
        self._finish()
        if self._in_thread:
            self._task = _Task(function)
        else:
            function()

    def _finish(self) -> None:
        task = self._task
        if task is not None:
            task.wait()
            self._task = None
            task.result()

    def __enter__(self) -> OneBehind:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error is None:
            self._finish()
        elif self._task is not None:
            self._task.wait()
