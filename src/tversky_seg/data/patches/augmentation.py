"""Random changes of a training patch: mirror images, turns, deformations, and the differences between scanners."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tversky_seg.data.grids import Shape
from tversky_seg.data.patches import intensity as intensities
from tversky_seg.data.patches.lesion_growth import grow
from tversky_seg.data.patches.spatial import Turn, coordinates, linear, nearest

Patch = tuple[NDArray[np.float32], NDArray[np.uint8], NDArray[np.int32] | None]
Step = tuple[Callable[[Tensor, Any], None], Any]  # a change of one channel, and how much
FOLD_FREE = (
    1 / 2.48
)  # a cubic B-spline field below this share of its knots' distance does not fold (Choi & Lee 2000)
MOST_ONE = ("_probability", "contrast", "scale", "stretch")


@dataclass(frozen=True, eq=False)
class Change:
    """What was drawn for one patch; calling it computes it, on the device of the image.

    Attributes:
        size: Of the patch.
        turn: Mirroring and quarter turns.
        matrix: (3, 3) map of offsets to the centre in voxels, the turn included; None: the turn is all.
        bumps: (3, nx, ny, nz) coefficients of the elastic displacement in voxels, or None.
        knot_distance: Of these along each axis, in voxels.
        channels: For each channel the changes of its intensities, in order.
        dropped: (C,) the channels that are blanked.
        growth_mm: How far lesions grow.
        spacing_mm: Voxel size.
    """

    size: Shape
    turn: Turn
    matrix: NDArray[np.float64] | None
    bumps: NDArray[np.float64] | None
    knot_distance: tuple[float, ...]
    channels: tuple[tuple[Step, ...], ...]
    dropped: NDArray[np.bool_]
    growth_mm: float
    spacing_mm: tuple[float, ...]

    def box(self, start: Sequence[int], shape: Sequence[int]) -> tuple[Shape, Shape]:
        """First voxel and size of the part of a volume that the patch at `start` is made of.

        It is larger or smaller than the patch as the drawn deformation needs it, and ends at the volume's border: what
        lies beyond is background.
        """
        if self.matrix is None:
            return _shape(start), self.size
        half = (np.array(self.size) - 1) / 2
        reach = half if self.bumps is None else half + np.abs(self.bumps).max(axis=(1, 2, 3))
        reach, centre = np.abs(self.matrix) @ reach, np.add(start, half)
        low = np.clip(np.floor(centre - reach), 0, np.subtract(shape, 1)).astype(int)
        high = np.clip(np.ceil(centre + reach) + 1, low + 1, shape).astype(int)
        return _shape(low), _shape(high - low)

    def __call__(
        self, image: Tensor, labels: Tensor, *, offset: Sequence[int] = (0, 0, 0)
    ) -> tuple[Tensor, Tensor]:
        """The changed patch.

        Args:
            image: (C, x, y, z) float32, the part of the volume that `box` names, 0 outside the brain. It is the
                caller's to give away: it may be changed.
            labels: (K, x, y, z) integers of the same part.
            offset: First voxel of that part, counted from the patch's.

        Returns:
            Image (C, *size) and labels (K, *size), contiguous.
        """
        if self.matrix is None:
            image, labels = self.turn(image), self.turn(labels)
        else:
            places = coordinates(
                self.size,
                self.matrix,
                offset=offset,
                bumps=self.bumps,
                knot_distance=self.knot_distance,
                device=image.device,
            )
            image, labels = linear(image, places), nearest(labels, places)
        if self.growth_mm:
            image, labels = grow(image, labels, reach_mm=self.growth_mm, spacing_mm=self.spacing_mm)
        self._change_intensities(image)
        return image, labels

    def _change_intensities(self, image: Tensor) -> None:
        """In place; the background goes back to 0."""
        if any(self.channels):
            brain = _inside(image)
            for channel, steps in zip(image, self.channels, strict=True):
                for change, amount in steps:
                    change(channel, amount)
                if steps:
                    channel *= brain
        for channel in np.flatnonzero(self.dropped).tolist():
            image[channel] = 0


def _inside(image: Tensor) -> Tensor:
    """(X, Y, Z) float32: 1 where any channel of (C, X, Y, Z) differs from 0, else 0."""
    strongest = image[0].abs()
    for channel in image[1:]:
        torch.maximum(strongest, channel.abs(), out=strongest)
    return strongest.sign_()


def _shape(numbers: Sequence[int] | NDArray[np.int_]) -> Shape:
    x, y, z = (int(n) for n in numbers)
    return x, y, z


@dataclass(frozen=True)
class Augmentation:
    """Mirror, turn, deform and re-light one training patch; target and components follow the image.

    Geometry first: each axis of `flip_axes` is mirrored with `flip_probability`; then about each axis of
    `rotation_axes` the patch is turned with `rotation_probability`, by 90, 180 or 270 degrees where the plane has equal
    spacing and equal sides, by 180 degrees elsewhere. Tilt, zoom, stretch and shear make one affine map in mm about the
    patch's centre, which an elastic displacement precedes; the image is resampled once, linearly, labels by the nearest
    voxel, from as much of the volume as the drawn map needs.

    Then the intensities, for each channel on its own and each change with its own probability, in this order: bias
    field, blur, low resolution, gamma and contrast (monotone curves that keep the patch's smallest and largest value),
    scale, shift, noise. `dropout_probability` blanks whole channels, so that no modality alone decides.

    Intensities change inside the brain only: the background is 0 after normalisation and stays 0, as in prediction, so
    that the network meets no other background than it was trained on. The brain is where any channel differs from 0.

    Args:
        flip_axes: Axes (0 left-right, 1 back-front, 2 foot-head) that may be mirrored.
        flip_probability: For each of them.
        rotation_axes: Axes about which the patch may be turned, in this order.
        rotation_probability: For each of them.
        quarter_turns: False leaves 180 degrees only (as arXiv:1803.11078 did).
        at_most_one_turn: The first axis that is drawn ends the turns.
        tilt_degrees: Rotation by an angle uniform in [-tilt_degrees, tilt_degrees] about each axis.
        tilt_probability: For the three together.
        zoom: Smallest and largest factor of size (above 1 enlarges), uniform on a log scale.
        zoom_probability: For it.
        stretch: A factor for each axis on its own, in [1 / (1 + stretch), 1 + stretch], uniform on a log scale.
        stretch_probability: For the three together.
        shear: x grows by a y + b z and y by c z; a, b, c uniform in [-shear, shear].
        shear_probability: For the three together.
        elastic_mm: A smooth displacement of each point; its coefficients are uniform in [-m, m] along each axis, which
            bounds it, and m is uniform in [0, elastic_mm].
        elastic_spacing_mm: Distance of its cubic B-spline knots; elastic_mm is at most 0.4 of it: nothing folds.
        elastic_probability: For it.
        bias_field: What exceeds the smallest value is multiplied by exp of a sum of Legendre polynomials up to degree
            3, coefficients uniform in [-bias_field, bias_field].
        bias_field_probability: For each channel.
        blur_mm: Gaussian blur with a standard deviation uniform in [0, blur_mm].
        blur_probability: For each channel.
        low_resolution: Voxels longer by a factor uniform in [1, low_resolution] along each axis, then interpolated.
        low_resolution_probability: For each channel.
        gamma: t -> t^g on [smallest, largest], log g uniform in [-gamma, gamma].
        gamma_probability: For each channel.
        contrast: t -> t + c t(1-t)(1-2t), c uniform in [-contrast, contrast]: a smooth S-curve, steeper (c < 0) or
            flatter in the middle; at most 1, so that it stays monotone.
        contrast_probability: For each channel.
        scale: Factor uniform in [1 - scale, 1 + scale].
        scale_probability: For each channel.
        shift: Offset uniform in [-shift, shift], in units of the normalised image (standard deviations of the brain).
        shift_probability: For each channel.
        noise_sd: Gaussian noise with a standard deviation uniform in [0, noise_sd], same units.
        noise_probability: For each channel.
        dropout_probability: For each channel, that it is 0 throughout; where all would be, none is.
        growth_mm: Lesions grow by a distance uniform in [0, growth_mm], before intensities change (`growth.grow`).
        growth_probability: For all lesions of a patch together.

    Raises:
        ValueError: A probability outside [0, 1], a strength out of its range, an axis not in 0, 1, 2.
    """

    flip_axes: Sequence[int] = (0, 1, 2)
    flip_probability: float = 0.5
    rotation_axes: Sequence[int] = (0, 1, 2)
    rotation_probability: float = 0.5
    quarter_turns: bool = True
    at_most_one_turn: bool = False
    tilt_degrees: float = 15.0
    tilt_probability: float = 0.0
    zoom: Sequence[float] = (0.8, 1.25)
    zoom_probability: float = 0.0
    stretch: float = 0.1
    stretch_probability: float = 0.0
    shear: float = 0.1
    shear_probability: float = 0.0
    elastic_mm: float = 4.0
    elastic_spacing_mm: float = 24.0
    elastic_probability: float = 0.0
    bias_field: float = 0.1
    bias_field_probability: float = 0.0
    blur_mm: float = 1.0
    blur_probability: float = 0.0
    low_resolution: float = 2.0
    low_resolution_probability: float = 0.0
    gamma: float = 0.4
    gamma_probability: float = 0.2
    contrast: float = 0.8
    contrast_probability: float = 0.3
    scale: float = 0.2
    scale_probability: float = 0.5
    shift: float = 0.2
    shift_probability: float = 0.5
    noise_sd: float = 0.15
    noise_probability: float = 0.2
    dropout_probability: float = 0.0
    growth_mm: float = 8.0
    growth_probability: float = 0.0

    def __post_init__(self) -> None:
        """Refuse settings that make no sense before any data are read."""
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name.endswith("_axes"):
                if not set(value) <= {0, 1, 2}:
                    raise ValueError(f"{field.name} must be axes out of 0, 1, 2, got {value}")
            elif field.name == "zoom":
                if len(value) != 2 or not 0 < value[0] <= value[1]:
                    raise ValueError(
                        f"zoom must be a smallest and a largest factor above 0, got zoom={value}"
                    )
            elif value < 0 or (value > 1 and field.name.endswith(MOST_ONE)):
                raise ValueError(f"{field.name} is out of range, got {field.name}={value}")
        if self.elastic_mm > FOLD_FREE * self.elastic_spacing_mm:
            raise ValueError(
                f"elastic_mm must be at most 0.4 elastic_spacing_mm, so that nothing folds; "
                f"got elastic_mm={self.elastic_mm}, elastic_spacing_mm={self.elastic_spacing_mm}"
            )
        if self.low_resolution < 1 or self.tilt_degrees > 180:
            raise ValueError(
                f"low_resolution must be >= 1 and tilt_degrees <= 180, "
                f"got low_resolution={self.low_resolution}, tilt_degrees={self.tilt_degrees}"
            )

    def __call__(
        self,
        image: NDArray[np.float32],
        target: NDArray[np.uint8],
        components: NDArray[np.int32] | None,
        rng: np.random.Generator,
        *,
        spacing_mm: Sequence[float] = (1.0, 1.0, 1.0),
    ) -> Patch:
        """Change one patch; what comes in is left as it is. Around it, a deformation finds background.

        Args:
            image: (C, X, Y, Z) float32, 0 outside the brain.
            target: (K, X, Y, Z).
            components: (K, X, Y, Z) of the target, or None where nobody needs them.
            rng: All randomness comes from here.
            spacing_mm: Voxel size, which says what may be turned by 90 degrees.

        Returns:
            The three again, contiguous.
        """
        change = self.draw(rng, n_channels=len(image), size=image.shape[1:], spacing_mm=spacing_mm)
        labels = target if components is None else np.concatenate([target, components])
        moved, moved_labels = change(torch.tensor(image), torch.tensor(labels))
        followed = moved_labels.numpy()
        return (
            moved.numpy(),
            followed[: len(target)].astype(target.dtype),
            None if components is None else followed[len(target) :],
        )

    def draw(
        self,
        rng: np.random.Generator,
        *,
        n_channels: int,
        size: Sequence[int],
        spacing_mm: Sequence[float],
    ) -> Change:
        """Draw all that is random about one patch, fields of noise included, on the host.

        Args:
            rng: All randomness comes from here.
            n_channels: Of the image.
            size: Of the patch in voxels.
            spacing_mm: Voxel size.
        """
        turn = self._draw_turn(rng, size, spacing_mm)
        matrix, bumps, knot_distance = self._draw_deformation(rng, size, np.array(spacing_mm))
        if matrix is not None:
            matrix = matrix @ turn.matrix
        channels = tuple(
            tuple(self._draw_channel(rng, size, np.array(spacing_mm))) for _ in range(n_channels)
        )
        dropped = np.zeros(n_channels, dtype=bool)
        if self.dropout_probability:
            dropped = rng.random(n_channels) < self.dropout_probability
        growth_mm = (
            rng.uniform(0, self.growth_mm) if _is_drawn(self.growth_probability, rng) else 0.0
        )
        spacing = tuple(map(float, spacing_mm))
        dropped &= ~dropped.all()
        return Change(
            _shape(size), turn, matrix, bumps, knot_distance, channels, dropped, growth_mm, spacing
        )

    def _draw_turn(
        self, rng: np.random.Generator, shape: Sequence[int], spacing_mm: Sequence[float]
    ) -> Turn:
        quarters = []
        for axis in self.rotation_axes:
            a, b = (other for other in range(3) if other != axis)
            square = shape[a] == shape[b] and np.isclose(spacing_mm[a], spacing_mm[b], rtol=0.01)
            if rng.random() < self.rotation_probability:
                quarters.append(
                    ((a, b), int(rng.integers(1, 4)) if square and self.quarter_turns else 2)
                )
                if self.at_most_one_turn:
                    break
        turn = Turn()
        for axis in self.flip_axes:
            turn = turn.flipped(axis) if rng.random() < self.flip_probability else turn
        for plane, n in quarters:
            turn = turn.turned(plane, n)
        return turn

    def _draw_deformation(
        self, rng: np.random.Generator, size: Sequence[int], spacing_mm: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64] | None, NDArray[np.float64] | None, tuple[float, ...]]:
        """Matrix from offsets in the patch to those in the volume, elastic coefficients, both in voxels, and knots."""
        forward, bumps = np.eye(3), None
        if _is_drawn(self.tilt_probability, rng):
            forward = _rotation(np.radians(rng.uniform(-self.tilt_degrees, self.tilt_degrees, 3)))
        if _is_drawn(self.shear_probability, rng):
            sheared = np.eye(3)
            sheared[np.triu_indices(3, 1)] = rng.uniform(-self.shear, self.shear, 3)
            forward = forward @ sheared
        if _is_drawn(self.zoom_probability, rng):
            forward = forward * np.exp(rng.uniform(*np.log(self.zoom)))
        if _is_drawn(self.stretch_probability, rng):
            forward = forward * (1 + self.stretch) ** rng.uniform(-1, 1, 3)
        knot_distance = self.elastic_spacing_mm / spacing_mm
        if _is_drawn(self.elastic_probability, rng):
            strength = rng.uniform(0, self.elastic_mm)
            n_knots = [
                int((n - 1) / distance) + 4 for n, distance in zip(size, knot_distance, strict=True)
            ]
            bumps = (
                rng.uniform(-strength, strength, (3, *n_knots)) / spacing_mm[:, None, None, None]
            )
        if bumps is None and (forward == np.eye(3)).all():
            return None, None, tuple(knot_distance)
        backward = np.linalg.inv(forward) * spacing_mm / spacing_mm[:, None]
        return backward, bumps, tuple(knot_distance)

    def _draw_channel(
        self, rng: np.random.Generator, size: Sequence[int], spacing_mm: NDArray[np.float64]
    ) -> list[Step]:
        """The changes of one channel's intensities, in order."""
        steps: list[Step] = []
        if _is_drawn(self.bias_field_probability, rng):
            degree = np.add.outer(np.add.outer(range(4), range(4)), range(4))
            coefficients = rng.uniform(-self.bias_field, self.bias_field, (4, 4, 4))
            steps.append((intensities.bias_field, coefficients * ((degree > 0) & (degree <= 3))))
        if _is_drawn(self.blur_probability, rng):
            steps.append((intensities.blur, tuple(rng.uniform(0, self.blur_mm) / spacing_mm)))
        if _is_drawn(self.low_resolution_probability, rng):
            steps.append((intensities.low_resolution, rng.uniform(1, self.low_resolution)))
        if rng.random() < self.gamma_probability:
            steps.append((intensities.gamma, float(np.exp(rng.uniform(-self.gamma, self.gamma)))))
        if rng.random() < self.contrast_probability:
            steps.append((intensities.s_curve, rng.uniform(-self.contrast, self.contrast)))
        if rng.random() < self.scale_probability:
            steps.append((intensities.scale, rng.uniform(1 - self.scale, 1 + self.scale)))
        if rng.random() < self.shift_probability:
            steps.append((intensities.shift, rng.uniform(-self.shift, self.shift)))
        if rng.random() < self.noise_probability:
            ranks = rng.integers(0, 65536, size, dtype=np.uint16)
            steps.append((intensities.noise, (ranks, rng.uniform(0, self.noise_sd))))
        return steps


def _is_drawn(probability: float, rng: np.random.Generator) -> bool:
    """Without a draw where it cannot happen: switching one change on leaves the draws of a run without it alone."""
    return probability > 0 and rng.random() < probability


def _rotation(radians: NDArray[np.float64]) -> NDArray[np.float64]:
    """(3, 3): about the first axis, then the second, then the third."""
    matrix = np.eye(3)
    for axis, angle in enumerate(radians):
        a, b = (other for other in range(3) if other != axis)
        one = np.eye(3)
        one[[a, b], [a, b]] = np.cos(angle)
        one[a, b], one[b, a] = -np.sin(angle), np.sin(angle)
        matrix = one @ matrix
    return matrix
