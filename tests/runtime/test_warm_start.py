"""The start from other weights: modalities by name, thick slices, the file of the package."""

import re
from pathlib import Path

import pytest
import torch
import yaml

from tversky_seg.models import UNet3D
from tversky_seg.runtime import warm_start as module
from tversky_seg.runtime.checkpoints import CheckpointError, load_checkpoint, save_checkpoint
from tversky_seg.runtime.warm_start import (
    checkpoint_file,
    resolve_start,
    start_network,
    warm_start,
)

BEFORE = ("FLAIR", "T1", "T2")


def a_network(n_channels: int, **settings: object) -> UNet3D:
    return UNet3D(in_channels=n_channels, out_channels=1, n_levels=2, width=8, **settings)


def a_checkpoint(
    folder: Path, network: torch.nn.Module, *, names: tuple[str, ...] = BEFORE
) -> Path:
    content = {"model": network.state_dict(), "preprocessing": {"modalities": list(names)}}
    save_checkpoint(folder / "best.pt", content)
    return folder / "best.pt"


def first_weight(network: torch.nn.Module) -> torch.Tensor:
    return network.state_dict()["encoder.0.conv1.weight"]


@pytest.mark.parametrize(
    ("after", "sources"),
    [
        (("T1",), [1]),
        (("t2", "FLAIR"), [2, 0]),
        (("T2", "FLAIR", "T1"), [2, 0, 1]),
        (("FLAIR", "PD"), [0, None]),
    ],
)
def test_channels_take_the_weights_of_their_modality_and_others_the_mean(
    tmp_path: Path, after: tuple[str, ...], sources: list[int | None]
) -> None:
    source = a_network(3, residual=True)
    network = a_network(len(after), residual=True)
    warm_start(network, a_checkpoint(tmp_path, source), modalities=after)
    for name in ("encoder.0.conv1.weight", "encoder.0.shortcut.weight"):
        old, new = source.state_dict()[name], network.state_dict()[name]
        for channel, number in enumerate(sources):
            expected = old.mean(dim=1) if number is None else old[:, number]
            assert torch.equal(new[:, channel], expected)
    conv2 = "encoder.0.conv2.weight"
    assert torch.equal(network.state_dict()[conv2], source.state_dict()[conv2])


def test_the_notes_say_what_was_adapted(tmp_path: Path) -> None:
    path = a_checkpoint(tmp_path, a_network(3))
    start, adapted = warm_start(a_network(2), path, modalities=("T1", "PD"))
    assert start.startswith(f"starting from {path}")
    assert adapted == f"{path}: first layer: T1 from T1, PD from the mean of FLAIR, T1, T2"


def test_a_modality_alone_is_seen_as_with_the_others_blank(tmp_path: Path) -> None:
    source, network = a_network(3).eval(), a_network(1).eval()
    warm_start(network, a_checkpoint(tmp_path, source), modalities=("T1",))
    alone = torch.randn(1, 1, 8, 8, 8)
    with_blanks = torch.zeros(1, 3, 8, 8, 8)
    with_blanks[:, 1:2] = alone
    torch.testing.assert_close(network(alone), source(with_blanks))


def test_equal_modalities_and_unknown_names_change_nothing(tmp_path: Path) -> None:
    source = a_network(3)
    path = a_checkpoint(tmp_path, source)
    for modalities in (BEFORE, ()):
        network = a_network(3)
        assert len(warm_start(network, path, modalities=modalities)) == 1  # the start alone
        assert torch.equal(first_weight(network), first_weight(source))


def test_kernels_of_thick_slices_see_an_even_image_alike(tmp_path: Path) -> None:
    source = UNet3D(in_channels=1, out_channels=1, n_levels=2, width=8, norm=None).eval()
    flat = UNet3D(
        in_channels=1, out_channels=1, n_levels=2, width=8, norm=None, strides=[(2, 2, 1)]
    ).eval()
    warm_start(flat, a_checkpoint(tmp_path, source, names=("FLAIR",)), modalities=("FLAIR",))
    image = torch.randn(1, 1, 8, 8, 1).expand(1, 1, 8, 8, 24)  # the same in every slice
    features = source.encoder[0](image)[..., 8:16]  # away from the border
    torch.testing.assert_close(flat.encoder[0](image)[..., 8:16], features)
    pooled = source.pools[0](source.encoder[0](image))
    up = source.upsample[0](source.encoder[1](pooled))[..., 12:13]
    flat_pooled = flat.pools[0](flat.encoder[0](image))
    flat_up = flat.upsample[0](flat.encoder[1](flat_pooled))[..., 12:13]
    pair = source.upsample[0](source.encoder[1](pooled))[..., 12:14].mean(dim=-1, keepdim=True)
    torch.testing.assert_close(flat_up, pair)
    assert up.shape == flat_up.shape


