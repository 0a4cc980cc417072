"""Records of predicted cases: the input files, the files written, and the lesions.

A record is a small file in the folder `.cases` of a predictions folder, written after all others:
it marks a case as complete. There is one file a case, so that jobs that predict different cases
into one folder cannot lose each other's.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tversky_seg.data.case import Case
from tversky_seg.data.image_files import file_and_frame, why_absent
from tversky_seg.inference.lesion_table import Row
from tversky_seg.inference.output_errors import writing
from tversky_seg.runtime.files import read_json, write_json

RECORDS_FOLDER = ".cases"

FileState = list[Any]
"""Path, size in bytes and time of change in ns; a list, as JSON gives it back."""


@dataclass(frozen=True)
class CaseRecord:
    """What a prediction was made from, and its result.

    Attributes:
        inputs: State of each input file, by modality.
        sizes: Size in bytes of each file written, by its name.
        lesions: Rows of lesions.csv.
        precision: Precision of the networks; None in records of before.
    """

    inputs: dict[str, FileState]
    sizes: dict[str, int]
    lesions: list[Row]
    precision: str | None = None


class CaseRecords:
    """The records of a predictions folder."""

    def __init__(self, output_dir: Path) -> None:
        self.output_dir = output_dir
        self.folder = output_dir / RECORDS_FOLDER

    def read(self, case_id: str) -> CaseRecord | None:
        """Read the record of a case; None if there is none, or it is damaged."""
        return _read(self._path(case_id))

    def write(
        self,
        case_id: str,
        *,
        inputs: dict[str, FileState],
        files: Iterable[Path],
        lesions: list[Row],
        precision: str,
    ) -> None:
        """Write the record of a case whose files are all written.

        Args:
            case_id: Name of the case.
            inputs: State of the input files before they were read; see `input_states`.
            files: Files written.
            lesions: Rows of lesions.csv.
            precision: Precision of the networks.

        Raises:
            DataError: The disk is full or read-only.
        """
        sizes = {file.name: file.stat().st_size for file in files}
        path = self._path(case_id)
        with writing(path):
            write_json(path, asdict(CaseRecord(inputs, sizes, lesions, precision)))

    def lesions(self) -> dict[str, list[Row]]:
        """Read the lesions of all cases, by case, in the order of their names."""
        lesions = {}
        for path in sorted(self.folder.glob("*.json")):
            record = _read(path)
            if record is not None:
                lesions[path.name.removesuffix(".json")] = record.lesions
        return lesions

    def case_ids(self) -> list[str]:
        """List the cases that have a record, in the order of their names."""
        return sorted(path.name.removesuffix(".json") for path in self.folder.glob("*.json"))

    def is_complete(self, record: CaseRecord) -> bool:
        """Tell whether the files of a record exist in their full size, after a power cut too."""
        for name, size in record.sizes.items():
            path = self.output_dir / name
            if why_absent(path) is not None or path.stat().st_size != size:
                return False
        return True

    def discard_all(self) -> None:
        """Remove all records."""
        for path in self.folder.glob("*.json"):
            path.unlink(missing_ok=True)

    def _path(self, case_id: str) -> Path:
        return self.folder / f"{case_id}.json"


def input_states(case: Case) -> dict[str, FileState]:
    """List path, size and time of the files that a prediction reads; missing ones have no state.

    Args:
        case: The case without its label, unless the prediction reads that too: a label that is not
            read may change.
    """
    named = dict(case.images)
    if case.brain_mask is not None:
        named["brain_mask"] = case.brain_mask
    if case.label is not None:
        named["label"] = case.label
    states = {}
    for name, path in named.items():
        file, _ = file_and_frame(path)
        with suppress(OSError):
            status = file.stat()
            # The path keeps its frame: `scan.nii.gz@0` and `scan.nii.gz@1` are two inputs.
            states[name] = [str(Path(path).absolute()), status.st_size, status.st_mtime_ns]
    return states


def _read(path: Path) -> CaseRecord | None:
    # What cannot be read counts as missing: the case is then predicted again.
    try:
        content = read_json(path)
        record = CaseRecord(**content)
    except (OSError, ValueError, TypeError):
        return None
    rows = content["lesions"]
    has_rows = isinstance(rows, list) and all(isinstance(row, dict) for row in rows)
    return record if has_rows and isinstance(content["sizes"], dict) else None
