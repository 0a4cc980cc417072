"""Several networks as one: mean probability or votes, and maps of where members and views are unsure or disagree."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tversky_seg.data.prepared import PreparedCase
from tversky_seg.views import VIEWS
from tversky_seg.windows import predict_volume

COMBINATIONS = ("mean", "vote")
UNCERTAINTIES = ("entropy", "disagreement")
SLAB = 16  # planes of which entropies are computed at once


@dataclass(frozen=True, eq=False)
class Member:
    """A trained network and how it predicts.

    Attributes:
        network: Images (B, C, X, Y, Z) -> logits (B, K, X, Y, Z).
        windows: Arguments of `predict_volume`, as `Inference.windows` gives them.
        checksum: Of its checkpoint, kept in predictions.json.
        threshold: For each class, where it votes: `probability >= threshold`.
    """

    network: nn.Module
    windows: Mapping[str, Any]
    checksum: str = ""
    threshold: Sequence[float] = (0.5,)

    @property
    def views(self) -> tuple[str, ...]:
        """The names of its views."""
        tta = self.windows.get("tta", "none")
        return VIEWS[tta] if isinstance(tta, str) else tuple(tta)


@dataclass(frozen=True, eq=False)
class Ensemble:
    """Networks that predict together; one network is an ensemble of one.

    With members m = 1 … M, each the mean over its own V views v, the probability of a voxel is

        mean: p = 1/M sum_m p_m,   p_m = 1/V sum_v p_mv        vote: p = 1/M sum_m [p_m >= threshold_m]

    and its uncertainty, in bits, with H(p) = -p log2 p - (1 - p) log2(1 - p), in [0, 1]:

        entropy:      H(p), which is high where the members are unsure, alike or not;
        disagreement: H(p) - 1/M sum_m 1/V sum_v H(p_mv), the mean Kullback-Leibler divergence of the parts from their
                      mean: 0 where all say the same, 1 where half are sure of lesion and half sure of none.

    Both for deep ensembles in Lakshminarayanan et al. 2017 (arXiv:1612.01474);
    views as further members: Wang et al. 2019 (arXiv:1807.07356). With votes, p_m is a vote, 0 or 1, and both are the
    vote entropy.

    Args:
        members: One or more.
        combine: "mean" or "vote".
        uncertainty: "entropy", "disagreement" or None.

    Raises:
        ValueError: Another word, or disagreement without two members or views.
    """

    members: Sequence[Member]
    combine: str = "mean"
    uncertainty: str | None = None

    def __post_init__(self) -> None:
        if self.combine not in COMBINATIONS:
            raise ValueError(f"combine must be one of {', '.join(COMBINATIONS)}, got {self.combine}")
        if self.uncertainty not in (None, *UNCERTAINTIES):
            raise ValueError(f"uncertainty must be one of {', '.join(UNCERTAINTIES)} or null, got {self.uncertainty}")
        n_parts = sum(len(self._parts(member)) for member in self.members)
        if self.uncertainty == "disagreement" and n_parts < 2:
            raise ValueError("uncertainty must compare several checkpoints or views (inference.tta), got one of one")

    def predict(
        self, prepared: PreparedCase, *, device: torch.device | str | None = None, precision: str = "fp32"
    ) -> tuple[Tensor, Tensor | None]:
        """Probability and uncertainty (K, X, Y, Z) float32 on the network's grid; None for what was not asked for.

        Beside the members two volumes of the output's shape are held, three with disagreement.
        """
        mean: Tensor | None = None
        parts: Tensor | None = None
        for share, probability in self._maps(prepared, device=device, precision=precision):
            if self.uncertainty == "disagreement":
                parts = _add(parts, entropy(probability), share)
            mean = _add(mean, probability, share)
        assert mean is not None
        if self.uncertainty is None:
            return mean, None
        total = entropy(mean)
        return mean, total if parts is None else total.sub_(parts).clamp_(0, 1)

    def _maps(
        self, prepared: PreparedCase, *, device: torch.device | str | None, precision: str
    ) -> Iterator[tuple[float, Tensor]]:
        """Each part's share of the mean, and its map."""
        for member in self.members:
            parts = self._parts(member)
            for tta in parts:
                probability = predict_volume(
                    member.network,
                    prepared.image,
                    image_scale=prepared.image_scale,
                    foreground=prepared.foreground,
                    device=device,
                    precision=precision,
                    **{**member.windows, "tta": tta},
                )
                if self.combine == "vote":
                    thresholds = torch.tensor(member.threshold).view(-1, 1, 1, 1)
                    probability = (probability >= thresholds).float()
                yield 1 / (len(self.members) * len(parts)), probability

    def _parts(self, member: Member) -> list[Any]:
        """What of a member is told apart: its views where a disagreement of probabilities is asked for."""
        if self.uncertainty == "disagreement" and self.combine == "mean":
            return [[name] for name in member.views]
        return [member.windows.get("tta", "none")]


def entropy(probability: Tensor) -> Tensor:
    """Entropy of lesion or not, in bits: -p log2 p - (1-p) log2(1-p), from 0 (sure) to 1 (p = 1/2).

    Args:
        probability: (K, X, Y, Z) in [0, 1].
    """
    bits = torch.empty_like(probability)
    for p, into in zip(torch.split(probability, SLAB, 1), torch.split(bits, SLAB, 1), strict=True):
        into.copy_(torch.special.entr(p) + torch.special.entr(1 - p)).div_(math.log(2))
    return bits


def _add(total: Tensor | None, part: Tensor, share: float) -> Tensor:
    """Add in place; the first part becomes the sum itself."""
    return part.mul_(share) if total is None else total.add_(part, alpha=share)
