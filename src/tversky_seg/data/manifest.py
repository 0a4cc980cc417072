"""The CSV that lists the cases of a cohort: read, inspected for the check of the data, and written."""

import csv
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from uuid import uuid4

from tversky_seg.data.case import SPLITS, Case, case_files, check_cases, faults_between_cases
from tversky_seg.data.errors import DataError
from tversky_seg.data.nifti import file_and_frame

_RESERVED = ("case_id", "subject_id", "consensus", "brain_mask", "site", "session", "split", "fold")
LABEL_COLUMN = re.compile(r"label(_[2-9]|_[1-9]\d+)?")


def read_manifest(path: Path | str, *, modalities: Sequence[str] | None = None) -> list[Case]:
    """The cases that a CSV lists, in its order.

    Columns: `case_id, subject_id, <one per modality>, label[, label_2, …][, consensus][, brain_mask][, site]
    [, session][, split | fold]`; file names are relative to the manifest's folder, `<file>@0` is the first frame of a
    4D file. An empty label cell: predicted, not
    judged. `consensus` is yes where `label` is what the raters agreed on, and the first rater's is `label_2`.

    Args:
        path: The CSV (comma, semicolon or tab).
        modalities: Columns to read as images, in this order; None: every column that is none of the above; () none.

    Raises:
        DataError: The file cannot be read, holds no case, lacks a column, a cell or a file, names a case twice or by
            a name that is unsafe in a path, or puts a subject in two splits or folds.
    """
    cases, faults = inspect_manifest(path, modalities=modalities)
    if faults:
        raise DataError.gather(faults)
    return cases


def inspect_manifest(
    path: Path | str, *, modalities: Sequence[str] | None = None
) -> tuple[list[Case], list[DataError]]:
    """The cases of a CSV with which nothing is wrong, and every fault of its lines; for the check of the data.

    Raises:
        DataError: As `read_manifest`, where no line can be understood.
    """
    path = Path(path).expanduser()
    columns, rows = _read_rows(path)
    header = [name for name in columns if name]
    names = (
        tuple(modalities)
        if modalities is not None
        else tuple(n for n in header if not is_reserved(n))
    )
    _check_header(header, names, path=path)
    _require(len(names) > 0 or modalities is not None, f"{path}: no column of images among {', '.join(header)}; "
             "expected one per modality")  # fmt: skip
    faults: list[DataError] = []
    cases: dict[str, Case] = {}  # of cases of one name, the first
    for number, row in rows:
        try:
            case = _case_of(dict(zip(columns, row, strict=False)), names, path=path, number=number)
            if case.case_id.casefold() in cases:
                check_cases([cases[case.case_id.casefold()], case], source=str(path))
            cases[case.case_id.casefold()] = case
        except DataError as fault:
            faults.append(fault)
    faults += faults_between_cases([*cases.values()], source=str(path))
    missing = [
        (case, file)
        for case in cases.values()
        for file in case_files(case)
        if not file_and_frame(file)[0].is_file()
    ]
    faults += [
        DataError(file, "no such file", f"{path} names it for case {case.case_id}")
        for case, file in missing
    ]
    incomplete = {case.case_id for case, _ in missing}
    return [case for case in cases.values() if case.case_id not in incomplete], faults


