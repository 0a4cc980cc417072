"""Only what was meant to be built is built: on the command line, in files, in checkpoints."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

from helpers.command_line import call, composed
from tversky_seg.config import ConfigError, build, build_network, check_config, check_network
from tversky_seg.config.targets import check_target
from tversky_seg.models import FCDenseNet3D, UNet3D


@pytest.mark.parametrize(
    "target",
    [
        "os.system",
        "subprocess.Popen",
        "builtins.eval",
        "torch.hub.load",
        "torch.nn.modules.module.torch.hub.load",
        "torch.nn.modules.module.torch.load",
        "tversky_seg.config.entry_point.os.system",
        "tversky_seg.runtime.recorder.subprocess.Popen",
        "tversky_seg.runtime.recorder.write_json",
        "tversky_seg.training.Trainer",
        "tversky_seg.models.none_such",
        "tversky_seg",
        "tversky_segment.Net",
        "torch.nn.functional.relu",
        "",
        5,
        None,
        ["a"],
    ],
)
@pytest.mark.parametrize("key", ["model", "loss.losses[0]"])
def test_a_target_must_be_a_network_class_of_an_allowed_package(key: str, target: Any) -> None:
    for node in ({"_target_": target}, {"_target_": target, "_partial_": True}):
        with pytest.raises(ConfigError, match=r"_target_: .*Module class .*tversky_seg, "):
            check_target(key, node)


@pytest.mark.parametrize(
    "target", ["os.system", "torch.nn.modules.module.torch.hub.load", "5", "null"]
)
def test_a_command_line_builds_nothing_else(target: str, tmp_path: Path) -> None:
    outcome = call("train", f"model._target_={target}", f"output_dir={tmp_path / 'run'}")
    value = "None" if target == "null" else target
    assert outcome.error.startswith(f"model._target_: {value}; ")
    assert not list(tmp_path.iterdir())


def test_a_function_is_only_handed_on_never_called(tmp_path: Path) -> None:
    evidence = tmp_path / "evidence.json"
    outcome = call(
        "train",
        "augmentation._target_=tversky_seg.runtime.files.write_json",
        f"+augmentation.path={evidence}",
        "+augmentation.content=1",
    )
    assert outcome.error.startswith("augmentation._target_: ")
    assert not evidence.exists()
    # Schedule and evaluation of the default run are functions, and are handed on.
    check_config(composed("data=manifest", "data.manifest=my.csv"), config_name="train")


def test_a_nested_target_is_checked_too() -> None:
    words = ["loss=combined", "loss.losses=[{_target_: os.system, command: ls}]"]
    assert call("train", *words).error.startswith("loss.losses[0]._target_: os.system; ")


def test_trust_on_the_command_line_adds_a_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_networks.py").write_text(
        "from torch import nn\n\n"
        "class Mine(nn.Conv3d):\n"
        "    def __init__(self, *, in_channels, out_channels):\n"
        "        super().__init__(in_channels, out_channels, 1)\n"
    )
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "mine.yaml").write_text("_target_: my_networks.Mine\n")
    monkeypatch.syspath_prepend(tmp_path)
    words = ["--config-dir", tmp_path, "model=mine", "data=manifest"]
    assert call("train", *words).error.startswith("model._target_: my_networks.Mine; ")
    # Trusted, the network passes, and the next fault is met: no manifest is given.
    assert call("train", *words, "trust=[my_networks]").error.startswith("data.manifest: ")


# Networks of checkpoints


def test_a_checkpoints_network_is_built_from_its_config() -> None:
    settings = {"model": {"_target_": "tversky_seg.models.UNet3D", "width": 4, "n_levels": 2}}
    network = build_network(settings, in_channels=2, out_channels=1)
    assert isinstance(network, UNet3D)
    assert network(torch.zeros(1, 2, 8, 8, 8)).shape == (1, 1, 8, 8, 8)


SYSTEM_CALL = {"_target_": "os.system", "command": "touch evidence"}


@pytest.mark.parametrize(
    "model",
    [
        SYSTEM_CALL,
        {"_target_": "torch.nn.modules.module.torch.hub.load", "repo_or_dir": "a/b", "model": "c"},
        {"_target_": "torch.nn.Sequential", "_args_": [SYSTEM_CALL]},
        {
            "_target_": "tversky_seg.runtime.files.write_json",
            "_partial_": True,
            "path": "evidence",
            "content": 1,
        },
        {"_target_": "tversky_seg.training.Trainer"},
        {"_target_": "tversky_seg.models.UNet3D", "wdith": 4},
        {"width": 4},
        None,
        3,
    ],
)
def test_a_strangers_checkpoint_builds_nothing_but_networks(
    model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"^model"):
        build_network({"model": model}, in_channels=2, out_channels=1)
    assert not list(tmp_path.iterdir())


# Networks and the patches of the settings


class LooksAtValues(torch.nn.Module):
    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return image if image.sum().item() > 0 else -image


def test_a_network_that_looks_at_values_is_let_through() -> None:
    check_network(LooksAtValues(), (1, 1, 4, 4, 4), n_classes=1)


def test_a_network_that_cannot_take_the_patch_is_refused_without_computing() -> None:
    network = FCDenseNet3D(
        in_channels=1, out_channels=1, growth_rate=2, n_layers=1, n_blocks=2, width=4
    )
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    check_network(network, (1, 1, 16, 16, 16), n_classes=1)
    with pytest.raises(ConfigError, match=r"model: .*4x4x4"):
        check_network(network, (1, 1, 4, 4, 4), n_classes=1)
    with pytest.raises(ConfigError, match=r"model: .*2 channels"):
        check_network(network, (1, 1, 16, 16, 16), n_classes=2)
    with pytest.raises(ConfigError, match="model: "):
        check_network(network, (1, 3, 16, 16, 16), n_classes=1)
    after = network.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


def test_the_check_leaves_a_network_as_it_was() -> None:
    shared = torch.nn.Conv3d(1, 1, 1)
    network = torch.nn.Sequential(shared, torch.nn.BatchNorm3d(1), shared)
    before = copy.deepcopy(network.state_dict())
    check_network(network, (1, 1, 4, 4, 4), n_classes=1)
    assert {tensor.device.type for tensor in network.state_dict().values()} == {"cpu"}
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_a_network_that_names_its_layers_twice_stays_whole() -> None:
    # DynUNet holds its blocks a second time in skip_layers.
    cfg = composed("model=monai_dynunet")
    network = build(cfg, "model", in_channels=3, out_channels=1)
    check_network(network, (2, 3, 16, 16, 16), n_classes=1)
    assert {parameter.device.type for parameter in network.parameters()} == {"cpu"}
