"""Deep supervision: outputs of the network, the loss over them, and all else unchanged."""

import copy
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from helpers.trainers import Blobs, assert_same, weights
from tversky_seg.config import check_network
from tversky_seg.losses import BCELoss, FocalLoss, TverskyLoss
from tversky_seg.losses.deep_supervision import DeepSupervision, with_deep_supervision
from tversky_seg.models import UNet3D
from tversky_seg.training.trainer import Trainer


def a_network(**settings: object) -> UNet3D:
    torch.manual_seed(0)
    return UNet3D(**{"in_channels": 2, "out_channels": 3, "n_levels": 3, "width": 4} | settings)


def a_batch(*sides: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Image, target, voxel weights."""
    draw = torch.Generator().manual_seed(1)
    shape = (2, 3, *sides)
    target = (torch.rand(shape, generator=draw) > 0.9).float()
    return (
        torch.randn((2, 2, *sides), generator=draw),
        target,
        1 + torch.rand(shape, generator=draw),
    )


@pytest.mark.parametrize("sides", [(8, 8, 8), (9, 12, 7)])
def test_training_gives_a_resolution_for_each_head_and_prediction_the_full_one(
    sides: tuple[int, ...],
) -> None:
    network, image = a_network(deep_supervision=2), a_batch(*sides)[0]
    scales = network(image)
    assert [tuple(logits.shape) for logits in scales] == [
        (2, 3, *(-(-side // 2**scale) for side in sides)) for scale in range(3)
    ]
    predicted = network.eval()(image)
    assert torch.equal(predicted, scales[0])


def test_heads_change_nothing_else_and_are_off_by_default() -> None:
    plain, deep = a_network(), a_network(deep_supervision=2)
    assert not [name for name in plain.state_dict() if "coarse" in name]
    assert_same(
        plain.state_dict(), {k: v for k, v in deep.state_dict().items() if "coarse" not in k}
    )
    extra = sum(p.numel() for p in deep.parameters()) - sum(p.numel() for p in plain.parameters())
    assert extra == (8 * 3 + 3) + (16 * 3 + 3)
    assert torch.equal(plain(a_batch(8, 8, 8)[0]), deep(a_batch(8, 8, 8)[0])[0])


@pytest.mark.parametrize("loss", [TverskyLoss(), BCELoss(), FocalLoss()])
def test_weight_on_full_resolution_alone_is_the_plain_loss(loss: nn.Module) -> None:
    image, target, weight = a_batch(9, 8, 8)
    scales = a_network(deep_supervision=2)(image)
    for given in (None, weight):
        value = DeepSupervision(loss, weights=[1, 0, 0])(scales, target, given)
        assert torch.equal(value, loss(scales[0], target, given))
        assert torch.equal(
            with_deep_supervision(loss)(scales[0], target, given), loss(scales[0], target, given)
        )


def test_the_sum_over_resolutions_by_hand() -> None:
    image, target, weight = a_batch(8, 8, 8)
    scales, loss = a_network(deep_supervision=2)(image), BCELoss()
    expected = torch.zeros(())
    for scale, share in enumerate((4 / 7, 2 / 7, 1 / 7)):
        edge = 2**scale
        expected = expected + share * loss(
            scales[scale], F.max_pool3d(target, edge), F.max_pool3d(weight, edge)
        )
    assert torch.allclose(DeepSupervision(loss)(scales, target, weight), expected)


def test_a_lesion_of_one_voxel_is_seen_at_every_resolution() -> None:
    target = torch.zeros(1, 1, 9, 9, 9)
    target[0, 0, 5, 3, 8] = 1
    calls = []

    class Watched(nn.Module):
        def forward(
            self, logits: torch.Tensor, target: torch.Tensor, weight: torch.Tensor
        ) -> torch.Tensor:
            calls.append((logits.shape == target.shape, target.nonzero()[:, 2:].tolist()))
            return logits.sum()

    scales = [torch.zeros(1, 1, side, side, side) for side in (9, 5, 3)]
    DeepSupervision(Watched())(scales, target)
    assert calls == [(True, [[5, 3, 8]]), (True, [[2, 1, 4]]), (True, [[1, 0, 2]])]


def test_the_gradient_reaches_each_head() -> None:
    network = a_network(deep_supervision=2)
    image, target, _ = a_batch(8, 8, 8)
    with_deep_supervision(TverskyLoss())(network(image), target).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in network.parameters())


@pytest.mark.parametrize("n", [-1, 3])
def test_more_heads_than_coarser_levels_are_refused(n: int) -> None:
    with pytest.raises(ValueError, match=rf"deep_supervision.* {n}$"):
        a_network(deep_supervision=n)


def test_weights_that_do_not_fit_are_refused() -> None:
    for weights_given in ([], [1, -1]):
        with pytest.raises(ValueError, match="weights"):
            DeepSupervision(BCELoss(), weights=weights_given)
    image, target, _ = a_batch(8, 8, 8)
    with pytest.raises(ValueError, match=r"weights.*3.*\[1, 0\]"):
        DeepSupervision(BCELoss(), weights=[1, 0])(a_network(deep_supervision=2)(image), target)


def test_the_shapes_of_a_network_with_heads_can_be_checked() -> None:
    check_network(a_network(deep_supervision=2), (2, 2, 9, 8, 8), n_classes=3)


def test_it_compiles_and_exports() -> None:
    network, image = a_network(deep_supervision=1), a_batch(8, 8, 8)[0]
    compiled = torch.compile(network, backend="aot_eager", fullgraph=True)
    assert all(
        torch.allclose(a, b, atol=1e-5)
        for a, b in zip(compiled(image), network(image), strict=True)
    )
    torch.compiler.reset()
    network.eval()
    exported = torch.export.export(network, (image,)).module()
    assert torch.allclose(exported(image), network(image), atol=1e-5)


def test_a_training_with_heads_averages_recomputes_and_predicts(tmp_path: Path) -> None:
    trained = []
    settings = {"max_steps": 3, "ema_decay": 0.5, "accumulate": 2, "device": "cpu"}
    for recompute in (False, True):
        network = a_network(in_channels=1, out_channels=1, deep_supervision=2)
        best = Trainer(model=network, loss=TverskyLoss(), recompute=recompute, **settings).fit(
            Blobs(), tmp_path / str(recompute)
        )
        trained.append(weights(best))
    assert_same(*trained)
    assert "coarse_heads.0.weight" in trained[0]
    again = copy.deepcopy(network).eval()
    again.load_state_dict(trained[0])
    assert again(Blobs()[0].image).shape == (2, 1, 8, 8, 8)
