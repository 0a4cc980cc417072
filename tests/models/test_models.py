"""The networks: exact counts, any size, gradients, and what torch can do with them."""

import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch import nn

from tversky_seg.models import FCDenseNet3D, ResidualUNet3D, UNet3D
from tversky_seg.models.layers import normalization

CONFIGS = Path(__file__).parents[2] / "configs" / "model"


def small_unet(**settings):
    return UNet3D(**{"in_channels": 2, "out_channels": 3, "n_levels": 3, "width": 4} | settings)


def small_fc_densenet(**settings):
    small = {"growth_rate": 2, "n_layers": 2, "n_blocks": 2, "width": 4, "dropout": 0.0}
    return FCDenseNet3D(**{"in_channels": 2, "out_channels": 3} | small | settings)


def small_compact_fc_densenet(**settings):
    return small_fc_densenet(**{"n_blocks": 1, "compact": True} | settings)


def small_residual_unet(**settings):
    return ResidualUNet3D(**{"in_channels": 2, "out_channels": 3, "widths": (4, 4, 8)} | settings)


SMALL = [
    small_unet,
    small_fc_densenet,
    small_compact_fc_densenet,
    small_residual_unet,
]  # multiple 4 each
every_network = pytest.mark.parametrize("build", SMALL)


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def n_trainable(network):
    return sum(p.numel() for p in network.parameters() if p.requires_grad)


def gradients(network, image):
    network.zero_grad()
    logits = network(image)
    (
        logits
        * torch.randn(logits.shape, generator=torch.Generator().manual_seed(3), dtype=logits.dtype)
    ).sum().backward()
    return {name: p.grad.clone() for name, p in network.named_parameters()}


def image(*sides, batch=2):
    return torch.randn(batch, 2, *sides, generator=torch.Generator().manual_seed(0))


# --- the papers' structures


def test_unet_has_the_parameters_of_its_text():
    """Salehi 2017: four levels from 16 features, 3 modalities, a softmax of two planes: 1.40 M."""
    widths = [16, 32, 64, 128]
    down = sum(27 * a * b + b + 27 * b * b + b for a, b in zip([3, *widths], widths, strict=False))
    up = sum(8 * 2 * w * w + w + 27 * 2 * w * w + w + 27 * w * w + w for w in widths[:-1])
    count = n_trainable(UNet3D(in_channels=3, out_channels=2, norm=None))
    assert count == down + up + 16 * 2 + 2
    assert round(count / 1e6, 2) == 1.40


@pytest.mark.parametrize(
    ("growth_rate", "n_layers", "compact", "counts"),
    [
        (12, 4, False, (1_393_776, 1_395_072, 1_396_368)),
        (12, 4, True, (1_526_928, 1_527_312, 1_527_696)),
        (16, 5, False, (3_206_508, 3_207_804, 3_209_100)),
        (16, 5, True, (3_376_428, 3_376_812, 3_377_196)),
    ],
)
def test_fc_densenet_has_the_parameters_of_the_released_code(
    growth_rate, n_layers, compact, counts
):
    for in_channels, count in zip((3, 4, 5), counts, strict=True):
        with torch.device("meta"):
            network = FCDenseNet3D(
                in_channels=in_channels,
                out_channels=1,
                growth_rate=growth_rate,
                n_layers=n_layers,
                compact=compact,
            )
        assert n_trainable(network) == count


def test_fc_densenet_counts_its_running_statistics_as_keras_does():
    network = FCDenseNet3D(in_channels=3, out_channels=1)
    statistics = sum(b.numel() for name, b in network.named_buffers() if "running" in name)
    assert n_trainable(network) + statistics == 1_408_896


def test_residual_unet_has_the_parameters_of_the_released_code():
    with torch.device("meta"):
        network = ResidualUNet3D(in_channels=1, out_channels=1)
    assert n_trainable(network) == 11_074_306
    shortcut_biases = sum(shortcut[-1].bias.numel() for shortcut in network.shortcuts)
    assert n_trainable(network) - shortcut_biases == 11_074_098


