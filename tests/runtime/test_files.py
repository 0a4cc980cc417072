"""Files that are whole or absent."""

import csv
from pathlib import Path

import pytest

from tversky_seg.runtime.files import (
    append_csv,
    new_folder,
    read_json,
    read_json_if_whole,
    replacing,
    write_csv,
    write_json,
)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def fail_after_writing(path: Path) -> None:
    path.write_bytes(b"half of a fi")
    raise OSError("the disk is full")


def test_json_is_whole_or_absent(tmp_path: Path) -> None:
    path = tmp_path / "facts.json"
    write_json(path, {"a": 1})
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    assert read_json(path) == {"a": 1}
    assert names(tmp_path) == ["facts.json"]


@pytest.mark.parametrize("content", [b"", b'{"a": ', b"\x80", b"[1]", b"[" * 100_000])
def test_json_that_a_power_cut_left_is_as_good_as_absent(
    tmp_path: Path, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "facts.json"
    assert read_json_if_whole(path) is None
    assert not caplog.records
    path.write_bytes(content)
    assert read_json_if_whole(path) is None
    assert "facts.json" in caplog.text
    write_json(path, {"a": 1})
    assert read_json_if_whole(path) == {"a": 1}


def test_a_failed_write_leaves_the_old_file_and_no_scratch_file(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    write_csv(path, ["a"], [[1]])
    with pytest.raises(OSError, match="disk"), replacing(path) as scratch:
        fail_after_writing(scratch)
    assert path.read_text(encoding="utf-8") == "a\n1\n"
    assert names(tmp_path) == ["table.csv"]


def test_scratch_names_cannot_be_guessed_and_keep_the_suffix(tmp_path: Path) -> None:
    used = set()
    for _ in range(2):
        with replacing(tmp_path / "image.nii.gz") as scratch:
            scratch.write_bytes(b"")
            used.add(scratch.name)
    assert len(used) == 2
    assert all(name.endswith(".nii.gz") for name in used)


def test_a_folder_is_whole_or_absent(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="disk"), new_folder(tmp_path / "case") as scratch:
        fail_after_writing(scratch / "image.npy")
    assert names(tmp_path) == []
    with new_folder(tmp_path / "case") as scratch:
        (scratch / "image.npy").write_bytes(b"")
    assert names(tmp_path / "case") == ["image.npy"]


def test_rows_are_appended_below_one_header(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    for row in ([1, "a"], [2, "b"]):
        append_csv(path, ["step", "name"], [row])
    assert path.read_text(encoding="utf-8") == "step,name\n1,a\n2,b\n"


def test_a_carriage_return_in_a_cell_comes_back(tmp_path: Path) -> None:
    rows = [["a\rb", "1"], ["c", None], ["d\ne", 'f"']]
    write_csv(tmp_path / "a.csv", ["name", "x\ry"], rows)
    with (tmp_path / "a.csv").open(encoding="utf-8", newline="") as file:
        read = list(csv.reader(file))
    assert read == [["name", "x\ry"], ["a\rb", "1"], ["c", ""], ["d\ne", 'f"']]