def test_other_differences_are_still_refused(tmp_path: Path) -> None:
    path = a_checkpoint(tmp_path, a_network(3))
    wider = UNet3D(in_channels=1, out_channels=1, n_levels=2, width=16)
    with pytest.raises(CheckpointError, match="weights do not fit"):
        warm_start(wider, path, modalities=("FLAIR",))


def test_the_network_of_the_package_has_a_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SYNTHETIC_FILE", tmp_path / "absent.pt")
    with pytest.raises(CheckpointError, match=r"synthetic: .* is absent .* or give a checkpoint"):
        checkpoint_file("synthetic")
    source = a_network(3)
    monkeypatch.setattr(module, "SYNTHETIC_FILE", a_checkpoint(tmp_path, source))
    network = a_network(3)
    warm_start(network, "synthetic", modalities=BEFORE)
    assert torch.equal(first_weight(network), first_weight(source))
    assert checkpoint_file(tmp_path / "best.pt") == tmp_path / "best.pt"


def test_a_folder_named_synthetic_does_not_hide_the_network_of_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "synthetic").mkdir()
    monkeypatch.chdir(tmp_path)
    assert checkpoint_file("synthetic") == module.SYNTHETIC_FILE
    assert checkpoint_file("./synthetic") == Path("synthetic")


@pytest.mark.parametrize("word", ["Auto", "none", "runs/x"])
def test_a_start_that_is_no_file_names_the_words_there_are(word: str) -> None:
    with pytest.raises(ValueError, match=f"^init_from must be null, auto, synth.*, got {word}$"):
        warm_start(a_network(1), word, modalities=("FLAIR",))


def test_auto_says_what_it_starts_from_where_there_is_flair() -> None:
    start, notes = start_network(a_network(1), "auto", modalities=("FLAIR",))
    assert start is None
    assert notes == [
        "starting from nothing: the network trained on synthetic patients does not fit"
    ]
    assert start_network(a_network(1), "auto", modalities=("T1",)) == (None, [])
    network = UNet3D(in_channels=3, out_channels=1)
    start, notes = start_network(network, "auto", modalities=BEFORE)
    assert start == "synthetic"
    assert notes[0].startswith("starting from a network trained on synthetic patients")


def test_auto_starts_from_synthesis_where_there_is_flair_and_the_weights_fit() -> None:
    network = UNet3D(in_channels=2, out_channels=1)
    assert resolve_start("auto", network, modalities=("FLAIR", "T1")) == "synthetic"
    assert resolve_start("auto", network, modalities=("flair", "PD")) == "synthetic"
    assert resolve_start("auto", network, modalities=("T1", "T2")) is None
    two_classes = UNet3D(in_channels=1, out_channels=2)
    assert resolve_start("auto", two_classes, modalities=("FLAIR",)) is None
    narrow = UNet3D(in_channels=1, out_channels=1, width=8)
    assert resolve_start("auto", narrow, modalities=("FLAIR",)) is None


def test_auto_starts_from_nothing_in_a_copy_without_the_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(module, "SYNTHETIC_FILE", tmp_path / "absent.pt")
    network = UNet3D(in_channels=1, out_channels=1)
    assert resolve_start("auto", network, modalities=("FLAIR",)) is None


@pytest.mark.parametrize("path", [None, "runs/a/checkpoints/best.pt", "synthetic"])
def test_other_starts_stay_as_they_are(path: str | None) -> None:
    network = UNet3D(in_channels=1, out_channels=1)
    assert resolve_start(path, network, modalities=("FLAIR",)) == path


def test_the_package_s_network_fits_thick_slices_too() -> None:
    network = UNet3D(in_channels=1, out_channels=1, strides=[[2, 2, 1], [2, 2, 1], [2, 2, 2]])
    assert resolve_start("auto", network, modalities=("FLAIR",)) == "synthetic"


def test_the_package_s_file_is_small_and_names_no_folder_of_its_maker() -> None:
    assert module.SYNTHETIC_FILE.stat().st_size < 3_000_000
    checkpoint = load_checkpoint(module.SYNTHETIC_FILE)
    assert checkpoint["preprocessing"]["modalities"] == ["FLAIR", "T1", "T2"]
    assert checkpoint["config"]["output_dir"] is None
    settings = yaml.safe_dump(checkpoint["config"])
    assert not re.search(r"/(tmp|work|home|root)\b", settings)
