"""Fusion of window predictions: their weighted mean, in as much memory as is free."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tversky_seg.inference.tta import View
from tversky_seg.runtime.devices import autocast, image_to_device, is_out_of_memory

logger = logging.getLogger("tversky_seg")

Sides = tuple[int, int, int]
Box = tuple[slice, slice, slice]

SLAB = 16  # planes whose weights are summed at once


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
        scale: (C, 1, 1, 1) factors of its input.
        device: Device of the network.
        precision: "fp32", "tf32", "bf16" or "fp16" inside the network.
    """

    network: nn.Module
    scale: Tensor
    device: torch.device
    precision: str

    @torch.inference_mode()
    def probabilities(self, windows: Sequence[Tensor], views: Sequence[View]) -> list[Tensor]:
        """Predict windows (C, x, y, z), each mirrored on the way in and back again.

        Returns:
            (K, x, y, z) float32 for each window, on the device.

        Raises:
            ValueError: The network changes the sides of the window.
        """
        # On the window's device: a volume that moved to the host is scaled there.
        mirrored = []
        for window, view in zip(windows, views, strict=True):
            mirrored.append(_mirror(window.float() * self.scale.to(window.device), view))
        batch = torch.stack(mirrored)
        with autocast(self.device, self.precision):
            logits = self.network(image_to_device(batch, self.device))
        if logits.ndim != 5 or logits.shape[2:] != batch.shape[2:]:
            raise ValueError(
                f"the network made {tuple(logits.shape)} of {tuple(batch.shape)}; "
                "expected equal sides"
            )
        # In float32 whatever the network computes in, so that sums and thresholds are exact.
        probability = logits.float().sigmoid()
        return [
            _mirror(of_window, view) for of_window, view in zip(probability, views, strict=True)
        ]


def fuse(
    network: WindowNetwork,
    volume: Tensor,
    grid: WindowGrid,
    *,
    batch_size: int,
    into: Tensor | None = None,
    share: float = 1.0,
) -> Tensor:
    """Average over windows and views, weighted; 0 where there is no window.

    Args:
        network: Network on its device.
        volume: (C, X, Y, Z) on the host, at least as large as a window.
        grid: Windows on the volume.
        batch_size: Number of windows, or views of them, that pass the network together.
        into: (K, X, Y, Z) float32 on the CPU to add to. Then each window is normalised before it is
            added; otherwise the total is normalised once at the end.
        share: Weight of this network in `into`.

    Returns:
        (K, X, Y, Z) float32 on the CPU, in [0, 1]; `into` if that is given.

    Raises:
        ValueError: The network gives NaN.
    """
    fusion = _Fusion(network, volume, grid, batch_size=batch_size, into=into, share=share)
    total = fusion.run()
    # The sum of all voxels is NaN if one is, and needs no second volume.
    if not torch.isfinite(total.sum()):
        raise ValueError("the network gave NaN; expected finite logits")
    return total.clamp_(0, 1).cpu()


