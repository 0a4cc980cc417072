"""Several networks as one: mean probability or votes, and maps of where members and views are unsure or disagree."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from tversky_seg.data.preprocessing.prepared_case import PreparedCase
from tversky_seg.inference.sliding_window import predict_volume
from tversky_seg.inference.tta import VIEWS

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
            raise ValueError(
                f"combine must be one of {', '.join(COMBINATIONS)}, got {self.combine}"
            )
        if self.uncertainty not in (None, *UNCERTAINTIES):
            raise ValueError(
                f"uncertainty must be one of {', '.join(UNCERTAINTIES)} or null, got {self.uncertainty}"
            )
        n_parts = sum(len(member.views) if self.combine == "mean" else 1 for member in self.members)
        if self.uncertainty == "disagreement" and n_parts < 2:
            raise ValueError(
                "uncertainty must compare several checkpoints or views (inference.tta), got one of one"
            )

    def predict(
        self,
        prepared: PreparedCase,
        *,
        device: torch.device | str | None = None,
        precision: str = "fp32",
    ) -> tuple[Tensor, Tensor | None]:
        """Probability and uncertainty (K, X, Y, Z) float32 on the network's grid; None for what was not asked for.

        Beside the members one volume of the output's shape is held for a mean, one and a half for votes, four for
        the two volumes of mean and disagreement.
        """
        run = partial(self._run, prepared, device=device, precision=precision)
        if self.combine == "mean" and self.uncertainty == "disagreement":
            return self._with_disagreement(run)
        mean = self._votes(run) if self.combine == "vote" else self._mean(run)
        return mean, None if self.uncertainty is None else entropy(mean)

    def _mean(self, run: Callable[..., Tensor]) -> Tensor:
        share = 1 / len(self.members)
        mean = run(self.members[0]).mul_(share)
        for member in self.members[1:]:
            run(member, into=mean, share=share)
        return mean

    def _votes(self, run: Callable[..., Tensor]) -> Tensor:
        """The share of members that vote for lesion."""
        probability = run(self.members[0])
        votes = _vote(self.members[0], probability).to(
            torch.uint8 if len(self.members) < 256 else torch.int32
        )
        for member in self.members[1:]:
            votes += _vote(member, run(member, into=probability.zero_()))
        return probability.copy_(votes).div_(len(self.members))

    def _with_disagreement(self, run: Callable[..., Tensor]) -> tuple[Tensor, Tensor]:
        """Mean and disagreement of members and views."""
        mean: Tensor | None = None
        parts: Tensor | None = None
        for member in self.members:
            for view in member.views:
                share, probability = (
                    1 / (len(self.members) * len(member.views)),
                    run(member, tta=[view]),
                )
                parts = _add(parts, entropy(probability), share)
                mean = _add(mean, probability, share)
        assert mean is not None
        assert parts is not None
        return mean, entropy(mean).sub_(parts).clamp_(0, 1)

    def _run(self, prepared: PreparedCase, member: Member, **settings: Any) -> Tensor:
        """What one member says of a case, as `predict_volume` gives it."""
        return predict_volume(
            member.network,
            prepared.image,
            image_scale=prepared.image_scale,
            foreground=prepared.foreground,
            **{**member.windows, **settings},
        )


def _vote(member: Member, probability: Tensor) -> Tensor:
    return probability >= torch.tensor(member.threshold).view(-1, 1, 1, 1)


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
