"""Odd manifests are refused in one line, or list what Python's csv module reads in them."""

import csv
import io
import re
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.fuzzing import Edit, damages, edited, fuzz, result_or_refusal, rewrite, untouched
from tversky_seg.data.case import Case, normal_form
from tversky_seg.data.manifest import read_manifest, write_manifest

FILES = ("a.nii.gz", "b c.nii", "sub/ü.nii.gz", "4d.nii", 'q"uote,.nii', "new\nline.nii")
COLUMNS = ("case_id", "subject_id", "FLAIR", "label")
OTHER_COLUMNS = (
    *("T1", "label_2", "label_3", "label_9", "brain_mask", "site", "session", "split", "fold"),
    *("consensus", "Label", "case id", "FLAIR", "", " ", "age", "é", "e\u0301", "label_1", "x\ny"),
)
CELLS = (
    *FILES,
    *("4d.nii@1", "./a.nii.gz", "missing.nii", "~", "~nobody/a", "/", ".", "", " ", "a", "A", "b"),
    *("é", "e\u0301", "../a", "a/b", "CON", "=1+1", "\x00", "\u2028", "\x0b", "\x85", "\ufeff"),
    *("train", "val", "test", "yes", "no", "0", "1", "-1", "٣", "²", "9" * 400, "x" * 300),
)


@st.composite
def tables(draw: st.DrawFn) -> list[list[str]]:
    """Draw a header and up to four lines, most of which would do."""
    header = list(COLUMNS)
    for column in draw(st.lists(st.sampled_from(OTHER_COLUMNS), max_size=3)):
        header.insert(draw(st.integers(0, len(header))), column)
    cell = st.one_of(st.sampled_from(CELLS), st.text(max_size=4))
    table = [header]
    for number in range(draw(st.integers(0, 4))):
        row = dict.fromkeys(header, "") | {"FLAIR": "a.nii.gz", "label": "b c.nii"}
        row |= {"case_id": f"c{number}", "subject_id": f"s{number}"}
        for column in draw(st.lists(st.sampled_from(header), max_size=2)):
            row[column] = draw(cell)
        table.append([row[column] for column in header] + draw(st.lists(cell, max_size=1)))
    return table


@st.composite
def csv_texts(draw: st.DrawFn) -> str:
    """Draw a table as spreadsheets and editors write it."""
    file = io.StringIO()
    writer = csv.writer(
        file,
        delimiter=draw(st.sampled_from(",;\t")),
        quoting=draw(st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL])),
        lineterminator=draw(st.sampled_from(["\n", "\r\n", "\r", "\n\n"])),
    )
    writer.writerows(draw(tables()))
    return draw(st.sampled_from(["", "", "", "sep=;\n", "\ufeff", "\n"])) + file.getvalue()


ENCODINGS = ("utf-8", "utf-8", "utf-8", "utf-8-sig", "utf-16", "latin-1", "cp1252")


@fuzz(0.16)
@given(csv_texts(), st.sampled_from(ENCODINGS), st.one_of(st.just([]), damages()))
def test_a_manifest_lists_what_the_csv_module_reads(
    folder: Path, text: str, encoding: str, damage: Sequence[Edit]
) -> None:
    content = edited(text.encode(encoding, errors="replace"), damage)
    manifest = rewrite(folder / "cases.csv", content)
    with untouched(folder):
        cases = result_or_refusal(lambda: read_manifest(manifest), named=[manifest])
    if cases is not None:
        for case, row in zip(cases, plain_rows(content, folder), strict=True):
            of_case = row_of(case, row)
            for column in row.keys() - {"site", "session", "split", "fold", "consensus"}:
                # A column without any file is metadata, such as age.
                if column in of_case or re.search(r"\.nii(\.gz)?(@\d+)?$", row[column]):
                    assert of_case[column] == row[column]
        check_that_it_comes_back(cases, folder.parent / "written" / "cases.csv")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("manifest") / "cohort"
    for name in FILES:
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        with suppress(OSError):  # Windows has no such names
            file.write_bytes(b"no image")
    return folder


def plain_rows(content: bytes, folder: Path) -> list[dict[str, str]]:
    """Read names and files of each line with Python's csv module alone."""
    text = content.decode("utf-8-sig")
    if text.startswith("sep="):
        text = re.sub(r"^sep=.*[\r\n]", "", text)
    delimiter = max(",;\t", key=re.split(r"[\r\n]", text.lstrip("\r\n"))[0].count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    header, *lines = [row for row in reader if any(row)]
    rows = []
    for line in lines:
        row = {}
        for column, cell in zip(header, line, strict=False):
            name = normal_form(column.strip())
            if name in NO_FILES:
                row[name] = normal_form(cell.strip())
            elif name and cell.strip():
                row[name] = str(folder / cell.strip())
        rows.append(row)
    return rows


NO_FILES = ("case_id", "subject_id", "site", "session", "split", "fold", "consensus")


def row_of(case: Case, columns: Iterable[str]) -> dict[str, str]:
    """Write a case as the line that it came from."""
    named = {"case_id": case.case_id, "subject_id": case.subject_id}
    named |= {name: str(file) for name, file in case.images.items()}
    named["brain_mask"] = str(case.brain_mask)
    label_columns = ["label"]
    for number in range(2, 10):
        label_columns += [f"label_{number}"] * (f"label_{number}" in columns)
    named |= dict(zip(label_columns, map(str, case.labels), strict=False))
    return named


def check_that_it_comes_back(cases: Sequence[Case], manifest: Path) -> None:
    write_manifest(cases, manifest)
    assert read_manifest(manifest) == cases
