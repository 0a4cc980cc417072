"""Augmentation of training patches: mirroring, turns, deformations, differences of scanners."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from numpy.typing import NDArray

from tversky_seg.data.patches.change import Change
from tversky_seg.data.patches.implant import Implant
from tversky_seg.data.patches.intensity import (
    N_RANKS,
    IntensityChange,
    gaussian_matrices,
    log_bias_field,
    low_resolution_matrices,
)
from tversky_seg.data.patches.spatial import Deformation, Turn, as_shape
from tversky_seg.data.rotation import rotation_about_axis

# A cubic B-spline displacement that is smaller than this share of the distance of its knots does
# not fold (Choi & Lee 2000).
FOLD_FREE = 1 / 2.48
AT_MOST_ONE = ("contrast", "scale", "stretch")  # beside the probabilities
PLANES = {0: (1, 2), 1: (0, 2), 2: (0, 1)}  # the axes that a turn about each axis moves


@dataclass(frozen=True)
class Augmentation:
    """Mirror, turn, deform and re-light training patches; target and components follow the image.

    Geometry first: each axis of `flip_axes` is mirrored with `flip_probability`; then the patch is
    turned about each axis of `rotation_axes` with `rotation_probability`, by 90, 180 or 270 degrees
    where the plane has equal spacing and equal sides, else by 180 degrees. Tilt, zoom, stretch and
    shear make one affine map in mm about the centre of the patch, which an elastic displacement
    precedes. The image is resampled once, linearly, and the labels by the nearest voxel, from as
    much of the volume as the drawn map needs. Then lesions grow (`lesion_growth.grow`).

    Then the intensities, for each channel on its own and each change with its own probability, in
    this order: bias field, blur, low resolution, gamma and contrast (monotone curves that keep the
    smallest and largest value of the patch), scale, shift, noise. Last, `dropout_probability`
    blanks whole channels, so that the network does not rely on one modality.

    Intensities change inside the brain only. The background is 0 after normalisation and stays 0,
    as in prediction, so that the network meets no other background than it was trained on. The
    brain is where any channel differs from 0.

    Args:
        flip_axes: Axes (0 left-right, 1 back-front, 2 foot-head) that may be mirrored.
        flip_probability: Probability of a mirroring, for each axis.
        rotation_axes: Axes about which the patch may be turned, in this order.
        rotation_probability: Probability of a turn, for each axis.
        quarter_turns: Whether 90 and 270 degrees are drawn; if not, only 180 (as arXiv:1803.11078).
        at_most_one_turn: Whether the first turn that is drawn is the only one.
        tilt_degrees: Largest rotation about each axis; the angle is uniform in ±tilt_degrees.
        tilt_probability: Probability of a tilt, for the three axes together.
        zoom: Smallest and largest factor of size (above 1 enlarges), uniform on a log scale.
        zoom_probability: Probability of a zoom.
        stretch: Largest stretch s; each axis has a factor in [1 / (1 + s), 1 + s], uniform on a
            log scale.
        stretch_probability: Probability of a stretch, for the three axes together.
        shear: Largest coefficient: x grows by a y + b z and y by c z, with a, b, c uniform in
            ±shear.
        shear_probability: Probability of a shear, for the three coefficients together.
        elastic_mm: Largest elastic displacement. Its coefficients are uniform in ±m along each
            axis, which bounds it, and m is uniform in [0, elastic_mm].
        elastic_spacing_mm: Distance of its cubic B-spline knots; elastic_mm is at most 0.4 of it,
            so that nothing folds.
        elastic_probability: Probability of an elastic displacement.
        bias_field: Largest coefficient of the bias field. Values, counted from the smallest, are
            multiplied by exp of a sum of Legendre polynomials up to degree 3, with coefficients
            uniform in ±bias_field.
        bias_field_probability: Probability of a bias field, for each channel.
        blur_mm: Largest standard deviation of a Gaussian blur; uniform in [0, blur_mm].
        blur_probability: Probability of a blur, for each channel.
        low_resolution: Largest factor by which voxels are longer along each axis; uniform in
            [1, low_resolution]. The channel is interpolated back.
        low_resolution_probability: Probability of a low resolution, for each channel.
        gamma: Largest |log g| of the curve t -> t^g, t from 0 at the smallest to 1 at the largest
            value; log g is uniform in ±gamma.
        gamma_probability: Probability of a gamma curve, for each channel.
        contrast: Largest |c| of the S-curve t -> t + c t (1 - t) (1 - 2 t), which is steeper in
            the middle for c < 0 and flatter for c > 0; c is uniform in ±contrast. At most 1, so
            that the curve stays monotone.
        contrast_probability: Probability of an S-curve, for each channel.
        scale: Largest relative change of scale; the factor is uniform in 1 ± scale.
        scale_probability: Probability of a change of scale, for each channel.
        shift: Largest offset, uniform in ±shift, in units of the normalised image (standard
            deviations of the brain).
        shift_probability: Probability of an offset, for each channel.
        noise_sd: Largest standard deviation of Gaussian noise, uniform in [0, noise_sd], in the
            same units.
        noise_probability: Probability of noise, for each channel.
        dropout_probability: Probability that a channel is 0 throughout. Where all channels would
            be, none is.
        growth_mm: Largest growth of lesions; the distance is uniform in [0, growth_mm].
        growth_probability: Probability of growth, for all lesions of a patch together.
        within_slices_above: Ratio of a voxel's longest to its shortest side from which the patch is
            deformed within slices alone: no tilt out of the slice, no zoom, stretch, shear, elastic
            displacement or loss of resolution along the longest side. Between thick slices there is
            nothing to interpolate from. None: never.
        implant: Carries lesions of other cases into the patch, before all other changes; None: none
            are. `PatchBatches` applies it, which knows the other cases.

    Raises:
        ValueError: A probability outside [0, 1], a strength out of its range, an axis not in 0, 1,
            2.
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
    within_slices_above: float | None = None
    implant: Implant | None = None

    def __post_init__(self) -> None:
        """Check the settings before any data are read."""
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name == "implant":
                continue  # it has checked itself
            if field.name.endswith("_axes"):
                if not set(value) <= {0, 1, 2}:
                    raise ValueError(f"{field.name} must be axes out of 0, 1, 2, got {value}")
            elif field.name == "within_slices_above":
                if value is not None and value <= 1:
                    raise ValueError(f"within_slices_above must be above 1 or null, got {value}")
            elif field.name != "zoom":
                _check_range(field.name, value)
        if len(self.zoom) != 2 or not 0 < self.zoom[0] <= self.zoom[1]:
            raise ValueError(
                f"zoom must be a smallest and a largest factor above 0, got zoom={self.zoom}"
            )
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

    def draw(
        self,
        rng: np.random.Generator,
        *,
        n_channels: int,
        size: Sequence[int],
        spacing_mm: Sequence[float],
    ) -> Change:
        """Draw all that is random about one patch, on the host, noise included.

        The order of the draws, here and below, is part of the promise that a seed gives the same
        batches: a new change is drawn after all others, and only where its probability is above 0.

        Args:
            rng: Source of all randomness.
            n_channels: Channels of the image.
            size: Sides of the patch in voxels.
            spacing_mm: Voxel size.
        """
        spacing = np.array(spacing_mm)
        turn = self._draw_turn(rng, size, spacing)
        deformation = self._draw_deformation(rng, size, spacing)
        if deformation is not None:
            deformation = replace(deformation, matrix=deformation.matrix @ turn.matrix)
        channels = [self._draw_intensities(rng, size, spacing) for _ in range(n_channels)]
        dropped = self._draw_dropped(rng, n_channels)
        growth_mm = 0.0
        if _is_drawn(self.growth_probability, rng):
            growth_mm = rng.uniform(0, self.growth_mm)
        return Change(
            size=as_shape(size),
            turn=turn,
            deformation=deformation,
            channels=tuple(channels),
            dropped=dropped,
            growth_mm=growth_mm,
            spacing_mm=tuple(spacing.tolist()),
        )

    def _draw_turn(
        self, rng: np.random.Generator, size: Sequence[int], spacing_mm: NDArray[np.float64]
    ) -> Turn:
        """Draw quarter turns, then mirrorings; the mirrorings are applied first."""
        quarter_turns = []
        for axis in self.rotation_axes:
            a, b = PLANES[axis]
            if rng.random() < self.rotation_probability:
                n_quarters = 2
                has_equal_spacing = np.isclose(spacing_mm[a], spacing_mm[b], rtol=0.01)
                if self.quarter_turns and size[a] == size[b] and has_equal_spacing:
                    n_quarters = int(rng.integers(1, 4))
                quarter_turns.append(((a, b), n_quarters))
                if self.at_most_one_turn:
                    break
        # Drawn first, applied last: the order of old runs.
        turn = Turn()
        for axis in self.flip_axes:
            if rng.random() < self.flip_probability:
                turn = turn.then_mirror(axis)
        for plane, n_quarters in quarter_turns:
            turn = turn.then_turn(plane, n_quarters)
        return turn

    def _draw_deformation(
        self, rng: np.random.Generator, size: Sequence[int], spacing_mm: NDArray[np.float64]
    ) -> Deformation | None:
        """Draw the smooth map from patch to volume, without the turn; None: nothing was drawn."""
        is_free = self._free_axes(spacing_mm)
        forward = np.eye(3)  # from the volume to the patch, in mm
        if _is_drawn(self.tilt_probability, rng):
            degrees = rng.uniform(-self.tilt_degrees, self.tilt_degrees, 3)
            if not is_free.all():
                degrees *= ~is_free  # about the axis through the slices alone
            forward = _rotation(np.radians(degrees))
        # Each further change is applied before those drawn so far.
        if _is_drawn(self.shear_probability, rng):
            # [[1, a, b], [0, 1, c], [0, 0, 1]]
            sheared = np.eye(3)
            above_diagonal = np.triu_indices(3, 1)
            sheared[above_diagonal] = rng.uniform(-self.shear, self.shear, 3)
            forward = forward @ sheared
        if _is_drawn(self.zoom_probability, rng):
            low, high = np.log(self.zoom)
            forward = forward * np.exp(rng.uniform(low, high))
        if _is_drawn(self.stretch_probability, rng):
            forward = forward * (1 + self.stretch) ** rng.uniform(-1, 1, 3)
        if not is_free.all():
            forward = np.where(is_free & is_free[:, None], forward, np.eye(3))
        knot_distance = self.elastic_spacing_mm / spacing_mm
        displacement = None
        if _is_drawn(self.elastic_probability, rng):
            strength_mm = rng.uniform(0, self.elastic_mm)
            # As `spline_basis` has them: a spline reaches two knots to either side
            n_knots = ((np.array(size) - 1) / knot_distance).astype(int) + 4
            displacement_mm = rng.uniform(-strength_mm, strength_mm, (3, *n_knots))
            displacement_mm *= is_free[:, None, None, None]
            displacement = displacement_mm / spacing_mm[:, None, None, None]
        if displacement is None and (forward == np.eye(3)).all():
            return None
        # Each voxel of the patch is looked up in the volume, so the map is inverted; and from mm
        # to voxels of either side.
        backward = np.linalg.inv(forward) * spacing_mm / spacing_mm[:, None]
        return Deformation(backward, displacement, knot_distance.tolist())

    def _draw_intensities(
        self, rng: np.random.Generator, size: Sequence[int], spacing_mm: NDArray[np.float64]
    ) -> IntensityChange:
        """Draw the intensity changes of one channel, in the order in which they are applied."""
        change = IntensityChange()
        if _is_drawn(self.bias_field_probability, rng):
            coefficients = rng.uniform(-self.bias_field, self.bias_field, (4, 4, 4))
            degree = np.indices(coefficients.shape).sum(axis=0)
            is_used = (degree > 0) & (degree <= 3)  # degree 0 would be a change of scale
            log_field = log_bias_field(coefficients * is_used, size)
            change = replace(change, bias_field=log_field)
        if _is_drawn(self.blur_probability, rng):
            sigma = rng.uniform(0, self.blur_mm) / spacing_mm
            change = replace(change, blur=gaussian_matrices(sigma.tolist(), size))
        if _is_drawn(self.low_resolution_probability, rng):
            factor = rng.uniform(1, self.low_resolution)
            factors = np.where(self._free_axes(spacing_mm), factor, 1.0).tolist()
            change = replace(change, low_resolution=low_resolution_matrices(factors, size))
        # The five below draw their probability even where it is 0, as they always did.
        if rng.random() < self.gamma_probability:
            exponent = float(np.exp(rng.uniform(-self.gamma, self.gamma)))
            change = replace(change, gamma=exponent)
        if rng.random() < self.contrast_probability:
            change = replace(change, contrast=rng.uniform(-self.contrast, self.contrast))
        if rng.random() < self.scale_probability:
            change = replace(change, scale=rng.uniform(1 - self.scale, 1 + self.scale))
        if rng.random() < self.shift_probability:
            change = replace(change, shift=rng.uniform(-self.shift, self.shift))
        if rng.random() < self.noise_probability:
            ranks = torch.from_numpy(rng.integers(0, N_RANKS, size, dtype=np.uint16))
            change = replace(change, noise_ranks=ranks, noise_sd=rng.uniform(0, self.noise_sd))
        return change

    def _free_axes(self, spacing_mm: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Tell along which axes patches may be deformed: all but the longest side of thick slices.

        With `within_slices_above` 3, voxels of 1 x 1 x 5 mm give True, True, False.
        """
        is_free = np.ones(3, dtype=bool)
        limit = self.within_slices_above
        if limit is not None and spacing_mm.max() >= limit * spacing_mm.min():
            is_free[np.argmax(spacing_mm)] = False
        return is_free

    def _draw_dropped(self, rng: np.random.Generator, n_channels: int) -> tuple[int, ...]:
        """Draw the channels that are blanked; none where it would be all."""
        if not self.dropout_probability:
            return ()
        is_dropped = rng.random(n_channels) < self.dropout_probability
        if is_dropped.all():
            return ()
        return tuple(np.flatnonzero(is_dropped).tolist())


def _check_range(name: str, value: float) -> None:
    """Check that a setting is not negative, and at most 1 where that is its bound."""
    if name.endswith("_probability") or name in AT_MOST_ONE:
        if not 0 <= value <= 1:
            raise ValueError(f"{name} must lie in [0, 1], got {name}={value}")
    elif value < 0:
        raise ValueError(f"{name} must be >= 0, got {name}={value}")


def _is_drawn(probability: float, rng: np.random.Generator) -> bool:
    """Draw whether a change happens; at probability 0 nothing is drawn, so old runs stay equal."""
    return probability > 0 and rng.random() < probability


def _rotation(radians: NDArray[np.float64]) -> NDArray[np.float64]:
    """Compute the (3, 3) rotation about the first axis, then the second, then the third."""
    matrix = np.eye(3)
    for axis, angle in enumerate(radians):
        matrix = rotation_about_axis(axis, angle) @ matrix
    return matrix
