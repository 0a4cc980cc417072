"""Change of one patch: what an augmentation has drawn for it, to be applied on any device."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tversky_seg.data.grids import Shape
from tversky_seg.data.patches.intensity import IntensityChange
from tversky_seg.data.patches.lesion_growth import grow
from tversky_seg.data.patches.spatial import Deformation, Turn, resample_linear, resample_nearest


@dataclass(frozen=True, eq=False)
class Change:
    """All that was drawn for one patch; nothing random is left.

    Attributes:
        size: Sides of the patch.
        turn: Mirroring and quarter turns.
        deformation: Smooth map, the turn included; None: there is only the turn.
        channels: Intensity changes of each channel.
        dropped: Channels that are blanked.
        growth_mm: Distance by which lesions grow.
        spacing_mm: Voxel size.
    """

    size: Shape
    turn: Turn
    deformation: Deformation | None
    channels: tuple[IntensityChange, ...]
    dropped: tuple[int, ...]
    growth_mm: float
    spacing_mm: tuple[float, ...]

    def box(self, start: Shape, shape: Shape) -> tuple[Shape, Shape]:
        """Find the part of a volume that a patch comes from: its first voxel and its size.

        It is larger or smaller than the patch, as the deformation needs it.
        """
        if self.deformation is None:
            return start, self.size
        return self.deformation.box(start, self.size, shape)

    def apply(
        self, image: Tensor, labels: Tensor, *, offset: Sequence[int] = (0, 0, 0)
    ) -> tuple[Tensor, Tensor]:
        """Compute the changed patch, on the device of the image.

        Args:
            image: (C, x, y, z) float32, the part of the volume that `box` gives, 0 outside the
                brain. It may be changed in place.
            labels: (K, x, y, z) integers of the same part.
            offset: First voxel of that part, counted from the first voxel of the patch.

        Returns:
            Image (C, *size) and labels (K, *size), contiguous.
        """
        if self.deformation is None:
            image = self.turn.apply(image)
            labels = self.turn.apply(labels)
        else:
            places = self.deformation.coordinates(self.size, offset=offset, device=image.device)
            image = resample_linear(image, places)
            labels = resample_nearest(labels, places)
        if self.growth_mm:
            image, labels = grow(image, labels, reach_mm=self.growth_mm, spacing_mm=self.spacing_mm)
        # Last, so that noise and blur are those of the patch, not resampled ones
        self._change_intensities(image)
        return image, labels

    def _change_intensities(self, image: Tensor) -> None:
        """Change the intensities in place; the background stays 0."""
        if any(change.is_any for change in self.channels):
            brain = _brain(image)  # before a channel changes: it may shift values to 0
            for channel, change in zip(image, self.channels, strict=True):
                if change.is_any:
                    change.apply(channel)  # in place: channel is a view of the image
                    channel *= brain
        for number in self.dropped:
            image[number] = 0


def _brain(image: Tensor) -> Tensor:
    """Compute the brain (X, Y, Z) float32: 1 where any channel of (C, X, Y, Z) is not 0."""
    largest = image[0].abs()
    for channel in image[1:]:
        torch.maximum(largest, channel.abs(), out=largest)
    return largest.sign_()
