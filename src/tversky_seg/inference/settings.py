"""Inference settings: plain values that are kept with the checkpoint."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tversky_seg.inference.operating_point import DEFAULT_PEAK, OperatingPoint, check_goal
from tversky_seg.inference.sliding_window import SlidingWindow
from tversky_seg.metrics.temperature import calibrated_threshold

MAX_BATCH_VOXELS = 2**27  # two windows of 512 x 512 x 256, or sixteen of 203 a side


@dataclass(frozen=True)
class Inference:
    """How volumes are predicted and masks are made.

    Args:
        patch_size: Sides of a window in voxels, one number or three; "whole": the volume in one
            window if memory allows; None: those of training.
        overlap: Share of a window's side that the next window covers again, in [0, 1).
        window: Weights of a window's voxels: "bspline", "gaussian" or "uniform".
        spline_order: Order of the bspline window; 2 is that of Hashemi et al. (arXiv:1803.11078).
        tta: Views of each window whose mean is taken: "none", "rotations180" (four), "flips8", or a
            list of views, as [none, x, yz]; see `tta.views`.
        batch_size: Number of windows, or views of them, that pass the network together; "auto": 2
            on the CPU, on CUDA as many as the free memory suggests.
        goal: Goal for choosing threshold, smallest lesion and lowest peak on the validation set:
            "dice", "f2", "lesion_f1", "recall=0.9" (of voxels) or "lesion_recall=0.9"; see
            `operating_point`.
        threshold: Probability from which a voxel belongs to the mask, in [0, 1], or one for each
            class; None: as chosen on validation, otherwise 0.5.
        min_volume_mm3: Size below which a lesion is removed from the mask, or one for each class;
            None: as chosen on validation, otherwise 0.
        min_peak: Probability that at least one voxel of a lesion must reach for it to stay in the
            mask, in [0, 1], or one for each class; 0: none is removed; None: as chosen on
            validation, otherwise 0.9.
        temperature: Number by which the logits of the probability are divided, or one for each
            class; 1: the probability as the network gives it; None: as fitted on validation,
            otherwise 1. A threshold or peak that is set is one of the probability after that.
        crop_labelled: Whether a case that has a label is predicted as it would be trained on: its
            label is read, and only the box around `data.crop_values` is predicted. The rest of the
            mask is empty. For tables of papers that test so; masks of new cases do not need it.

    Raises:
        ValueError: A value out of its range.
    """

    patch_size: int | Sequence[int] | str | None = None
    overlap: float = 0.5
    window: str = "bspline"
    spline_order: int = 2
    tta: str | Sequence[str] = "none"
    batch_size: int | str = "auto"
    goal: str = "dice"
    threshold: float | Mapping[str, float] | None = None
    min_volume_mm3: float | Mapping[str, float] | None = None
    min_peak: float | Mapping[str, float] | None = None
    temperature: float | Mapping[str, float] | None = None
    crop_labelled: bool = False

    def __post_init__(self) -> None:
        """Check all values, before any data are read."""
        # SlidingWindow checks its own values; any size will do while that of training is unknown.
        windows = self._windows_of("whole" if self.patch_size is None else self.patch_size)
        # A checkpoint may come from a stranger, and its windows must not take all memory.
        n_windows = self.batch_size if isinstance(self.batch_size, int) else 1
        n_voxels = 0 if windows.is_whole else math.prod(windows.sides) * n_windows
        if n_voxels > MAX_BATCH_VOXELS:
            raise ValueError(
                f"patch_size and batch_size must give at most {MAX_BATCH_VOXELS} voxels in a "
                f"batch of windows, got {self.patch_size} and {self.batch_size}"
            )
        check_goal(self.goal)
        for threshold in _values(self.threshold):
            if not 0 <= threshold <= 1:
                raise ValueError(f"threshold must lie in [0, 1], got {threshold}")
        for peak in _values(self.min_peak):
            if not 0 <= peak <= 1:
                raise ValueError(f"min_peak must lie in [0, 1], got {peak}")
        for volume in _values(self.min_volume_mm3):
            if not volume >= 0:
                raise ValueError(f"min_volume_mm3 must be >= 0, got {volume}")
        for temperature in _values(self.temperature):
            if not 0 < temperature < math.inf:
                raise ValueError(f"temperature must be above 0, got {temperature}")

    @property
    def windows(self) -> SlidingWindow:
        """The windows that are set here.

        Raises:
            ValueError: `patch_size` is None.
        """
        if self.patch_size is None:
            raise ValueError("inference.patch_size must be set to predict, got None")
        return self._windows_of(self.patch_size)

    def threshold_of(self, class_name: str) -> float:
        """Return the threshold of a class; 0.5 if none was chosen."""
        return _value_of(class_name, self.threshold, default=0.5)

    def min_volume_of(self, class_name: str) -> float:
        """Return the smallest lesion of a class in mm3; 0 if none was chosen."""
        return _value_of(class_name, self.min_volume_mm3, default=0.0)

    def min_peak_of(self, class_name: str) -> float:
        """Return the lowest peak of a lesion of a class; 0.9 if none was chosen."""
        return _value_of(class_name, self.min_peak, default=DEFAULT_PEAK)

    def temperature_of(self, class_name: str) -> float:
        """Return the temperature of a class; 1 if none was fitted."""
        return _value_of(class_name, self.temperature, default=1.0)

    def operating_points(self, class_names: Iterable[str]) -> dict[str, OperatingPoint]:
        """Return how the probability of each class becomes a mask."""
        points = {}
        for name in class_names:
            points[name] = OperatingPoint(
                threshold=self.threshold_of(name),
                min_volume_mm3=self.min_volume_of(name),
                min_peak=self.min_peak_of(name),
            )
        return points

    def temperatures(self, class_names: Iterable[str]) -> dict[str, float]:
        """Return the temperature of each class."""
        return {name: self.temperature_of(name) for name in class_names}

    def with_operating_point(self, chosen: Mapping[str, Any]) -> Inference:
        """Fill in what validation chose, where it is not set.

        Args:
            chosen: A checkpoint, or any mapping with "threshold", "min_volume_mm3", "min_peak" and
                "temperature". Its threshold and peak are of the network's probability, at
                temperature 1.
        """
        temperature = self.temperature
        if temperature is None:
            temperature = chosen.get("temperature")
        threshold = self.threshold
        if threshold is None:
            threshold = _at_temperature(chosen.get("threshold"), temperature)
        min_volume_mm3 = self.min_volume_mm3
        if min_volume_mm3 is None:
            min_volume_mm3 = chosen.get("min_volume_mm3")
        min_peak = self.min_peak
        if min_peak is None:
            min_peak = _at_temperature(chosen.get("min_peak"), temperature)
        return replace(
            self,
            threshold=threshold,
            min_volume_mm3=min_volume_mm3,
            min_peak=min_peak,
            temperature=temperature,
        )

    def _windows_of(self, patch_size: int | Sequence[int] | str) -> SlidingWindow:
        return SlidingWindow(
            patch_size=patch_size,
            overlap=self.overlap,
            window=self.window,
            spline_order=self.spline_order,
            batch_size=self.batch_size,
            tta=self.tta,
        )


def _at_temperature(
    threshold: float | Mapping[str, float] | None, temperature: float | Mapping[str, float] | None
) -> float | dict[str, float] | None:
    """Move a threshold or peak, or that of each class, as the temperature moves probabilities."""
    if threshold is None:
        return None
    if not isinstance(threshold, Mapping):
        if isinstance(temperature, Mapping):
            threshold = dict.fromkeys(temperature, threshold)
        else:
            return calibrated_threshold(threshold, 1.0 if temperature is None else temperature)
    moved = {}
    for name, value in threshold.items():
        moved[name] = calibrated_threshold(value, _value_of(name, temperature, default=1.0))
    return moved


def _values(setting: float | Mapping[str, float] | None) -> list[float]:
    if setting is None:
        return []
    if not isinstance(setting, Mapping):
        return [setting]
    return [value for value in setting.values() if value is not None]


def _value_of(
    class_name: str, setting: float | Mapping[str, float] | None, *, default: float
) -> float:
    # One value for all classes, or one for each; a class that is not listed takes the default.
    value = setting.get(class_name) if isinstance(setting, Mapping) else setting
    if value is None:
        return default
    return value
