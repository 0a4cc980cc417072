"""Settings and arguments that a loss refuses."""

import math

import pytest

from helpers.losses import each_loss, random_case
from tversky_seg.losses import (
    AsymmetricSimilarityLoss,
    BlobLoss,
    CombinedLoss,
    DiceLoss,
    FocalLoss,
    FocalTverskyLoss,
    GeneralizedDiceLoss,
    TverskyCrossEntropyLoss,
    TverskyLoss,
    WeightedBCELoss,
)


@each_loss
def test_arguments_that_do_not_fit_are_refused(loss):
    logits, target, weight = random_case()
    refused = [
        ((logits.detach().long(), target), "logits .*int64"),
        ((logits[0, 0, 0], target[0, 0, 0]), r"logits .*\(4, 3\)"),
        ((logits[:0], target[:0]), r"logits .*\(0, 2, 5, 4, 3\)"),
        ((logits, target[:1]), r"target .*\(1, 2, 5, 4, 3\)"),
        ((logits, 2 * target), "target .*0 to 2"),
        ((logits, -target), "target .*-1 to"),
        ((logits, target / 0), "target .*nan"),
        ((logits, target, weight[..., :2]), r"weight .*\(2, 2, 5, 4, 2\)"),
        ((logits, target, weight[None]), r"weight .*\(1, 2, 2, 5, 4, 3\)"),
    ]
    for arguments, message in refused:
        with pytest.raises(ValueError, match=message):
            loss(*arguments)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: TverskyLoss(alpha=-0.1), "alpha=-0.1, beta=1.1"),
        (lambda: TverskyLoss(beta=1.2), "alpha=-0.2, beta=1.2"),
        (lambda: TverskyLoss(alpha=0, beta=0), "alpha=0, beta=0"),
        (lambda: TverskyLoss(alpha=math.nan), "alpha=nan"),
        (lambda: FocalTverskyLoss(alpha=0.5, beta=math.inf), "alpha=0.5, beta=inf"),
        (lambda: TverskyLoss(smooth=-1), "smooth=-1"),
        (lambda: GeneralizedDiceLoss(smooth=math.nan), "smooth=nan"),
        (lambda: AsymmetricSimilarityLoss(b=-2), "b=-2"),
        (lambda: FocalTverskyLoss(gamma=0), "gamma=0"),
        (lambda: FocalLoss(gamma=-1), "gamma=-1"),
        (lambda: FocalLoss(alpha=1.5), "alpha=1.5"),
        (lambda: WeightedBCELoss(positive_weight=0), "positive_weight=0"),
        (lambda: BlobLoss(lesion_weight=-1), "global_weight=2.0, lesion_weight=-1"),
        (lambda: CombinedLoss(losses=[]), "0 losses"),
        (lambda: CombinedLoss(losses=[DiceLoss()], weights=[1, 2]), r"1 losses.*\[1, 2\]"),
        (lambda: CombinedLoss(losses=[DiceLoss()], weights=[-1]), r"\[-1\]"),
        (lambda: TverskyCrossEntropyLoss(tversky_weight=-1), "tversky_weight=-1"),
        (lambda: TverskyCrossEntropyLoss(beta=1.2), "alpha=-0.2, beta=1.2"),
        (
            lambda: TverskyCrossEntropyLoss(tversky_weight=0, cross_entropy_weight=0),
            "not both 0",
        ),
    ],
)
def test_settings_out_of_range_are_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()