def write_manifest(
    cases: Sequence[Case], path: Path | str, *, modalities: Sequence[str] | None = None
) -> None:
    """Write cases as the CSV that `read_manifest` reads; the file appears whole or not at all.

    File names are relative where the file lies below the manifest's folder, else absolute.

    Args:
        cases: At least one.
        path: The CSV to write; its folder is made.
        modalities: Image columns; None: every modality that a case has.
    """
    path = Path(path)
    check_cases(cases, source=str(path))
    names = (
        tuple(modalities)
        if modalities is not None
        else tuple(dict.fromkeys(m for c in cases for m in c.images))
    )
    n_labels = max((len(case.labels) for case in cases), default=1)
    rows = [
        _row_of(case, names, n_labels=max(n_labels, 1), folder=path.parent.absolute())
        for case in cases
    ]
    header = [
        name for name in rows[0] if name in ("label", *names) or any(row[name] for row in rows)
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{uuid4().hex}")
    with partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, header, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    partial.replace(path)


def is_reserved(column: str) -> bool:
    """Tell whether a column of the manifest holds something other than images."""
    return column in _RESERVED or LABEL_COLUMN.fullmatch(column) is not None


def _read_rows(path: Path) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """Header and rows of a CSV with their line numbers, cells stripped, empty rows dropped."""
    try:
        text = path.read_text(encoding="utf-8-sig")
        delimiter = max(",;\t", key=text.partition("\n")[0].count)
        reader = csv.reader(text.splitlines(), delimiter=delimiter, strict=True)
        rows = [(reader.line_num, [cell.strip() for cell in row]) for row in reader if any(row)]
    except OSError as error:
        raise DataError(path, f"{error.strerror or error}", "expected a manifest CSV") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(path, "is no CSV text", "expected a manifest CSV in UTF-8") from error
    _require(
        len(rows) > 1, f"{path}: lists no case; expected a header line and a line for each case"
    )
    header = rows[0][1]
    for number, row in rows[1:]:
        _require(
            not any(row[len(header) :]),
            f"{path} line {number}: {len(row)} cells; expected {len(header)}, one for each column",
        )
    return header, rows[1:]


def _check_header(header: Sequence[str], modalities: Sequence[str], *, path: Path) -> None:
    twice = [name for name, count in Counter(header).items() if count > 1]
    _require(not twice, f"{path}: column {', '.join(twice)} stands twice; expected each once")
    for name in header:
        plain = name.lower().replace(" ", "_")
        _require(
            name == plain or not is_reserved(plain),
            f"{path}: column {name!r}; write it as {plain!r}",
        )
    missing = [name for name in ("case_id", "subject_id", *modalities) if name not in header]
    _require(not missing, f"{path}: no column {', '.join(missing)} among {', '.join(header)}; add it"
             + (" or name other data.modalities" if set(missing) & set(modalities) else ""))  # fmt: skip


def _case_of(row: Mapping[str, str], modalities: Sequence[str], *, path: Path, number: int) -> Case:
    """The case of one line of a manifest, with absolute file names."""
    where, folder = f"{path} line {number}", path.parent.absolute()
    empty = [name for name in ("case_id", "subject_id", *modalities) if not row.get(name)]
    _require(not empty, f"{where}: empty cell for {', '.join(empty)}; fill it, remove the line or name other "
             "data.modalities")  # fmt: skip
    files = {name: folder / Path(cell).expanduser() for name, cell in row.items() if cell}
    labels = sorted(
        (name for name in files if LABEL_COLUMN.fullmatch(name)), key=lambda n: int(n[6:] or 1)
    )
    _require(
        not labels or labels[0] == "label",
        f"{where}: {labels[:1]} without label; fill the label cell first",
    )
    split, fold, consensus = (
        row.get("split") or None,
        row.get("fold") or None,
        row.get("consensus") or "no",
    )
    _require(consensus in ("yes", "no"), f"{where}: consensus {consensus!r}; expected yes or no")
    _require(
        split is None or split in SPLITS, f"{where}: split {split!r}; expected train, val or test"
    )
    _require(
        fold is None or fold.isdecimal(), f"{where}: fold {fold!r}; expected a whole number from 0"
    )
    return Case(
        case_id=row["case_id"],
        subject_id=row["subject_id"],
        images={name: files[name] for name in modalities},
        labels=tuple(files[name] for name in labels),
        brain_mask=files.get("brain_mask"),
        site=row.get("site") or None,
        session=row.get("session") or None,
        split=split,
        fold=None if fold is None else int(fold),
        consensus=consensus == "yes",
    )


def _row_of(
    case: Case, modalities: Sequence[str], *, n_labels: int, folder: Path
) -> dict[str, str]:
    """One line of a manifest, columns in their order."""
    labels = dict(
        zip(["label", *(f"label_{i}" for i in range(2, n_labels + 1))], case.labels, strict=False)
    )
    row = {"case_id": case.case_id, "subject_id": case.subject_id}
    row |= {name: _written(case.images.get(name), folder) for name in modalities}
    row |= {
        name: _written(labels.get(name), folder)
        for name in ["label", *(f"label_{i}" for i in range(2, n_labels + 1))]
    }
    row |= {"consensus": "yes" if case.consensus and len(case.labels) > 1 else ""}
    row |= {
        "brain_mask": _written(case.brain_mask, folder),
        "site": case.site or "",
        "session": case.session or "",
    }
    return row | {"split": case.split or "", "fold": "" if case.fold is None else str(case.fold)}


def _written(file: Path | None, folder: Path) -> str:
    if file is None:
        return ""
    absolute = file.absolute()
    return (
        absolute.relative_to(folder) if absolute.is_relative_to(folder) else absolute
    ).as_posix()


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise DataError(message)
