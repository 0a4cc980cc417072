"""A batch of patches, and the samples that it is stacked from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from tversky_seg.data.grids import Shape
from tversky_seg.data.patches.change import Change
from tversky_seg.data.patches.surrounds import cells_of


@dataclass(frozen=True, eq=False)
class Sample:
    """One patch as it was read, with the augmentation that it still waits for.

    Attributes:
        image: (C, x, y, z) float32, or int16 as stored; with a pending change the larger box that
            the change needs.
        scale: (C,) float32 factors from a stored image to intensities; None: the image holds these.
        labels: (K, x, y, z) of the same box: the target, or its components where they are asked
            for, with their surrounds where cells are; -1 where a voxel is ignored.
        change: Drawn augmentation that is still to be applied; None: the patch is finished.
        has_lesion: Whether any label of the box is not 0.
        has_ignored: Whether voxels of the box are ignored.
        n_labels: Largest number that a component of the case has.
        n_raters: Number of raters whose mean is the target. `labels` are then followed by K more
            channels, the number of raters that drew a voxel. 0: the target is one mask.
        case_id: Name of the case.
        start: First voxel of the patch in its case.
    """

    image: Tensor
    scale: Tensor | None
    labels: Tensor
    change: Change | None
    has_lesion: bool
    has_ignored: bool
    n_labels: int
    n_raters: int
    case_id: str
    start: Shape

    def augment(self) -> Sample:
        """Apply the pending augmentation on the device of the tensors; a GPU waits for nothing."""
        image, labels = self.image, self.labels
        if self.change is not None:
            image, labels = self.change.apply(
                image, labels, scale=self.scale, has_lesion=self.has_lesion
            )
        elif self.scale is not None:
            image = image * self.scale[:, None, None, None]
        return replace(self, image=image, scale=None, labels=labels, change=None)


@dataclass(frozen=True, eq=False)
class Batch:
    """Patches to train on.

    Attributes:
        image: (B, C, X, Y, Z) float32.
        target: (B, K, X, Y, Z) float32, 0 or 1; between these where it is the mean of raters.
        components: (B, K, X, Y, Z) int32 labels of the connected components; None where not asked
            for.
        case_ids: Names of the B cases.
        starts: First voxel [x, y, z] of each of the B patches in its case.
        n_labels: Bound of the numbers in `components`, known without a look at them: a look would
            wait for a GPU. None: unknown.
        cells: (B, K, X, Y, Z) int32 lesion that each voxel is nearest to, 0 far from all; None
            where not asked for.
        ignored: (B, 1, X, Y, Z) bool, voxels that do not count; None: all count.
    """

    image: Tensor
    target: Tensor
    components: Tensor | None
    case_ids: list[str]
    starts: list[list[int]]
    n_labels: int | None = None
    cells: Tensor | None = None
    ignored: Tensor | None = None

    def to(self, device: torch.device) -> Batch:
        """Move the tensors to a device."""
        return self.map(lambda tensor: tensor.to(device, non_blocking=True))

    def map(self, function: Callable[[Tensor], Tensor]) -> Batch:
        """Copy the batch with a function applied to its tensors."""
        components = self.components
        if components is not None:
            components = function(components)
        ignored = self.ignored
        if ignored is not None:
            ignored = function(ignored)
        return replace(
            self,
            image=function(self.image),
            target=function(self.target),
            components=components,
            cells=None if self.cells is None else function(self.cells),
            ignored=ignored,
        )


def stack_samples(
    samples: Sequence[Sample], *, with_components: bool, with_cells: bool = False
) -> Batch:
    """Make one batch of finished samples.

    Args:
        samples: Samples without pending augmentation, at least one.
        with_components: Whether their labels are components; the target is then where these are not
            0.
        with_cells: Whether these components have surrounds (`surrounds`).
    """
    image = _stack([sample.image for sample in samples])
    soft_target = None
    if samples[0].n_raters:
        # All cases of a cohort have the target that `data.rater` names.
        samples, shares = zip(*map(_split_votes, samples), strict=True)
        soft_target = _stack(shares)
    labels = _stack([sample.labels for sample in samples])
    case_ids = [sample.case_id for sample in samples]
    starts = [list(sample.start) for sample in samples]
    ignored = None
    if any(sample.has_ignored for sample in samples):
        # A voxel is ignored in all classes or in none.
        ignored = labels[:, :1] == -1
        labels = labels.masked_fill(ignored, 0)
    if with_components:
        target = (labels > 0).float() if soft_target is None else soft_target
        components = labels.int()  # they travel in a narrower type
        n_labels = max(sample.n_labels for sample in samples)
        cells = None
        if with_cells:
            cells = cells_of(components)
            components = components.clamp(min=0)
        return Batch(image, target, components, case_ids, starts, n_labels, cells, ignored)
    target = labels.float() if soft_target is None else soft_target
    return Batch(image, target, None, case_ids, starts, ignored=ignored)


def _split_votes(sample: Sample) -> tuple[Sample, Tensor]:
    """Split the labels of a sample from its votes, and divide these by the number of raters."""
    labels, votes = sample.labels.chunk(2)
    return replace(sample, labels=labels), votes.float() / sample.n_raters


def _stack(tensors: Sequence[Tensor]) -> Tensor:
    """Stack along a new first axis; a single tensor is not copied."""
    if len(tensors) == 1:
        return tensors[0][None]
    return torch.stack(list(tensors))
