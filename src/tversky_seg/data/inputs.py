"""What a user hands to `predict.py`: files, a manifest, a folder, BIDS; with modalities missing where that may be."""

from __future__ import annotations

import csv
import logging
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

from tversky_seg.data.case import Case, check_cases, is_safe_name
from tversky_seg.data.errors import DataError
from tversky_seg.data.manifest import read_manifest
from tversky_seg.data.nifti import NIFTI_ENDINGS, file_and_frame, nifti_stem

logger = logging.getLogger("tversky_seg")

BIDS_SUFFIXES = {
    "FLAIR": ("FLAIR",),
    "T1": ("T1w",),
    "T2": ("T2w",),
    "PD": ("PDw", "PD"),
    "DP": ("PDw", "PD"),
}
CONTRASTED = (
    "GADO",
    "GD",
    "T1GD",
    "T1_GD",
    "T1GADO",
    "T1C",
    "T1CE",
)  # a T1w with the entity ce-<agent>


def find_inputs(
    input: Mapping[str, Path | str] | Path | str,
    *,
    modalities: Sequence[str],
    case_id: str | None = None,
    may_lack: bool = False,
) -> list[Case]:
    """The cases that a user wants predicted.

    Args:
        input: What `cases_from_input` takes, or a BIDS folder: `sub-*/[ses-*/]anat/*_<suffix>.nii[.gz]` with the
            suffixes FLAIR, T1w, T2w and PDw (or PD) for FLAIR, T1, T2 and PD; other modalities by their own name.
        modalities: What the network was trained on, in order.
        case_id: Names the one case, or picks one out of several.
        may_lack: Whether a case may be without some of the modalities, but not without all; they are named in one
            warning.

    Raises:
        DataError: A file or modality is missing, or nothing is found.
    """
    folder = None if isinstance(input, Mapping) else Path(input).expanduser()
    if folder is not None and is_bids(folder):
        cases = _in_bids(folder, modalities)
        _refuse_lack(cases, modalities, may_lack=may_lack, source=folder)
        return _pick(cases, case_id, source=folder)
    if not may_lack:
        return cases_from_input(input, modalities=modalities, case_id=case_id)
    if isinstance(input, Mapping):
        there = [name for name in modalities if name in input] or modalities
        cases = cases_from_input(input, modalities=there, case_id=case_id)
    else:
        assert folder is not None
        cases = _pick(_lacking(folder, modalities), case_id, source=folder)
    _refuse_lack(cases, modalities, may_lack=True, source=folder)
    return cases


def cases_from_input(
    input: Mapping[str, Path | str] | Path | str,
    *,
    modalities: Sequence[str],
    case_id: str | None = None,
) -> list[Case]:
    """The cases that a user wants predicted.

    Args:
        input: One case as `{modality: file}` (also `brain_mask: file`), or the file alone where there is one modality;
            a manifest CSV; or a folder of `<case_id>_<MODALITY>.nii[.gz]` or `<case_id>/<MODALITY>.nii[.gz]`, in which
            a file for `brain_mask` is used too.
        modalities: What the network was trained on, in order.
        case_id: Names the one case (else the stem of its first file), or picks one out of several.

    Raises:
        DataError: A file or modality is missing, or nothing is found.
    """
    if isinstance(input, Mapping):
        return [_case_of_files(input, modalities, case_id=case_id)]
    path = Path(input).expanduser()
    _require(
        path.exists(),
        f"{path}: no such file or folder; expected images, a manifest CSV or a folder of images",
    )
    if path.is_dir():
        cases = _cases_in_folder(path, modalities)
    elif path.name.endswith(NIFTI_ENDINGS):
        _require(len(modalities) == 1, f"{path}: one image; expected one for each of {', '.join(modalities)}, as in "
                 f"input={{{','.join(f'{m}: {m}.nii.gz' for m in modalities)}}}")  # fmt: skip
        return [_case_of_files({modalities[0]: path}, modalities, case_id=case_id)]
    else:
        cases = read_manifest(path, modalities=modalities)
    chosen = [case for case in cases if case_id in (None, case.case_id)]
    _require(len(chosen) > 0, f"case_id: {case_id!r} is not in {path}; expected one of "
             f"{', '.join(case.case_id for case in cases[:5])}")  # fmt: skip
    return chosen


