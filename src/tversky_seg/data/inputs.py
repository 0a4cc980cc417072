"""The input of `predict.py` as cases: image files, a manifest, a folder of images, or BIDS."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

from tversky_seg.data.bids_inputs import cases_in_bids, is_bids
from tversky_seg.data.case import Case, broken_name_rule, check_cases, normal_form
from tversky_seg.data.errors import DataError
from tversky_seg.data.image_files import (
    file_and_frame,
    image_stem,
    is_nifti,
    is_other_image,
    other_format,
    why_absent,
)
from tversky_seg.data.manifest import read_manifest

logger = logging.getLogger("tversky_seg")

MAX_NAMES = 5  # of cases, in one message


def find_inputs(
    input: Mapping[str, Path | str] | Path | str,
    *,
    modalities: Sequence[str],
    case_id: str | None = None,
    may_lack: bool = False,
    required: Sequence[str] = (),
) -> list[Case]:
    """List the cases that a user wants predicted.

    Args:
        input: One of: one case as `{modality: file}` (also `brain_mask: file`), or the file alone
            if there is one modality; a manifest CSV; a folder of
            `<case_id>_<MODALITY>.nii[.gz]` or `<case_id>/<MODALITY>.nii[.gz]`, whose files for
            `brain_mask` are used too; a BIDS folder, `sub-*/[ses-*/]anat/*_<suffix>.nii[.gz]`,
            with the suffixes FLAIR, T1w, T2w and PDw (or PD) for FLAIR, T1, T2 and PD, and other
            modalities by their own name.
        modalities: Channels that the network was trained on, in order.
        case_id: Name of the one case (otherwise the stem of its first file), or of one to pick out
            of several.
        may_lack: Whether a case may lack some of the modalities, but not all; they are named in
            one warning.
        required: Modalities that a case needs even then.

    Raises:
        DataError: A file or modality is missing, or there is no case.
    """
    if isinstance(input, Mapping):
        case = _case_of_files(input, modalities, case_id=case_id, may_lack=may_lack)
        _check_modalities([case], modalities, may_lack=may_lack, required=required, source="input")
        return [case]
    path = Path(input).expanduser()
    if not path.exists():
        expected = "expected images, a manifest CSV or a folder of images"
        raise DataError(path, "no such file or folder", expected)
    if is_bids(path):
        cases = cases_in_bids(path, modalities)
    elif path.is_dir():
        cases = _cases_in_folder(path, modalities, may_lack=may_lack)
    elif is_other_image(path):
        raise other_format(path)
    elif is_nifti(path):
        cases = [
            _case_of_one_file(
                path, modalities, case_id=case_id, may_lack=may_lack, required=required
            )
        ]
        case_id = None  # it is the case's name
    else:
        cases = _cases_in_manifest(path, modalities, may_lack=may_lack)
    # First the choice: what other cases lack does not matter.
    cases = _pick(cases, case_id, source=path)
    _check_modalities(cases, modalities, may_lack=may_lack, required=required, source=path)
    return cases


def _case_of_files(
    files: Mapping[str, Path | str],
    modalities: Sequence[str],
    *,
    case_id: str | None,
    may_lack: bool,
) -> Case:
    """Make one case of `{modality: file}`."""
    paths: dict[str, Path] = {}
    for name, path in files.items():
        paths[name] = Path(path).expanduser().absolute()
    images: dict[str, Path] = {}
    missing: list[str] = []
    for name in modalities:
        if name in paths:
            images[name] = paths[name]
        else:
            missing.append(name)
    if missing and (not images or not may_lack):
        expected = f"expected one for each of {', '.join(modalities)}"
        raise DataError("input", f"no file for modality {missing[0]}", expected)
    for name, path in paths.items():
        if name not in (*modalities, "brain_mask"):
            fault = f"{name} is not a modality of this network"
            raise DataError("input", fault, f"expected {', '.join(modalities)}")
        file, _ = file_and_frame(path)
        reason = why_absent(file)
        if reason is not None:
            raise DataError(path, reason, f"expected the image of {name}")
    if case_id is None:
        first_image = next(iter(images.values()))
        case_id = image_stem(first_image)
    case_id = normal_form(case_id)
    rule = broken_name_rule(case_id)
    if rule is not None:
        raise DataError("case_id", repr(case_id), f"{rule}; set case_id=")
    return Case(
        case_id=case_id, subject_id=case_id, images=images, brain_mask=paths.get("brain_mask")
    )


def _case_of_one_file(
    path: Path,
    modalities: Sequence[str],
    *,
    case_id: str | None,
    may_lack: bool,
    required: Sequence[str],
) -> Case:
    # One file alone is that of the one modality which a case must have.
    needed = list(required) if may_lack and required else list(modalities)
    if len(needed) > 1:
        example = ",".join(f"{name}: {name}.nii.gz" for name in modalities)
        expected = f"expected one for each of {', '.join(modalities)}, as in input={{{example}}}"
        raise DataError(path, "one image", expected)
    files = {needed[0]: path}
    return _case_of_files(files, modalities, case_id=case_id, may_lack=may_lack)


def _cases_in_manifest(path: Path, modalities: Sequence[str], *, may_lack: bool) -> list[Case]:
    cases = read_manifest(path, modalities=modalities, may_lack_modalities=may_lack)
    if not may_lack:
        return cases
    # Site and split of the manifest do not concern a prediction; a label may (`crop_labelled`).
    inputs: list[Case] = []
    for case in cases:
        case_to_predict = Case(
            case_id=case.case_id,
            subject_id=case.subject_id,
            images=case.images,
            labels=case.labels,
            brain_mask=case.brain_mask,
            session=case.session,
            baseline=case.baseline,
        )
        inputs.append(case_to_predict)
    return inputs


def _cases_in_folder(folder: Path, modalities: Sequence[str], *, may_lack: bool) -> list[Case]:
    """List the cases of a folder of images, sorted by id."""
    files_of = _files_by_case(folder, modalities)
    cases = []
    faults = _faults_of_other_formats(folder, modalities, files_of)
    for case_id, files in sorted(files_of.items()):
        if files.keys() <= {"brain_mask"}:
            continue  # a brain mask alone
        images: dict[str, Path] = {}
        for name in modalities:
            if name in files:
                images[name] = files[name]
            elif not may_lack:
                expected = f"expected {case_id}_{name}.nii.gz"
                fault = f"case {case_id} has no {name}"
                faults.append(DataError(folder, fault, expected, case_id=case_id))
        cases.append(Case(case_id, case_id, images, brain_mask=files.get("brain_mask")))
    if not cases and not faults:
        name = modalities[0]
        expected = f"expected <case_id>_{name}.nii.gz or <case_id>/{name}.nii.gz"
        raise DataError(folder, "no image found", expected)
    if faults:
        raise DataError.gather(faults)
    check_cases(cases, source=str(folder))
    return cases


def _files_by_case(folder: Path, modalities: Sequence[str]) -> dict[str, dict[str, Path]]:
    """Map each case id to its files by modality, and `brain_mask` among them."""
    # Case id -> modality -> file.
    files_of: dict[str, dict[str, Path]] = defaultdict(dict)
    for path in _files_below(folder):
        case_and_name = _case_and_modality(path, modalities, folder=folder)
        if case_and_name is None or not is_nifti(path):
            continue
        case_id, name = case_and_name
        first = files_of[case_id].setdefault(name, path)
        if first is not path:
            fault = f"a second {name} of case {case_id} beside {first}"
            raise DataError(path, fault, "keep one of them", case_id=case_id)
    return files_of


def _faults_of_other_formats(
    folder: Path, modalities: Sequence[str], files_of: Mapping[str, Mapping[str, Path]]
) -> list[DataError]:
    """List the images in other formats that no NIfTI file replaces, one for each case and name."""
    faults = {}
    for path in _files_below(folder):
        case_and_name = _case_and_modality(path, modalities, folder=folder)
        if case_and_name is None or not is_other_image(path):
            continue
        case_id, name = case_and_name
        # Files .hdr and .img of one image make one fault.
        if name not in files_of.get(case_id, {}):
            faults[case_and_name] = other_format(path)
    return list(faults.values())


def _files_below(folder: Path) -> list[Path]:
    """List what lies in a folder and in its folders, without hidden files."""
    paths = sorted([*folder.glob("*"), *folder.glob("*/*")])
    # Finder and other programs leave hidden copies: ._scan.nii.gz beside scan.nii.gz.
    return [path for path in paths if not path.name.startswith(".")]


def _case_and_modality(
    path: Path, modalities: Sequence[str], *, folder: Path
) -> tuple[str, str] | None:
    """Tell the case and the modality of a file by its name and its folder's, or return None."""
    stem = normal_form(image_stem(path))
    # Of the modalities T1 and post_T1, a_post_T1.nii is the second: the longer name goes first.
    for name in sorted([*modalities, "brain_mask"], key=len, reverse=True):
        if path.parent == folder and stem.endswith(f"_{name}"):
            return stem.removesuffix(f"_{name}"), name
        if path.parent != folder and stem == name:
            return normal_form(path.parent.name), name
    return None