def test_residual_unet_normalises_its_logits():
    network = small_residual_unet()
    logits = network(image(16, 16, 16))
    assert torch.allclose(logits.mean((0, 2, 3, 4)), torch.zeros(3), atol=1e-5)
    assert torch.allclose(logits.std((0, 2, 3, 4)), torch.ones(3), atol=1e-2)


def test_unet_level_by_hand():
    """One level without normalisation is conv, ReLU, conv, ReLU, 1^3 conv."""
    network = UNet3D(in_channels=2, out_channels=1, n_levels=1, width=3, norm=None)
    block, patch = network.encoder[0], image(5, 6, 7)
    hidden = F.relu(F.conv3d(patch, block.conv1.weight, block.conv1.bias, padding=1))
    hidden = F.relu(F.conv3d(hidden, block.conv2.weight, block.conv2.bias, padding=1))
    assert torch.allclose(
        network(patch), F.conv3d(hidden, network.head.weight, network.head.bias), atol=1e-6
    )


def test_dense_layer_sees_all_features_before_it():
    block = small_fc_densenet().encoder[0]
    assert [layer.path[2].in_channels for layer in block.layers] == [4, 6]
    assert block(torch.rand(2, 4, 4, 4, 4), only_new=False).shape[1] == 8
    assert block(torch.rand(2, 4, 4, 4, 4), only_new=True).shape[1] == 4


# --- any size


@every_network
@pytest.mark.parametrize("sides", [(8, 8, 8), (5, 6, 7), (9, 4, 13), (1, 17, 2)])
def test_logits_have_the_image_s_own_size(build, sides):
    assert build()(image(*sides)).shape == (2, 3, *sides)


@every_network
def test_padding_is_zeros_at_the_far_end(build):
    network, patch = build().eval(), image(6, 7, 8)
    padded = F.pad(patch, (0, 0, 0, 1, 0, 2))
    assert torch.allclose(network(patch), network(padded)[..., :6, :7, :], atol=1e-6)


@every_network
def test_image_is_not_modified(build):
    patch = image(8, 8, 8)
    before = patch.clone()
    gradients(build(norm=None), patch)
    assert torch.equal(patch, before)


@every_network
def test_batch_of_one_with_one_voxel_at_the_bottom_names_the_multiple(build):
    network = build(norm="batch")
    with pytest.raises(ValueError, match=r"4x4x3.*more than 4.*norm=group"):
        network(image(4, 4, 3, batch=1))
    assert network(image(4, 4, 3, batch=2)).shape == (2, 3, 4, 4, 3)
    assert network.eval()(image(4, 4, 3, batch=1)).shape == (1, 3, 4, 4, 3)
    with pytest.raises(ValueError, match="norm=instance"):
        build(norm="instance").eval()(image(4, 4, 4, batch=2))


@every_network
def test_group_norm_trains_on_a_batch_of_one_voxel_at_the_bottom(build):
    network = build(norm="group")
    for gradient in gradients(network, image(4, 4, 4, batch=1)).values():
        assert torch.isfinite(gradient).all()


def test_default_fc_densenet_names_its_multiples():
    for compact, multiple in ((False, 32), (True, 64)):
        network = FCDenseNet3D(in_channels=1, out_channels=1, compact=compact)
        with pytest.raises(ValueError, match=f"multiples of {multiple}"):
            network(torch.zeros(1, 1, 32, 32, 32))


# --- gradients and modes


@every_network
@pytest.mark.parametrize("norm", ["instance", "batch", "group", None])
def test_gradients_reach_all_parameters(build, norm):
    network = build(norm=norm, prior=None)
    dead = [
        name
        for name, gradient in gradients(network, image(12, 12, 12)).items()
        if not gradient.any()
    ]
    assert dead == []


@pytest.mark.parametrize("build", [small_unet, small_fc_densenet, small_compact_fc_densenet])
@pytest.mark.parametrize("norm", ["instance", "batch", "group"])
def test_no_convolution_s_bias_is_undone_by_a_normalisation(build, norm):
    """Such a bias gets only rounding noise as its gradient, which Adam scales up."""
    for name, gradient in gradients(build(norm=norm).double(), image(12, 12, 12).double()).items():
        assert gradient.abs().max() > 1e-6, name


