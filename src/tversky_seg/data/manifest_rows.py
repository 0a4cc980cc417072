"""The lines of a manifest's CSV, as spreadsheets of any country write them."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tversky_seg.data.case import normal_form
from tversky_seg.data.errors import DataError
from tversky_seg.data.manifest_columns import image_columns, names_an_image

N_CELLS = 8
"""Cells by which a column counts as one of images or of metadata; each may cost a look at a disk.
"""
_DELIMITERS = ",;\t"  # spreadsheets write ; where the comma is the decimal sign


@dataclass(frozen=True)
class ManifestRow:
    """A line of the CSV: its number, from 1, and its cells by column."""

    line: int
    cells: dict[str, str]

    def cell(self, column: str) -> str | None:
        """Return the cell of a column; None where it is empty or missing."""
        return self.cells.get(column) or None


def read_rows(path: Path) -> tuple[list[str], list[ManifestRow]]:
    """Read the names of the columns and the lines below, cells stripped, empty lines dropped."""
    try:
        text = path.read_bytes().decode("utf-8-sig")  # spreadsheets begin with a byte order mark
        # Lines with their ends, since a quoted cell may hold several. str.splitlines would also
        # end a line at characters such as U+2028, which CSV knows as any other.
        text_lines = list(io.StringIO(text, newline=""))
        if text_lines and text_lines[0].startswith("sep="):
            text_lines[0] = "\n"  # Excel's own line; the numbers of the others stay
        header = next((line for line in text_lines if line.strip("\r\n")), "")
        # The character that the header holds most often.
        delimiter = max(_DELIMITERS, key=header.count)
        reader = csv.reader(text_lines, delimiter=delimiter, strict=True)
        lines: list[tuple[int, list[str]]] = []
        for row in reader:
            # Spreadsheets leave empty rows at the end.
            if any(row):
                lines.append((reader.line_num, row))
    except OSError as error:
        reason = error.strerror or str(error)
        expected = "expected a manifest CSV"
        if path.is_dir():
            expected += f": python scripts/make_manifest.py {path} writes one"
        raise DataError(path, reason, expected) from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(path, "is not CSV text", "expected a manifest CSV in UTF-8") from error
    if len(lines) < 2:
        expected = "expected a header line and a line for each case"
        raise DataError(path, "lists no case", expected)
    columns = [normal_form(cell.strip()) for cell in lines[0][1]]
    rows = []
    for number, row in lines[1:]:
        cells = [cell.strip() for cell in row]
        # A comma in an unquoted cell moves what comes after it; empty cells beyond do no harm.
        if any(cells[len(columns) :]):
            raise DataError(
                f"{path} line {number}",
                f"{len(cells)} cells",
                f"expected {len(columns)}, one for each column",
            )
        rows.append(ManifestRow(number, dict(zip(columns, cells, strict=False))))
    return [column for column in columns if column], rows


def columns_of_images(
    header: Sequence[str], rows: Sequence[ManifestRow], path: Path
) -> tuple[str, ...]:
    """Choose the columns that hold images, by their cells."""
    cells: dict[str, list[str]] = {}
    for name in header:
        cells[name] = [row.cells[name] for row in rows if row.cell(name)]
    return image_columns(cells, path=path)


def holds_images(column: str, rows: Sequence[ManifestRow], path: Path) -> bool:
    """Tell whether a column holds images rather than metadata, by its first cells."""
    cells = [row.cells[column] for row in rows if row.cell(column)]
    return any(names_an_image(cell, path.parent) for cell in cells[:N_CELLS])