def _check_modalities(
    cases: Sequence[Case],
    modalities: Sequence[str],
    *,
    may_lack: bool,
    required: Sequence[str],
    source: Path | str,
) -> None:
    """Check that no modality is missing, or log which, if the network was trained for that."""
    ids_without: dict[str, list[str]] = defaultdict(list)
    for case in cases:
        missing = [name for name in modalities if name not in case.images]
        # Without any image there is nothing to predict, however the network was trained.
        needed = [name for name in missing if name in required]
        if needed or (missing and (not may_lack or not case.images)):
            expected = f"expected {', '.join(modalities)} (a network trained with data.require or "
            expected += "augmentation.dropout_probability above 0 can do without some)"
            if may_lack and required:
                expected = f"expected {', '.join(required)}, which this network cannot do without"
            raise DataError(
                source,
                f"case {case.case_id} has no {', '.join(needed or missing)}",
                expected,
                case_id=case.case_id,
            )
        for name in missing:
            ids_without[name].append(case.case_id)
    if ids_without:
        lists: list[str] = []
        for name, ids in ids_without.items():
            lists.append(f"no {name}: {first_few(ids)}")
        logger.warning(
            "missing modalities are set to 0, as in training (%s)",
            "; ".join(lists),
        )


def first_few(ids: Sequence[str]) -> str:
    """List the first of some case ids, and the number of the others."""
    text = ", ".join(ids[:MAX_NAMES])
    if len(ids) > MAX_NAMES:
        text += f" and {len(ids) - MAX_NAMES} more"
    return text


def _pick(cases: list[Case], case_id: str | None, *, source: Path) -> list[Case]:
    if case_id is None:
        return cases
    case_id = normal_form(case_id)
    chosen = [case for case in cases if case.case_id == case_id]
    if not chosen:
        names = ", ".join(case.case_id for case in cases[:MAX_NAMES])
        raise DataError("case_id", f"{case_id!r} is not in {source}", f"expected one of {names}")
    return chosen
