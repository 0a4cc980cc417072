"""Fusion of window predictions: their weighted mean, in as much memory as is free."""

from __future__ import annotations

import copy
import itertools
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tversky_seg.inference.tta import View
from tversky_seg.inference.window_memory import is_room_for, to_gpu, to_host, windows_at_once
from tversky_seg.inference.window_sums import Box, Sides, add_weights, sum_of_weights
from tversky_seg.runtime.devices import (
    autocast,
    image_to_device,
    is_out_of_memory,
    to_device,
    without_trials,
)

logger = logging.getLogger("tversky_seg")

CPU = torch.device("cpu")

SLAB = 16  # planes whose weights are summed at once
SLAB_VOXELS = 2**24  # the same on a GPU, where each slab costs a launch for each window


@dataclass(frozen=True, eq=False)
class WindowGrid:
    """Windows on a volume.

    Attributes:
        corners: First voxel of each window.
        weights: (x, y, z) float32 weights of a window's voxels.
        views: Axes that each view of a window mirrors.
    """

    corners: Sequence[Sides]
    weights: Tensor
    views: Sequence[View]

    def passes(self) -> list[tuple[Box, View]]:
        """List the passes through the network; the views of a window follow each other."""
        boxes = [_box(corner, self.weights.shape) for corner in self.corners]
        return list(itertools.product(boxes, self.views))


@dataclass(frozen=True, eq=False)
class WindowNetwork:
    """A network on its device, ready to take windows of a volume.

    Attributes:
        network: Module (B, C, x, y, z) -> logits (B, K, x, y, z), in eval mode.
        scale: (C, 1, 1, 1) float32 factors of its input.
        device: Device of the network.
        precision: "fp32", "tf32", "bf16" or "fp16" inside the network.
    """

    network: nn.Module
    scale: Tensor
    device: torch.device
    precision: str

    @torch.inference_mode()
    def probabilities(self, windows: Tensor) -> Tensor:
        """Predict windows (B, C, x, y, z) that are scaled and mirrored already, within `autocast`.

        Returns:
            (B, K, x, y, z) float32 on the network's device.

        Raises:
            ValueError: The network changes the sides of the window.
        """
        logits: Tensor = self.network(image_to_device(windows, self.device))
        if logits.ndim != 5 or logits.shape[2:] != windows.shape[2:]:
            raise ValueError(
                f"the network made {tuple(logits.shape)} of {tuple(windows.shape)}; "
                "expected equal sides"
            )
        # In float32 whatever the network computes in, so that sums and thresholds are exact.
        return logits.float().sigmoid()

    def on_the_host(self) -> WindowNetwork:
        """Copy the network to the host; the one on the device stays as it is.

        It computes in float32 there, since autocast is that of the device: CPUs are slow in
        float16, or know no convolution of it.
        """
        # deepcopy takes what the memo holds: so no weight is copied on the full device.
        memo: dict[int, Tensor] = {}
        for parameter in self.network.parameters():
            on_cpu = parameter.detach().cpu()
            memo[id(parameter)] = nn.Parameter(on_cpu, requires_grad=False)
        for buffer in self.network.buffers():
            memo[id(buffer)] = buffer.detach().cpu()
        network = to_device(copy.deepcopy(self.network, memo), CPU)
        return WindowNetwork(network, self.scale, CPU, "fp32")


def fuse(
    network: WindowNetwork,
    volume: Tensor,
    grid: WindowGrid,
    *,
    batch_size: int | str,
    into: Tensor | None = None,
    share: float = 1.0,
    may_leave_device: bool = True,
) -> Tensor:
    """Average over windows and views, weighted; 0 where there is no window.

    Args:
        network: Network on its device.
        volume: (C, X, Y, Z) on the host, at least as large as a window.
        grid: Windows on the volume.
        batch_size: Number of windows, or views of them, that pass the network together; "auto": as
            many as the free memory suggests, see `window_memory.windows_at_once`.
        into: (K, X, Y, Z) float32 on the CPU to add to, for a network on the CPU. Then each window
            is normalised before it is added; otherwise the total is normalised once at the end.
        share: Weight of this network in `into`.
        may_leave_device: Whether a copy of the network goes on on the host if not even one window
            fits into the device's memory; otherwise that is an error.

    Returns:
        (K, X, Y, Z) float32 on the CPU, in [0, 1]; `into` if that is given.

    Raises:
        ValueError: The network gives NaN.
    """
    fusion = _Fusion(
        network,
        volume,
        grid,
        batch_size=batch_size,
        into=into,
        share=share,
        may_leave_device=may_leave_device,
    )
    # Once around all windows: within it the weights are cast to 16 bits once.
    with torch.no_grad(), autocast(network.device, network.precision), without_trials():
        total = fusion.run()
    # The sum of all voxels is NaN if one is, and needs no second volume. Looked at only after the
    # copy, so that a GPU is waited for once.
    is_finite = torch.isfinite(total.sum())
    probability = to_host(total.clamp_(0, 1))
    if not is_finite:
        raise ValueError("the network gave NaN; expected finite logits")
    return probability