def test_only_the_released_biases_of_the_residual_unet_are_undone_by_its_normalisations():
    """The parameter count of the released code includes them; the logits do not depend on them."""
    network, patch = small_residual_unet().double(), image(12, 12, 12).double()
    logits = network(patch)
    undone = [
        name for name, gradient in gradients(network, patch).items() if gradient.abs().max() < 1e-6
    ]
    assert undone == ["stem.1.2.bias", "shortcuts.0.2.bias", "shortcuts.1.2.bias"]
    for name in undone:
        nn.init.normal_(network.get_parameter(name))
    assert torch.allclose(network(patch), logits, atol=1e-8)


@every_network
def test_eval_is_deterministic_and_independent_of_the_batch(build):
    network = build(
        norm="batch", **({} if build in (small_residual_unet,) else {"dropout": 0.5})
    ).eval()
    patch = image(8, 8, 8)
    assert torch.equal(network(patch), network(patch))
    assert torch.allclose(network(patch[:1]), network(patch)[:1], atol=1e-3)


@pytest.mark.parametrize("build", [small_unet, small_fc_densenet])
def test_dropout_acts_in_training_only(build):
    network = build(dropout=0.5)
    assert not torch.equal(network(image(8, 8, 8)), network(image(8, 8, 8)))


def test_instance_norm_equals_torch_s():
    features = image(5, 6, 7)
    ours, torchs = normalization("instance", 2), nn.InstanceNorm3d(2, affine=True)
    for norm in (ours, torchs):
        nn.init.normal_(norm.weight, generator=torch.Generator().manual_seed(1))
        nn.init.normal_(norm.bias, generator=torch.Generator().manual_seed(2))
    assert torch.allclose(ours(features), torchs(features), atol=1e-6)
    assert list(ours.state_dict()) == list(torchs.state_dict())


@every_network
@pytest.mark.parametrize("norm", ["batch", "instance"])
def test_prior_is_the_probability_of_the_untrained_network(build, norm):
    network = build(norm=norm, prior=0.01, out_channels=1)
    logits = network(image(16, 16, 16))
    assert abs(logits.median().item() - math.log(0.01 / 0.99)) < 2
    assert abs(build(norm=norm, prior=None, out_channels=1)(image(16, 16, 16)).median().item()) < 2


def test_activations_keep_their_scale_without_normalisation():
    """He's rule: an untrained network neither fades nor explodes."""
    network = UNet3D(in_channels=2, out_channels=1, norm=None, n_levels=5, width=8)
    assert 0.1 < network(image(32, 32, 32)).std() < 10


@pytest.mark.parametrize("fault", [{"norm": "layer"}, {"prior": 1.0}, {"prior": 0.0}])
@every_network
def test_bad_settings_name_value_and_expectation(build, fault):
    (value,) = fault.values()
    with pytest.raises(ValueError, match=str(value)):
        build(**fault)


def test_no_network_halves_its_input_without_end() -> None:
    # Powers of two of all levels would fill the memory before any weight is made.
    with pytest.raises(ValueError, match="n_levels must be <= 16, got 1000000000"):
        small_unet(n_levels=10**9)


@pytest.mark.parametrize(
    ("build", "fault"),
    [
        (small_unet, {"n_levels": 0}),
        (small_fc_densenet, {"growth_rate": 0}),
        (small_residual_unet, {"widths": (4,)}),
    ],
)
def test_counts_below_one_are_refused(build, fault):
    with pytest.raises(ValueError, match=">= 1"):
        build(**fault)


# --- memory, layout, compilation


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_checkpointing_gives_the_same_gradients_and_statistics(dropout):
    plain, checkpointed = (
        small_fc_densenet(checkpointing=c, dropout=dropout) for c in (False, True)
    )
    checkpointed.load_state_dict(plain.state_dict())
    results = []
    for network in (plain, checkpointed):
        torch.manual_seed(1)
        results.append(gradients(network, image(12, 12, 12)))
    for name, gradient in results[0].items():
        assert torch.equal(gradient, results[1][name]), name
    for name, value in plain.state_dict().items():
        assert torch.equal(value, checkpointed.state_dict()[name]), name