class _Fusion:
    """Running sum over windows and views; it moves to the host when the device's memory is full."""

    def __init__(
        self,
        network: WindowNetwork,
        volume: Tensor,
        grid: WindowGrid,
        *,
        batch_size: int,
        into: Tensor | None,
        share: float,
    ) -> None:
        self.network = network
        self.volume = volume
        self.weights = grid.weights
        self.corners = grid.corners
        self.n_views = len(grid.views)
        self.passes = grid.passes()
        self.batch_size = batch_size
        self.total = into
        self.is_added_to = into is not None
        self.share = share
        self.device = network.device  # of volume and sums, until memory runs out
        self.n_done = 0  # passes that are in the total
        self.n_normalised = 0  # planes
        self.factor_box: Box | None = None
        self.factor = grid.weights
        self.has_warned = False

    def run(self) -> Tensor:
        """Add all windows up and normalise them."""
        self._retry(self._move)
        while self.n_done < len(self.passes):
            self._retry(self._add_batch)
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
                is_at_its_least = self.batch_size == 1 and self.device.type == "cpu"
                if not is_out_of_memory(error) or is_at_its_least:
                    raise
            # Here and not above, since the error keeps the tensors of the failed step alive.
            self._make_room()

    def _make_room(self) -> None:
        """Halve the batch; a batch of one window moves volume and sums to the host instead."""
        if self.batch_size > 1:
            self.batch_size //= 2
        else:
            self.device = torch.device("cpu")
            self._move()
        if self.network.device.type == "cuda":
            torch.cuda.empty_cache()  # cuDNN's own memory does not come from torch's cache
        if not self.has_warned:
            logger.warning(
                "out of memory on %s: fewer windows at once, sums on the host if need be",
                self.network.device,
            )
            self.has_warned = True

    def _move(self) -> None:
        self.volume = self.volume.to(self.device)
        self.weights = self.weights.to(self.device)
        if self.total is not None and not self.is_added_to:
            self.total = self.total.to(self.device)

    def _add_batch(self) -> None:
        batch = self.passes[self.n_done : self.n_done + self.batch_size]
        windows = []
        views = []
        for box, view in batch:
            windows.append(self.volume[:, *box])
            views.append(view)
        probabilities = self.network.probabilities(windows, views)
        # Only now is the number of classes known.
        if self.total is None:
            n_classes = len(probabilities[0])
            shape = self.volume.shape[1:]
            self.total = torch.zeros(n_classes, *shape, device=self.volume.device)
        for (box, _), probability in zip(batch, probabilities, strict=True):
            factor = self._factor_of(box)
            # In place and last, so that a window whose memory runs out is not added twice.
            self.total[:, *box].addcmul_(probability.to(self.total.device), factor)
            self.n_done += 1

    def _factor_of(self, box: Box) -> Tensor:
        """Return the factor of a window's probabilities, on the device of the total."""
        assert self.total is not None
        if not self.is_added_to:
            return self.weights
        # The views of a window follow each other and share a factor.
        if box != self.factor_box:
            sums = _sum_of_weights(box, self.corners, self.weights)
            factor = self.weights * (self.share / self.n_views) / sums
            self.factor = factor.to(self.total.device)
            self.factor_box = box
        return self.factor

    def _normalise(self) -> None:
        """Divide by the weights that were added up, slab by slab, to hold no second volume."""
        assert self.total is not None
        while self.n_normalised < self.total.shape[1]:
            slab = self.total[:, self.n_normalised : self.n_normalised + SLAB]
            sums = torch.zeros_like(slab[0])
            for corner in self.corners:
                _add_weights(sums, self.weights, corner, first_plane=self.n_normalised)
            # Where no window was added, 0 divided by the smallest number stays 0.
            sums.mul_(self.n_views).clamp_(min=torch.finfo(torch.float32).tiny)
            slab /= sums
            self.n_normalised += SLAB


def _add_weights(sums: Tensor, weights: Tensor, corner: Sides, *, first_plane: int) -> None:
    """Add a window's weights to a slab (n, Y, Z) that begins at a plane."""
    x, y, z = corner
    depth, height, width = weights.shape
    # The planes that window and slab have in common.
    low = max(x, first_plane)
    high = min(x + depth, first_plane + len(sums))
    if low < high:
        planes = sums[low - first_plane : high - first_plane, y : y + height, z : z + width]
        planes += weights[low - x : high - x]


def _sum_of_weights(box: Box, corners: Sequence[Sides], weights: Tensor) -> Tensor:
    """Sum the weights of all windows inside the box of one of them, (x, y, z)."""
    sums = torch.zeros_like(weights)
    for corner in corners:
        in_box = []
        in_window = []
        for start, side, n in zip(corner, box, weights.shape, strict=True):
            # A window that begins 3 voxels later covers our voxels from 3 on with its first ones.
            offset = start - side.start
            in_box.append(slice(max(offset, 0), n + min(offset, 0)))
            in_window.append(slice(max(-offset, 0), n - max(offset, 0)))
        if all(side.start < side.stop for side in in_box):
            sums[tuple(in_box)] += weights[tuple(in_window)]
    return sums


def _mirror(window: Tensor, view: View) -> Tensor:
    if not view:
        return window
    # Axis 0 of a window is its channel.
    return window.flip([axis + 1 for axis in view])


def _box(corner: Sides, sides: Sequence[int]) -> Box:
    x, y, z = (slice(start, start + side) for start, side in zip(corner, sides, strict=True))
    return (x, y, z)
