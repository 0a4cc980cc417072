"""Random changes of a training patch: mirror images, turns, and the contrast differences between scanners."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

Patch = tuple[NDArray[np.float32], NDArray[np.uint8], NDArray[np.int32] | None]


@dataclass(frozen=True)
class Augmentation:
    """Mirror, turn and re-light one training patch; target and components follow the image.

    Geometry first, by views: each axis of `flip_axes` is mirrored with `flip_probability`; then about each axis of
    `rotation_axes` the patch is turned with `rotation_probability`, by 90, 180 or 270 degrees where the plane has equal
    spacing and equal sides, by 180 degrees elsewhere. Then the intensities, for each channel on its own and each change
    with its own probability: gamma and contrast (monotone curves that keep the patch's smallest and largest value),
    scale, shift, noise.

    `dropout_probability` blanks whole channels, so that no modality alone decides.

    Intensities change inside the brain only: the background is 0 after normalisation and stays 0, as in prediction, so
    that the network meets no other background than it was trained on. The brain is where any channel differs from 0.

    Args:
        flip_axes: Axes (0 left-right, 1 back-front, 2 foot-head) that may be mirrored.
        flip_probability: For each of them.
        rotation_axes: Axes about which the patch may be turned.
        rotation_probability: For each of them.
        quarter_turns: False leaves 180 degrees only (as arXiv:1803.11078 did).
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

    Raises:
        ValueError: A probability outside [0, 1], a strength below 0, contrast or scale above 1, an axis not in 0, 1, 2.
    """

    flip_axes: Sequence[int] = (0, 1, 2)
    flip_probability: float = 0.5
    rotation_axes: Sequence[int] = (0, 1, 2)
    rotation_probability: float = 0.5
    quarter_turns: bool = True
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

    def __post_init__(self) -> None:
        """Refuse settings that make no sense before any data are read."""
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name.endswith("_axes"):
                if not set(value) <= {0, 1, 2}:
                    raise ValueError(f"{field.name} must be axes out of 0, 1, 2, got {value}")
            elif value < 0 or (value > 1 and not field.name.startswith(("gamma", "shift", "noise_sd"))):
                raise ValueError(f"{field.name} is out of range, got {field.name}={value}")

    def __call__(
        self,
        image: NDArray[np.float32],
        target: NDArray[np.uint8],
        components: NDArray[np.int32] | None,
        rng: np.random.Generator,
        *,
        spacing_mm: Sequence[float] = (1.0, 1.0, 1.0),
    ) -> Patch:
        """Change one patch; what comes in is left as it is.

        Args:
            image: (C, X, Y, Z) float32, 0 outside the brain.
            target: (K, X, Y, Z).
            components: (K, X, Y, Z), or None where nobody needs them.
            rng: All randomness comes from here.
            spacing_mm: Voxel size, which says what may be turned by 90 degrees.

        Returns:
            The three again. The image is contiguous; target and components may be views with other strides.
        """
        turns = self._turns(image.shape[1:], spacing_mm, rng)
        flips = [axis for axis in self.flip_axes if rng.random() < self.flip_probability]
        image = np.array(_moved(image, flips, turns), dtype=np.float32, order="C")  # the one copy
        self._change_intensities(image, rng)
        return image, _moved(target, flips, turns), None if components is None else _moved(components, flips, turns)

    def _turns(
        self, shape: Sequence[int], spacing_mm: Sequence[float], rng: np.random.Generator
    ) -> list[tuple[tuple[int, int], int]]:
        """The plane and the number of quarter turns of each rotation."""
        turns = []
        for axis in self.rotation_axes:
            a, b = (other for other in range(3) if other != axis)
            square = shape[a] == shape[b] and np.isclose(spacing_mm[a], spacing_mm[b], rtol=0.01)
            if rng.random() < self.rotation_probability:
                turns.append(((a, b), int(rng.integers(1, 4)) if square and self.quarter_turns else 2))
        return turns

    def _change_intensities(self, image: NDArray[np.float32], rng: np.random.Generator) -> None:
        """Change the patch's own copy, channel by channel, then put the background back to 0."""
        brain = (image != 0).any(axis=0)
        for channel in image:
            self._change_channel(channel, rng)
        if self.dropout_probability:
            dropped = rng.random(len(image)) < self.dropout_probability
            image[dropped & ~dropped.all()] = 0
        image *= brain

    def _change_channel(self, channel: NDArray[np.float32], rng: np.random.Generator) -> None:
        if rng.random() < self.gamma_probability:
            _bend(channel, exponent=np.exp(rng.uniform(-self.gamma, self.gamma)))
        if rng.random() < self.contrast_probability:
            _bend(channel, s_curve=rng.uniform(-self.contrast, self.contrast))
        if rng.random() < self.scale_probability:
            channel *= np.float32(rng.uniform(1 - self.scale, 1 + self.scale))
        if rng.random() < self.shift_probability:
            channel += np.float32(rng.uniform(-self.shift, self.shift))
        if rng.random() < self.noise_probability:
            noise = rng.standard_normal(channel.shape, dtype=np.float32)
            noise *= np.float32(rng.uniform(0, self.noise_sd))
            channel += noise


def _bend(channel: NDArray[np.float32], *, exponent: float = 1.0, s_curve: float = 0.0) -> None:
    """Send the values through a monotone curve from [smallest, largest] onto itself, in place."""
    low, high = channel.min(), channel.max()
    if not low < high:
        return
    channel -= low
    channel /= high - low
    if exponent != 1.0:
        np.power(channel, np.float32(exponent), out=channel)
    if s_curve:
        c = np.float32(s_curve)
        factor = 2 * c * channel
        factor -= 3 * c
        factor *= channel
        factor += 1 + c  # 1 + c (1 - t)(1 - 2 t)
        channel *= factor
    channel *= high - low
    channel += low


def _moved(array: NDArray[Any], flips: Sequence[int], turns: Sequence[tuple[tuple[int, int], int]]) -> NDArray[Any]:
    """A view, mirrored and turned over its last three axes."""
    moved: NDArray[Any] = np.flip(array, axis=tuple(axis + 1 for axis in flips))
    for (a, b), quarter_turns in turns:
        moved = np.rot90(moved, quarter_turns, axes=(a + 1, b + 1))
    return moved