def test_checkpointing_keeps_less_for_the_backward_pass():
    def saved_bytes(network):
        saved = {}
        with torch.autograd.graph.saved_tensors_hooks(
            lambda t: saved.setdefault(t.untyped_storage().data_ptr(), t), lambda t: t
        ):
            network(image(16, 16, 16))
        return sum(t.untyped_storage().nbytes() for t in saved.values())

    assert saved_bytes(small_fc_densenet(checkpointing=True)) < 0.6 * saved_bytes(
        small_fc_densenet()
    )


@every_network
def test_channels_last_gives_the_same_result(build):
    network = build(norm="batch").double()
    plain = gradients(network, image(8, 9, 10).double())
    network = network.to(memory_format=torch.channels_last_3d)
    patch = image(8, 9, 10).double().to(memory_format=torch.channels_last_3d)
    for name, gradient in gradients(network, patch).items():
        assert torch.allclose(gradient, plain[name], atol=1e-10), name


@pytest.mark.parametrize(
    "build",
    [
        lambda: small_unet(n_levels=2),
        lambda: small_compact_fc_densenet(n_layers=1),
        lambda: small_fc_densenet(n_layers=1, n_blocks=1, checkpointing=True),
        lambda: small_residual_unet(widths=(4, 8)),
    ],
)
def test_compiles_without_graph_breaks(build):
    network, patch = build(), image(9, 8, 12)
    compiled = torch.compile(network, backend="aot_eager", fullgraph=True)
    for training in (True, False):
        network.train(training)
        assert torch.allclose(compiled(patch), network(patch), atol=1e-5)
    torch.compiler.reset()


# --- export


PROBABILITY_TOLERANCE = 1e-4


@pytest.fixture
def trained(request):
    """A small network with running statistics, in eval mode."""
    network = request.param()
    network(image(9, 8, 12))
    return network.eval()


every_trained = pytest.mark.parametrize(
    "trained",
    [
        lambda: small_unet(n_levels=2),
        lambda: small_compact_fc_densenet(n_layers=1, checkpointing=True),
        lambda: small_residual_unet(widths=(4, 8)),
    ],
    indirect=True,
)


@every_trained
def test_exported_network_gives_the_same_probabilities_for_any_batch(trained):
    batch = {0: torch.export.Dim("batch", max=64)}
    exported = torch.export.export(trained, (image(9, 8, 12),), dynamic_shapes=(batch,)).module()
    patches = image(9, 8, 12, batch=3)
    assert torch.allclose(
        exported(patches).sigmoid(), trained(patches).sigmoid(), atol=PROBABILITY_TOLERANCE
    )


@pytest.mark.slow
@every_trained
@pytest.mark.filterwarnings("ignore")  # the exporter's own
def test_onnx_network_gives_the_same_probabilities_for_any_batch(trained, tmp_path):
    pytest.importorskip(
        "onnxscript", reason="ONNX export needs the extra: pip install 'tversky-seg[export]'"
    )
    runtime = pytest.importorskip(
        "onnxruntime", reason="checking ONNX needs onnxruntime, in the extra export"
    )
    batch = {0: torch.export.Dim("batch", max=64)}
    torch.onnx.export(
        trained,
        (image(9, 8, 12),),
        tmp_path / "network.onnx",
        dynamic_shapes=(batch,),
        dynamo=True,
        verbose=False,
    )
    session = runtime.InferenceSession(tmp_path / "network.onnx")
    patches = image(9, 8, 12, batch=3)
    (logits,) = session.run(None, {session.get_inputs()[0].name: patches.numpy()})
    assert torch.allclose(
        torch.from_numpy(logits).sigmoid(), trained(patches).sigmoid(), atol=PROBABILITY_TOLERANCE
    )


# --- configuration


@pytest.mark.parametrize("name", sorted(path.stem for path in CONFIGS.glob("*.yaml")))
def test_every_model_file_builds_a_network(name):
    config = OmegaConf.load(CONFIGS / f"{name}.yaml")
    network = instantiate(config, in_channels=2, out_channels=1, _convert_="all").eval()
    with torch.inference_mode():
        assert network(torch.zeros(1, 2, 16, 16, 32)).shape == (1, 1, 16, 16, 32)
