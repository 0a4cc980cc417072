import logging
import os
import pickle
import zipfile
from pathlib import Path

import pytest
import torch

from tversky_seg.runtime import checkpoints
from tversky_seg.runtime.checkpoints import (
    CheckpointError,
    checksum,
    load_checkpoint,
    load_newest,
    save_checkpoint,
)
from tversky_seg.runtime.warm_start import warm_start

STATE = {
    "model": {"weight": torch.arange(6.0).reshape(2, 3)},
    "step": 3,
    "best": float("-inf"),
    "threshold": {"liver": 0.25, "tumour": 0.5},
    "config": {"trust": [], "name": None, "over_batch": True},
}


class RunsCode:
    """What a stranger's file may hold: unpickled, it calls os.system."""

    def __init__(self, evidence: Path) -> None:
        self.evidence = evidence

    def __reduce__(self):
        return os.system, (f"touch {self.evidence}",)


def test_a_checkpoint_comes_back_as_it_was(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "checkpoints" / "last.pt", STATE)
    back = load_checkpoint(tmp_path / "checkpoints" / "last.pt")
    assert torch.equal(back["model"]["weight"], STATE["model"]["weight"])
    assert {key: back[key] for key in STATE if key != "model"} == {
        key: STATE[key] for key in STATE if key != "model"
    }
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["last.pt"]


def test_the_file_is_one_that_torch_loads_with_weights_only(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "last.pt", STATE)
    assert torch.load(tmp_path / "last.pt", weights_only=True)["step"] == 3


def test_the_checkpoint_before_is_kept_where_asked_for(tmp_path: Path) -> None:
    last, previous = tmp_path / "last.pt", tmp_path / "previous.pt"
    for step in (1, 2, 3):
        save_checkpoint(last, STATE | {"step": step}, previous=previous)
    assert [load_checkpoint(path)["step"] for path in (last, previous)] == [3, 2]


def damage(path: Path, how: str) -> None:
    """Spoil a file as disks and people do."""
    content = bytearray(path.read_bytes())
    if how == "cut":
        content = content[: len(content) // 2]
    elif how == "empty":
        content = bytearray()
    elif how == "text":
        content = bytearray(b"<html>404 not found</html>")
    else:
        with zipfile.ZipFile(path) as archive:
            start = next(
                info.header_offset
                for info in archive.infolist()
                if info.filename.endswith("data/0")
            )
        content[start + 150] ^= 1  # one bit of one weight
    path.write_bytes(content)


@pytest.mark.parametrize("how", ["cut", "empty", "text", "one bit"])
def test_a_damaged_checkpoint_is_refused_in_one_line(tmp_path: Path, how: str) -> None:
    path = tmp_path / "last.pt"
    save_checkpoint(path, STATE | {"model": {"weight": torch.randn(100)}})
    damage(path, how)
    with pytest.raises(CheckpointError, match=r"last\.pt: damaged") as fault:
        load_checkpoint(path)
    assert "\n" not in str(fault.value)


def test_a_missing_checkpoint_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"none\.pt"):
        load_checkpoint(tmp_path / "none.pt")
    with pytest.raises(CheckpointError, match=tmp_path.name):
        load_checkpoint(tmp_path)


def test_a_strangers_file_runs_no_code(tmp_path: Path) -> None:
    evidence = tmp_path / "evidence"
    torch.save({"model": RunsCode(evidence)}, tmp_path / "torch.pt")
    with (tmp_path / "pickle.pt").open("wb") as file:
        pickle.dump({"model": RunsCode(evidence)}, file)
    with pytest.raises(CheckpointError, match=r"torch\.pt"):
        load_checkpoint(tmp_path / "torch.pt")
    with pytest.raises(CheckpointError, match=r"pickle\.pt: "):
        load_checkpoint(tmp_path / "pickle.pt")
    assert not evidence.exists()


def test_a_file_of_other_tensors_is_no_checkpoint(tmp_path: Path) -> None:
    for content in ({"weight": torch.zeros(1)}, [1, 2]):
        torch.save(content, tmp_path / "other.pt")
        with pytest.raises(CheckpointError, match=r"other\.pt.*'model'"):
            load_checkpoint(tmp_path / "other.pt")


