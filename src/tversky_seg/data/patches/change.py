"""Change of one patch: what an augmentation has drawn for it, to be applied on any device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from tversky_seg.data.grids import Shape
from tversky_seg.data.patches import fused
from tversky_seg.data.patches.intensity import IntensityChange
from tversky_seg.data.patches.lesion_growth import Growth, plan_growth
from tversky_seg.data.patches.spatial import (
    Deformation,
    Places,
    Turn,
    resample_linear,
    resample_nearest,
)


@dataclass(frozen=True, eq=False)
class Change:
    """All that was drawn for one patch; nothing random is left.

    It is drawn, and its tensors are computed, on the host. Moved to a GPU (`packing.Packed`), it is
    applied there without a wait.

    Attributes:
        size: Sides of the patch.
        turn: Mirroring and quarter turns.
        deformation: Smooth map, the turn included; None: there is only the turn.
        channels: Intensity changes of each channel.
        dropped: Channels that are blanked.
        growth_mm: Distance by which lesions grow.
        spacing_mm: Voxel size.
        places: Places in the box that the voxels come from, set by `at`.
        growth: Growth of the lesions, where the labels were moved before, by `move_labels`.
        are_labels_moved: Whether they were.
    """

    size: Shape
    turn: Turn
    deformation: Deformation | None
    channels: tuple[IntensityChange, ...]
    dropped: tuple[int, ...]
    growth_mm: float
    spacing_mm: tuple[float, ...]
    places: Places | None = None
    growth: Growth | None = None
    are_labels_moved: bool = False

    def without(self, missing: Sequence[int], *, kept: Sequence[int] = ()) -> Change:
        """Fit the dropped channels to what a case has.

        Args:
            missing: Channels that the case lacks: they stay 0, whatever was drawn for them.
            kept: Channels that are never dropped.

        Returns:
            The change, which leaves at least one channel that the case has.
        """
        if not missing and not kept:
            return self
        dropped = {*self.dropped, *missing} - set(kept)
        if len(dropped) == len(self.channels):
            dropped = set(missing)
        return replace(self, dropped=tuple(sorted(dropped)))

    def box(self, start: Shape, shape: Shape) -> tuple[Shape, Shape]:
        """Find the part of a volume that a patch comes from: its first voxel and its size.

        It is larger or smaller than the patch, as the deformation needs it.
        """
        if self.deformation is None:
            return start, self.size
        return self.deformation.box(start, self.size, shape)

    def at(self, offset: Sequence[int]) -> Change:
        """Compute the tensors for a box: its first voxel, counted from the first of the patch."""
        if self.deformation is None:
            places = self.turn.places(self.size)
        else:
            places = self.deformation.places(self.size, offset=offset)
        return replace(self, places=places)

    def move_labels(self, labels: Tensor) -> tuple[Change, Tensor]:
        """Move the labels on the host, which then prepares the growth of their lesions.

        Returns:
            The change that remains, and the labels (K, *size) to apply it to.
        """
        labels = self._moved_labels(labels, self._coordinates())
        growth = plan_growth(labels, reach_mm=self.growth_mm, spacing_mm=self.spacing_mm)
        return replace(self, growth=growth, are_labels_moved=True), labels

    def apply(
        self,
        image: Tensor,
        labels: Tensor,
        *,
        scale: Tensor | None = None,
        has_lesion: bool = True,
    ) -> tuple[Tensor, Tensor]:
        """Compute the changed patch, on the device of the image and of this change's tensors.

        Args:
            image: (C, x, y, z), the part of the volume that `box` gives, 0 outside the brain. It
                may be changed in place.
            labels: (K, x, y, z) integers of the same part, or as `move_labels` has made them. Where
                lesions grow, they lie on the CPU unless they were moved.
            scale: (C,) factors from an image of integers to intensities; None: the image is
                float32.
            has_lesion: False where all labels are known to be 0.

        Returns:
            Image (C, *size) float32 and labels (K, *size), contiguous.
        """
        move = self._moved
        if scale is not None and fused.can_fuse(image):
            move = self._moved_at_once
        image, moved_labels, brain = move(image, labels, scale, has_lesion=has_lesion)
        growth = self.growth
        if self.growth_mm and has_lesion and not self.are_labels_moved:
            growth = plan_growth(moved_labels, reach_mm=self.growth_mm, spacing_mm=self.spacing_mm)
        if growth is not None:
            image, moved_labels = growth.apply(image, moved_labels)
        # Last, so that noise and blur are those of the patch, not resampled ones
        self._change_intensities(image, brain)
        return image, moved_labels

    def _moved(
        self, image: Tensor, labels: Tensor, scale: Tensor | None, *, has_lesion: bool
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Move image and labels by torch; the brain is left out."""
        if scale is not None:
            # In float32, as on the host: the same bits.
            image = image * scale[:, None, None, None]
        places = self._coordinates()
        if not self.are_labels_moved:
            labels = self._moved_labels(labels, places, has_lesion=has_lesion)
        if places is None:
            return self.turn.apply(image), labels, None
        return resample_linear(image, places), labels, None

    def _moved_at_once(
        self, image: Tensor, labels: Tensor, scale: Tensor | None, *, has_lesion: bool
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Move image and labels by one kernel, which also gives the brain."""
        assert self.places is not None, "a change is applied `at` an offset"
        assert scale is not None, "the kernel reads integers"
        read_labels = None if self.are_labels_moved or not has_lesion else labels
        image, moved_labels, brain = fused.move(image, scale, read_labels, self.places, self.size)
        if moved_labels is not None:
            labels = moved_labels
        elif not self.are_labels_moved:
            labels = labels.new_zeros((len(labels), *self.size))
        return image, labels, brain

    def _coordinates(self) -> Tensor | None:
        """Compute where in the box the voxels come from; None: they are only turned."""
        if self.deformation is None:
            return None
        assert self.places is not None, "a deformation is applied `at` an offset"
        return self.places.coordinates()

    def _moved_labels(
        self, labels: Tensor, places: Tensor | None, *, has_lesion: bool = True
    ) -> Tensor:
        if places is None:
            return self.turn.apply(labels)
        if not has_lesion:
            return labels.new_zeros((len(labels), *self.size))
        return resample_nearest(labels, places)

    def _change_intensities(self, image: Tensor, brain: Tensor | None) -> None:
        """Change the intensities in place; the background stays 0."""
        remaining = [number for number in range(len(image)) if number not in self.dropped]
        changed = [number for number in remaining if self.channels[number].is_any]
        if changed and brain is None:
            brain = _brain(image)  # before a channel changes: it may shift values to 0
        for number in changed:
            assert brain is not None
            # image[number] is a view: the image is changed in place.
            self.channels[number].apply(image[number], brain)
        for number in self.dropped:
            image[number].zero_()


def _brain(image: Tensor) -> Tensor:
    """Compute the brain (X, Y, Z) float32: 1 where any channel of (C, X, Y, Z) is not 0."""
    largest = image[0].abs()
    for channel in image[1:]:
        torch.maximum(largest, channel.abs(), out=largest)
    return largest.sign_()