def is_bids(folder: Path) -> bool:
    """Whether a folder holds subjects as BIDS names them."""
    return folder.is_dir() and any(_anatomies(folder))


def _anatomies(folder: Path) -> list[Path]:
    return sorted(
        path
        for form in ("sub-*/anat", "sub-*/ses-*/anat")
        for path in folder.glob(form)
        if path.is_dir()
    )


def _in_bids(folder: Path, modalities: Sequence[str]) -> list[Case]:
    """A case for each session that has one of the modalities."""
    cases = []
    for anatomy in _anatomies(folder):
        subject, *session = anatomy.relative_to(folder).parts[:-1]
        images = {
            name: path for name in modalities if (path := _in_anatomy(anatomy, name)) is not None
        }
        brain = sorted(anatomy.glob("*_desc-brain_mask.nii*"))
        if images:
            cases.append(
                Case(
                    case_id="_".join([subject, *session]),
                    subject_id=subject,
                    images=images,
                    brain_mask=brain[0] if len(brain) == 1 else None,
                    session=session[0].removeprefix("ses-") if session else None,
                )
            )
    if not cases:
        wanted = ", ".join(
            f"*_{suffix}.nii.gz" for name in modalities for suffix in _suffixes(name)[:1]
        )
        raise DataError(
            folder,
            f"BIDS subjects without any of {', '.join(modalities)}",
            f"expected anat/{wanted}",
        )
    return cases


def _in_anatomy(anatomy: Path, modality: str) -> Path | None:
    """The one file of a modality, or None."""
    has_agent = modality.upper() in CONTRASTED
    found = [
        path
        for suffix in _suffixes(modality)
        for end in NIFTI_ENDINGS
        for path in sorted(anatomy.glob(f"*_{suffix}{end}"))
        if ("_ce-" in path.name) == has_agent
    ]
    if len(found) > 1:
        names = ", ".join(path.name for path in found[:3])
        raise DataError(
            anatomy,
            f"{len(found)} files of {modality} ({names})",
            "list the right one in a manifest CSV",
        )
    return found[0] if found else None


def _suffixes(modality: str) -> tuple[str, ...]:
    if modality.upper() in CONTRASTED:
        return ("T1w",)
    return BIDS_SUFFIXES.get(modality.upper().removesuffix("W"), (modality,))


def _lacking(path: Path, modalities: Sequence[str]) -> list[Case]:
    """The cases of a manifest or a folder, each with the modalities that it has."""
    if not path.is_dir():
        return _in_manifest(path, modalities)
    found: dict[str, dict[str, Path]] = defaultdict(dict)
    brains: dict[str, Path | None] = {}
    claimed: set[Path] = set()
    for name in sorted(modalities, key=len, reverse=True):
        for case in _with_one(path, name):
            if case.images[name] not in claimed:
                claimed.add(case.images[name])
                found[case.case_id][name] = case.images[name]
                brains[case.case_id] = case.brain_mask
    if not found:
        return cases_from_input(path, modalities=modalities)  # says what was expected
    return [
        Case(
            case_id,
            case_id,
            {name: images[name] for name in modalities if name in images},
            brain_mask=brains[case_id],
        )
        for case_id, images in sorted(found.items())
    ]


def _with_one(folder: Path, modality: str) -> list[Case]:
    try:
        return cases_from_input(folder, modalities=[modality])
    except DataError as fault:
        if "no image found" in str(fault):
            return []
        raise


def _in_manifest(path: Path, modalities: Sequence[str]) -> list[Case]:
    cases = read_manifest(path, modalities=())
    text = path.read_text(encoding="utf-8-sig")
    delimiter = max(",;\t", key=text.partition("\n")[0].count)
    rows = {
        row["case_id"].strip(): row
        for row in csv.DictReader(text.splitlines(), delimiter=delimiter)
    }
    completed = []
    for case in cases:
        cells = {name: (rows[case.case_id].get(name) or "").strip() for name in modalities}
        images = {
            name: path.parent.absolute() / Path(cell).expanduser()
            for name, cell in cells.items()
            if cell
        }
        for name, file in images.items():
            if not file.is_file():
                raise DataError(
                    file, "no such file", f"{path} names it for {name} of case {case.case_id}"
                )
        completed.append(
            Case(
                case.case_id,
                case.subject_id,
                images,
                brain_mask=case.brain_mask,
                session=case.session,
            )
        )
    return completed


