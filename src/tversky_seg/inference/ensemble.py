"""Ensemble: several networks as one, by mean or vote, with maps of their uncertainty."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tversky_seg.data.preprocessing.prepared_case import PreparedCase
from tversky_seg.inference.lesion_fusion import fuse_lesions
from tversky_seg.inference.loaded_case import LoadedCase, load_case
from tversky_seg.inference.sliding_window import SlidingWindow, predict_by_windows
from tversky_seg.inference.tta import view_names
from tversky_seg.metrics.temperature import calibrated

COMBINATIONS = ("mean", "vote", "lesions")
UNCERTAINTIES = ("entropy", "disagreement")
SLAB = 16  # planes whose entropies are computed at once


@dataclass(frozen=True, eq=False)
class Member:
    """A trained network and how it predicts.

    Attributes:
        network: Module (B, C, X, Y, Z) -> logits (B, K, X, Y, Z).
        windows: Its sliding window.
        checksum: SHA-256 of its checkpoint, kept in predictions.json.
        threshold: Probability from which a voxel is in its mask, or has its vote, one for each of
            the K classes.
        temperature: Number by which the logits of its probability are divided, one for each class.
    """

    network: nn.Module
    windows: SlidingWindow
    checksum: str = ""
    threshold: Sequence[float] = (0.5,)
    temperature: Sequence[float] = (1.0,)

    @property
    def view_names(self) -> tuple[str, ...]:
        """The names of its views."""
        return view_names(self.windows.tta)

    @property
    def is_calibrated(self) -> bool:
        """Whether its temperature changes any probability."""
        return any(temperature != 1 for temperature in self.temperature)

    def calibrate(self, probability: Tensor) -> Tensor:
        """Bring a probability (K, X, Y, Z) to its temperature; at 1 it is the same volume."""
        if not self.is_calibrated:
            return probability
        result = torch.empty_like(probability)
        temperatures = spread(self.temperature, n=len(probability))
        for k, temperature in enumerate(temperatures):
            # Slab by slab, since the logits would be further volumes.
            for start in range(0, probability.shape[1], SLAB):
                planes = probability[k, start : start + SLAB].numpy()
                result[k, start : start + SLAB] = torch.from_numpy(calibrated(planes, temperature))
        return result

    def vote(self, probability: Tensor) -> Tensor:
        """Vote on each voxel and class, (K, X, Y, Z) bool."""
        # One threshold for all classes is spread over them.
        return probability >= torch.tensor(self.threshold).view(-1, 1, 1, 1)


PartMasks = list[NDArray[np.int64]]
"""Voxels that one network or view calls lesion, as sorted flat indices, by class."""


@dataclass(frozen=True, eq=False)
class EnsemblePrediction:
    """What an ensemble says of a case, on the network's grid.

    Attributes:
        probability: (K, X, Y, Z) float32.
        uncertainty: The same; None if it was not asked for.
        parts: Masks of the members or views; empty where they were not told apart.
    """

    probability: Tensor
    uncertainty: Tensor | None = None
    parts: Sequence[PartMasks] = ()


@dataclass(frozen=True, eq=False)
class Ensemble:
    """Networks that predict together; one network is an ensemble of one.

    With members m = 1 … M, each the mean over its own V views v, at its own temperature, the
    probability of a voxel is

        mean: p = 1/M sum_m p_m,   p_m = 1/V sum_v p_mv
        vote: p = 1/M sum_m [p_m >= threshold_m]
        lesions: the votes of all views on whole lesions, p_mv >= threshold_m; see `fuse_lesions`

    and its uncertainty, in bits, with H(p) = -p log2 p - (1 - p) log2(1 - p), in [0, 1]:

        entropy:      H(p), which is high where the members are unsure, alike or not;
        disagreement: H(p) - 1/M sum_m 1/V sum_v H(p_mv), the mean Kullback-Leibler divergence of
                      the parts from their mean: 0 where all give the same probability, 1 where half
                      are sure of lesion and half sure of none.

    Both for deep ensembles in Lakshminarayanan et al. 2017 (arXiv:1612.01474); views as further
    members: Wang et al. 2019 (arXiv:1807.07356). With votes, p_m is a vote, 0 or 1, and both are
    the entropy of the votes; so it is with lesions, of the p that is made of them.

    The probability of one network alone is given at temperature 1: `temperature` says what is still
    to do, after the resampling to another grid, so that the same mask comes out at any temperature.

    Args:
        members: One or more.
        combine: "mean", "vote" or "lesions".
        uncertainty: "entropy", "disagreement" or None.

    Raises:
        ValueError: Another name, or disagreement or lesions without two members or views.
    """

    members: Sequence[Member]
    combine: str = "mean"
    uncertainty: str | None = None

    def __post_init__(self) -> None:
        if self.combine not in COMBINATIONS:
            raise ValueError(
                f"combine must be one of {', '.join(COMBINATIONS)}, got {self.combine}"
            )
        if self.uncertainty not in (None, *UNCERTAINTIES):
            raise ValueError(
                f"uncertainty must be one of {', '.join(UNCERTAINTIES)} or null, "
                f"got {self.uncertainty}"
            )
        if self.combine == "lesions" and self._n_parts() < 2:
            raise ValueError(
                "combine must be mean for one network without views (lesions are those of several "
                "checkpoints or views, inference.tta), got lesions"
            )
        if self.uncertainty == "disagreement" and self._n_parts() < 2:
            raise ValueError(
                "uncertainty must be entropy for one network without views (disagreement needs "
                "several checkpoints or views, inference.tta), got disagreement"
            )

    @property
    def temperature(self) -> Sequence[float]:
        """Temperature, one for each class or for all, that `predict` leaves to its caller."""
        is_left = len(self.members) == 1 and self.combine == "mean"
        return self.members[0].temperature if is_left else (1.0,)

    def predict(
        self,
        prepared: PreparedCase | LoadedCase,
        *,
        device: torch.device | str | None = None,
        precision: str = "fp32",
    ) -> tuple[Tensor, Tensor | None]:
        """Predict probability and uncertainty of a case on the network's grid.

        Besides the members, one volume of the output's shape is held for a mean, one and a half for
        votes, four for the two volumes of mean and disagreement; on CUDA one more, and one more
        for several networks that are calibrated.

        Args:
            prepared: The case; `load_case` may read it ahead.
            device: Device to compute on; None: each network's own.
            precision: "fp32", "tf32", "bf16" or "fp16" inside the networks.

        Returns:
            Two volumes (K, X, Y, Z) float32; None if `uncertainty` is None.
        """
        predicted = self.predict_parts(prepared, device=device, precision=precision)
        return predicted.probability, predicted.uncertainty

    def predict_parts(
        self,
        prepared: PreparedCase | LoadedCase,
        *,
        device: torch.device | str | None = None,
        precision: str = "fp32",
    ) -> EnsemblePrediction:
        """Predict a case as `predict` does, with the masks of the parts where these are made.

        They are for votes, for lesions, and for the disagreement of a mean. A mask takes 8 bytes a
        lesion voxel.
        """
        if isinstance(prepared, PreparedCase):
            prepared = load_case(prepared, torch.device("cpu"))
        case = _CaseOnDevice(prepared, device, precision)
        if self.combine == "mean" and self.uncertainty == "disagreement":
            return self._mean_and_disagreement(case)
        predicted = self._combined(case)
        if self.uncertainty is None:
            return predicted
        probability = predicted.probability
        if self.combine == "mean" and len(self.members) == 1:
            probability = self.members[0].calibrate(probability)
        return replace(predicted, uncertainty=entropy(probability))

    def _n_parts(self) -> int:
        """Count what can disagree: votes of members, or views of members."""
        if self.combine == "vote":
            return len(self.members)
        return sum(len(member.view_names) for member in self.members)

    def _combined(self, case: _CaseOnDevice) -> EnsemblePrediction:
        if self.combine == "vote":
            return self._votes(case)
        if self.combine == "lesions":
            return self._lesions(case)
        return EnsemblePrediction(self._mean(case))

    def _mean(self, case: _CaseOnDevice) -> Tensor:
        share = 1 / len(self.members)
        if len(self.members) == 1:
            return case.predict(self.members[0])
        # The first network makes the volume, to which the others add window by window.
        mean = self.members[0].calibrate(case.predict(self.members[0])).mul_(share)
        for member in self.members[1:]:
            if member.is_calibrated:
                mean.add_(member.calibrate(case.predict(member)), alpha=share)
            else:
                case.predict(member, into=mean, share=share)
        return mean

    def _votes(self, case: _CaseOnDevice) -> EnsemblePrediction:
        """Compute the share of members that vote for a class."""
        first = self.members[0]
        probability = case.predict(first)
        # A byte for each voxel instead of a second volume of floats.
        count_type = torch.uint8 if len(self.members) < 256 else torch.int32
        mask = first.vote(first.calibrate(probability))
        parts = [_voxels_of(mask)]
        votes = mask.to(count_type)
        for member in self.members[1:]:
            # The same volume again, emptied.
            case.predict(member, into=probability.zero_())
            mask = member.vote(member.calibrate(probability))
            parts.append(_voxels_of(mask))
            votes += mask
        return EnsemblePrediction(probability.copy_(votes).div_(len(self.members)), parts=parts)

    def _lesions(self, case: _CaseOnDevice) -> EnsemblePrediction:
        """Fuse the lesions of all views of all members."""
        parts = []
        probability = torch.zeros(())
        for _, one_view in self._shares_of_views():
            probability = case.predict(one_view)
            parts.append(_voxels_of(one_view.vote(one_view.calibrate(probability))))
        # The last volume is filled anew: its shape is that of the result.
        for k, volume in enumerate(probability):
            of_class = [voxels[k] for voxels in parts]
            x, y, z = volume.shape
            volume.copy_(torch.from_numpy(fuse_lesions(of_class, (x, y, z))))
        return EnsemblePrediction(probability, parts=parts)

    def _mean_and_disagreement(self, case: _CaseOnDevice) -> EnsemblePrediction:
        mean = torch.zeros(())
        written = torch.zeros(())
        mean_entropy = torch.zeros(())
        # The probability of one network is calibrated at the end, that of its views only here.
        is_left = len(self.members) == 1 and self.members[0].is_calibrated
        parts = []
        for share, one_view in self._shares_of_views():
            raw = case.predict(one_view)
            probability = one_view.calibrate(raw)
            parts.append(_voxels_of(one_view.vote(probability)))
            # Only the first prediction tells the number of classes.
            if mean.ndim == 0:
                mean = torch.zeros_like(probability)
                mean_entropy = torch.zeros_like(probability)
                written = torch.zeros_like(raw) if is_left else mean
            mean_entropy.add_(entropy(probability), alpha=share)
            mean.add_(probability, alpha=share)
            if is_left:
                written.add_(raw, alpha=share)
        # Rounding may bring a difference of nearly 0 below it.
        disagreement = entropy(mean).sub_(mean_entropy).clamp_(0, 1)
        return EnsemblePrediction(written, disagreement, parts)

    def _shares_of_views(self) -> Iterator[tuple[float, Member]]:
        """Yield each view of each member as a member of its own, with its share of the mean."""
        for member in self.members:
            share = 1 / (len(self.members) * len(member.view_names))
            for view in member.view_names:
                yield share, replace(member, windows=replace(member.windows, tta=[view]))


@dataclass(frozen=True, eq=False)
class _CaseOnDevice:
    """A case, and where and how precisely networks predict it."""

    loaded: LoadedCase
    device: torch.device | str | None
    precision: str

    def predict(self, member: Member, *, into: Tensor | None = None, share: float = 1.0) -> Tensor:
        """Predict with one member; `into` and `share` as in `predict_by_windows`."""
        return predict_by_windows(
            member.network,
            self.loaded.image,
            member.windows,
            foreground=self.loaded.foreground,
            image_scale=self.loaded.image_scale,
            device=self.device,
            precision=self.precision,
            into=into,
            share=share,
        )


def _voxels_of(mask: Tensor) -> PartMasks:
    """List the voxels of a mask (K, X, Y, Z) by class: few, where a volume would be many."""
    return [np.flatnonzero(of_class.numpy()) for of_class in mask]


def spread(values: Sequence[float], *, n: int) -> Sequence[float]:
    """Repeat one value for n classes; of n values each stays."""
    return [values[0]] * n if len(values) == 1 else values


def entropy(probability: Tensor) -> Tensor:
    """Compute the entropy of lesion or not, in bits: from 0 (sure) to 1 (p = 1/2).

    H(p) = -p log2 p - (1 - p) log2(1 - p)

    Args:
        probability: (K, X, Y, Z) in [0, 1].
    """
    bits = torch.empty_like(probability)
    # Slab by slab, since the two terms would be two more volumes.
    for start in range(0, probability.shape[1], SLAB):
        p = probability[:, start : start + SLAB]
        nats = torch.special.entr(p) + torch.special.entr(1 - p)
        bits[:, start : start + SLAB].copy_(nats).div_(math.log(2))
    return bits