class _Fusion:
    """Running sum over windows and views; it moves to the host when the device's memory is full.

    Nothing here waits for a GPU: it gets the work of all windows in one go.
    """

    def __init__(
        self,
        network: WindowNetwork,
        volume: Tensor,
        grid: WindowGrid,
        *,
        batch_size: int | str,
        into: Tensor | None,
        share: float,
        may_leave_device: bool,
    ) -> None:
        self.network = network
        self.volume = volume
        self.scale = network.scale
        self.weights = grid.weights
        self.corners = grid.corners
        self.n_views = len(grid.views)
        self.passes = grid.passes()
        self.batch_size = windows_at_once(
            batch_size, len(self.passes), grid.weights.shape, network.device
        )
        self.windows: Tensor | None = None  # of a batch, made once and filled again
        self.total = into
        self.is_added_to = into is not None
        self.share = share
        self.may_leave_device = may_leave_device
        self.device = network.device  # of volume and sums, until memory runs out
        self.n_done = 0  # passes that are in the total
        self.n_normalised = 0  # planes
        self.factor_box: Box | None = None
        self.factor = grid.weights
        self.has_warned = False

    def run(self) -> Tensor:
        """Add all windows up and normalise them."""
        # The volume and at least one class of sums; asked before, since to fail takes long.
        n_voxels = self.volume[0].numel()
        if not is_room_for(2 * self.volume.nbytes + 4 * n_voxels, self.device):
            self.device = CPU
        self._retry(self._move)
        while self.n_done < len(self.passes):
            self._retry(self._add_batch)
        self.windows = None
        if not self.is_added_to:
            self._retry(self._normalise)
        assert self.total is not None
        return self.total

    def _retry(self, step: Callable[[], None]) -> None:
        """Take a step; if memory runs out, make room and take the rest of it again."""
        while True:
            try:
                step()
                return
            except Exception as error:
                if not is_out_of_memory(error) or not self._can_make_room():
                    raise
            # Here and not above, since the error keeps the tensors of the failed step alive.
            self._make_room()

    def _can_make_room(self) -> bool:
        if self.batch_size > 1 or self.device.type != "cpu":
            return True
        return self.network.device.type != "cpu" and self.may_leave_device

    def _make_room(self) -> None:
        """Halve the batch; then move volume and sums to the host, and at last the network too."""
        device = self.network.device
        self.windows = None
        if self.batch_size > 1:
            self.batch_size //= 2
        elif self.device.type != "cpu":
            self.device = CPU
            self._move()
        else:
            self.network = self.network.on_the_host()
        if device.type == "cuda":
            torch.cuda.empty_cache()  # cuDNN's own memory does not come from torch's cache
        if not self.has_warned:
            logger.warning(
                "out of memory on %s: fewer windows at once, on the host if need be", device
            )
            self.has_warned = True

    def _move(self) -> None:
        self.volume = _moved(self.volume, self.device)
        if self.device.type == "cuda":
            # Channels last, as the windows: so each is cut out in long runs.
            self.volume = self.volume[None].contiguous(memory_format=torch.channels_last_3d)[0]
        self.scale = _moved(self.scale, self.device)
        self.weights = _moved(self.weights, self.device)
        if self.total is not None and not self.is_added_to:
            self.total = _moved(self.total, self.device)

    def _add_batch(self) -> None:
        batch = self.passes[self.n_done : self.n_done + self.batch_size]
        probabilities = self.network.probabilities(self._gather(batch))
        # Only now is the number of classes known.
        if self.total is None:
            shape = (probabilities.shape[1], *self.volume.shape[1:])
            self.total = torch.zeros(shape, device=self.volume.device)
        for (box, view), probability in zip(batch, probabilities, strict=True):
            factor = self._factor_of(box)
            probability = _mirror(_moved(probability, self.total.device), view)
            # In place and last, so that a window whose memory runs out is not added twice.
            self.total[:, *box].addcmul_(probability, factor)
            self.n_done += 1

    def _gather(self, batch: Sequence[tuple[Box, View]]) -> Tensor:
        """Cut windows (B, C, x, y, z) out of the volume, scaled and mirrored, on its device."""
        if self.windows is None:
            shape = (self.batch_size, len(self.volume), *self.weights.shape)
            self.windows = torch.empty(
                shape, device=self.volume.device, memory_format=torch.channels_last_3d
            )
        windows = self.windows[: len(batch)]
        for (box, view), window in zip(batch, windows, strict=True):
            # Integers become float32 before they are multiplied.
            torch.mul(_mirror(self.volume[:, *box], view), self.scale, out=window)
        return windows

    def _factor_of(self, box: Box) -> Tensor:
        """Return the factor of a window's probabilities, on the device of the total."""
        if not self.is_added_to:
            return self.weights
        # The views of a window follow each other and share a factor.
        if box != self.factor_box:
            sums = sum_of_weights(box, self.corners, self.weights)
            self.factor = self.weights * (self.share / self.n_views) / sums
            self.factor_box = box
        return self.factor

    def _normalise(self) -> None:
        """Divide by the weights that were added up, slab by slab, to hold no second volume."""
        assert self.total is not None
        n_planes = SLAB
        if self.device.type != "cpu":
            n_planes = max(SLAB, SLAB_VOXELS // self.total[0, 0].numel())
        while self.n_normalised < self.total.shape[1]:
            slab = self.total[:, self.n_normalised : self.n_normalised + n_planes]
            sums = torch.zeros_like(slab[0])
            for corner in self.corners:
                add_weights(sums, self.weights, corner, first_plane=self.n_normalised)
            # Where no window was added, 0 divided by the smallest number stays 0.
            sums.mul_(self.n_views).clamp_(min=torch.finfo(torch.float32).tiny)
            slab /= sums
            self.n_normalised += n_planes


def _moved(tensor: Tensor, device: torch.device) -> Tensor:
    """Return a tensor on a device. A GPU is not waited for, except by a copy to the host."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        return to_gpu(tensor, device)
    return tensor.to(device)


def _mirror(window: Tensor, view: View) -> Tensor:
    if not view:
        return window
    # Axis 0 of a window is its channel.
    return window.flip([axis + 1 for axis in view])


def _box(corner: Sides, sides: Sequence[int]) -> Box:
    x, y, z = (slice(start, start + side) for start, side in zip(corner, sides, strict=True))
    return (x, y, z)
