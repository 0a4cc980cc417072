"""The outcome of a step, which a GPU may still be computing when the host goes on."""

from __future__ import annotations

import time

import torch
from torch import Tensor


class StepResult:
    """Loss of one optimiser update, whether it was skipped, and the seconds that it took.

    On a GPU the numbers are still on their way to the host when the result is made. Reading one of
    them waits for this step, but not for work that was given to the GPU later: a loop that reads
    the result of step k after it has started step k + 1 never lets the GPU wait.

    Args:
        loss: Loss of the step, a scalar on its device.
        is_skipped: Whether the gradient was not finite, so that the weights stayed as they were; a
            boolean scalar on that device.
        start: Moment at which the step began; see `mark_time`.
    """

    def __init__(
        self, loss: Tensor, is_skipped: Tensor, *, start: float | torch.cuda.Event
    ) -> None:
        numbers = torch.stack([loss, is_skipped.to(loss.dtype)])
        # The host does not wait for a copy into pinned memory.
        is_pinned = loss.device.type != "cpu"
        self._numbers = torch.empty(2, dtype=loss.dtype, pin_memory=is_pinned)
        self._numbers.copy_(numbers, non_blocking=True)
        self._start = start
        self._end = mark_time(loss.device)

    @property
    def is_late(self) -> bool:
        """Whether reading a value may have to wait."""
        return not isinstance(self._end, float)

    @property
    def loss(self) -> float:
        """Loss of the step; NaN or infinite where that is why it was skipped."""
        self._wait()
        return float(self._numbers[0])

    @property
    def is_skipped(self) -> bool:
        """Whether the gradient was not finite, so that the weights stayed as they were."""
        self._wait()
        return bool(self._numbers[1])

    @property
    def seconds(self) -> float:
        """Time of the step, by the clock of its device."""
        self._wait()
        if isinstance(self._start, torch.cuda.Event) and isinstance(self._end, torch.cuda.Event):
            return float(self._start.elapsed_time(self._end)) / 1000
        assert isinstance(self._start, float)
        assert isinstance(self._end, float)
        return self._end - self._start

    def _wait(self) -> None:
        """Wait until the numbers are on the host."""
        if isinstance(self._end, torch.cuda.Event):
            self._end.synchronize()


def mark_time(device: torch.device) -> float | torch.cuda.Event:
    """Mark a moment: on the host's clock for the CPU, in the stream of work for a GPU."""
    if device.type == "cpu":
        return time.perf_counter()
    moment = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    moment.record(torch.cuda.current_stream(device))
    return moment