def _refuse_lack(
    cases: Sequence[Case], modalities: Sequence[str], *, may_lack: bool, source: Path | None
) -> None:
    """An error for a modality that is missing, or one warning where the network was trained for that."""
    lacking: dict[str, list[str]] = defaultdict(list)
    for case in cases:
        missing = [name for name in modalities if name not in case.images]
        if missing and (not may_lack or not case.images):
            raise DataError(
                source,
                f"case {case.case_id} has no {', '.join(missing)}",
                f"expected {', '.join(modalities)} (a network trained with augmentation.dropout_probability above 0 can do without some)",
            )
        for name in missing:
            lacking[name].append(case.case_id)
    if lacking:
        lists = "; ".join(
            f"no {name}: {', '.join(ids[:5])}{f' and {len(ids) - 5} more' if len(ids) > 5 else ''}"
            for name, ids in lacking.items()
        )
        logger.warning(
            "predicted with 0 for what is missing, as with channel dropout in training (%s)", lists
        )


def _pick(cases: list[Case], case_id: str | None, *, source: Path) -> list[Case]:
    chosen = [case for case in cases if case_id in (None, case.case_id)]
    if not chosen:
        known = ", ".join(case.case_id for case in cases[:5])
        raise DataError("case_id", f"{case_id!r} is not in {source}", f"expected one of {known}")
    return chosen


def _case_of_files(
    files: Mapping[str, Path | str], modalities: Sequence[str], *, case_id: str | None
) -> Case:
    """One case from `{modality: file}`."""
    paths = {name: Path(file).expanduser().absolute() for name, file in files.items()}
    for name in modalities:
        _require(
            name in paths,
            f"input: no file for modality {name}; expected one for each of {', '.join(modalities)}",
        )
    for name, path in paths.items():
        _require(name in modalities or name == "brain_mask",
                 f"input: {name} is no modality of this network; expected {', '.join(modalities)}")  # fmt: skip
        _require(
            file_and_frame(path)[0].is_file(), f"{path}: no such file; expected the image of {name}"
        )
    name = nifti_stem(paths[modalities[0]]) if case_id is None else case_id
    _require(
        is_safe_name(name),
        f"case_id: {name!r}; expected letters, digits and _ . = + @ -; set case_id=",
    )
    images = {modality: paths[modality] for modality in modalities}
    return Case(case_id=name, subject_id=name, images=images, brain_mask=paths.get("brain_mask"))


def _cases_in_folder(folder: Path, modalities: Sequence[str]) -> list[Case]:
    """Cases of `<case_id>_<MODALITY>.nii[.gz]` and `<case_id>/<MODALITY>.nii[.gz]`, sorted by id."""
    found: dict[str, dict[str, Path]] = defaultdict(dict)
    for path in sorted([*folder.glob("*.nii*"), *folder.glob("*/*.nii*")]):
        if not path.name.endswith(NIFTI_ENDINGS) or path.name.startswith("."):
            continue
        for name in sorted((*modalities, "brain_mask"), key=len, reverse=True):
            if path.parent == folder and nifti_stem(path).endswith(f"_{name}"):
                case_id = nifti_stem(path).removesuffix(f"_{name}")
            elif path.parent != folder and nifti_stem(path) == name:
                case_id = path.parent.name
            else:
                continue
            taken = found[case_id].setdefault(name, path)
            _require(
                taken is path,
                f"{path}: a second {name} of case {case_id} beside {taken}; keep one of them",
            )
            break
    ids = [case_id for case_id, files in sorted(found.items()) if set(files) != {"brain_mask"}]
    _require(len(ids) > 0, f"{folder}: no image found; expected <case_id>_{modalities[0]}.nii.gz or "
             f"<case_id>/{modalities[0]}.nii.gz")  # fmt: skip
    faults = [DataError(folder, f'case {case_id} has no {name}', f'expected {case_id}_{name}.nii.gz')
              for case_id in ids for name in modalities if name not in found[case_id]]  # fmt: skip
    if faults:
        raise DataError.gather(faults)
    cases = [_case_of_files(found[case_id], modalities, case_id=case_id) for case_id in ids]
    check_cases(cases, source=str(folder))
    return cases


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise DataError(message)