@pytest.mark.parametrize("moment", ["while writing", "before the rename"])
def test_a_full_disk_leaves_the_checkpoint_that_was_there(
    tmp_path: Path, moment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "last.pt"
    save_checkpoint(path, STATE)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    def full_within_torch(state: object, file: object) -> None:
        try:
            full()
        except OSError:
            raise RuntimeError("[enforce fail at inline_container.cc] unexpected pos")  # noqa: B904

    if moment == "while writing":
        monkeypatch.setattr(checkpoints.torch, "save", full_within_torch)
    else:
        monkeypatch.setattr(checkpoints, "sync", full)
    with pytest.raises(CheckpointError, match=r"last\.pt.*No space left on device"):
        save_checkpoint(path, STATE | {"step": 4}, previous=tmp_path / "previous.pt")
    monkeypatch.undo()
    assert load_checkpoint(path)["step"] == 3
    assert [file.name for file in tmp_path.iterdir()] == ["last.pt"]


def test_a_fault_of_the_state_is_no_full_disk(tmp_path: Path) -> None:
    with pytest.raises((AttributeError, TypeError, pickle.PicklingError)):
        save_checkpoint(tmp_path / "last.pt", {"model": lambda: None})
    assert not list(tmp_path.iterdir())


def test_the_newest_readable_checkpoint_is_taken_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    last, previous = tmp_path / "last.pt", tmp_path / "previous.pt"
    assert load_newest(last, previous) is None
    for step in (1, 2):
        save_checkpoint(last, STATE | {"step": step}, previous=previous)
    newest = load_newest(last, previous)
    assert newest is not None
    assert newest["step"] == 2
    damage(last, "cut")
    with caplog.at_level(logging.WARNING, logger="tversky_seg"):
        before = load_newest(last, previous)
    assert before is not None
    assert before["step"] == 1
    assert "last.pt: damaged" in caplog.text
    damage(previous, "cut")
    with pytest.raises(CheckpointError, match=r"last\.pt"):
        load_newest(last, previous)


def test_a_checksum_is_that_of_sha256sum(tmp_path: Path) -> None:
    (tmp_path / "abc").write_bytes(b"abc")
    assert (
        checksum(tmp_path / "abc")
        == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    )


def a_network(n_classes: int = 1) -> torch.nn.Module:
    return torch.nn.Sequential(torch.nn.Conv3d(1, 2, 3), torch.nn.Conv3d(2, n_classes, 1))


def test_a_warm_start_takes_all_weights(tmp_path: Path) -> None:
    source, network = a_network(), a_network()
    save_checkpoint(tmp_path / "best.pt", {"model": source.state_dict()})
    warm_start(network, tmp_path / "best.pt")
    assert all(
        torch.equal(a, b) for a, b in zip(source.parameters(), network.parameters(), strict=True)
    )


def test_a_warm_start_of_another_network_is_refused_or_lists_what_is_left_out(
    tmp_path: Path,
) -> None:
    source, network = a_network(), a_network(n_classes=3)
    last = network[1].weight.detach().clone()
    save_checkpoint(tmp_path / "best.pt", {"model": source.state_dict()})
    with pytest.raises(
        CheckpointError,
        match=r"best\.pt: 2 .* 1\.weight \(\(1, 2, 1, 1, 1\) ",
    ):
        warm_start(network, tmp_path / "best.pt")
    _, left_out = warm_start(network, tmp_path / "best.pt", is_strict=False)
    assert "2 weights loaded, 2 left out: 1.weight ((1, 2, 1, 1, 1) " in left_out
    assert "(3, 2, 1, 1, 1) " in left_out
    assert "1.bias (" in left_out
    assert torch.equal(network[0].weight, source[0].weight)
    assert torch.equal(network[1].weight, last)


def test_a_warm_start_without_any_weight_in_common_is_refused(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "best.pt", {"model": {"other": torch.zeros(2)}})
    with pytest.raises(CheckpointError, match=r"best\.pt"):
        warm_start(a_network(), tmp_path / "best.pt", is_strict=False)
