"""MSSEG 2016 (Commowick et al. 2018, doi 10.1038/s41598-018-31911-7): multiple sclerosis, seven raters."""

from collections.abc import Iterator, Mapping
from pathlib import Path

from tversky_seg.data.case import Case
from tversky_seg.data.datasets._common import nifti
from tversky_seg.data.errors import DataError

MODALITIES = ("FLAIR", "T1", "T2", "DP", "GADO")
SPLITS = {"Training": "train", "Testing": "test"}
N_RATERS = 7
# Names of files without their ending, the first that exists is taken: prepared images, then the scanner's.
PREPARED = {
    m: [f"{name}_preprocessed" for name in names]
    for m, names in {m: (m, "PD") if m == "DP" else (m,) for m in MODALITIES}.items()
}
RAW = {
    "FLAIR": ["FLAIR", "3DFLAIR"],
    "T1": ["T1", "3DT1"],
    "T2": ["T2"],
    "DP": ["DP", "PD"],
    "GADO": ["GADO", "3DT1GADO"],
}


def find_msseg2016(root: Path) -> list[Case]:
    """List the cases of an official download, of the 2016 challenge or of the later public release.

    Public release: `{Training,Testing}/Center_xx/<patient>/{Preprocessed_Data,Raw_Data,Masks}`. Challenge:
    `Pre-processed/<id>` beside `ManualSegmentation/<id>`, or folders `<id>` of raw images and masks together. Prepared
    images are taken where there are any, else the raw ones. The proton density image is called DP, as there.

    Args:
        root: The folder that holds `Training`, or `Pre-processed`, or the `<id>` folders.

    Returns:
        Cases with labels consensus first, centre as site, and the official split where the test set is there too.

    Raises:
        DataError: The folder does not look like this data set.
    """
    root = Path(root)
    cases = list(_public_release(root)) or list(_challenge_release(root))
    if not cases:
        raise DataError(
            root,
            "does not look like MSSEG 2016",
            "expected Training/Center_01/<patient>/Preprocessed_Data/FLAIR_preprocessed.nii.gz or Pre-processed/<id>/FLAIR_preprocessed.nii.gz",
        )
    return cases


def _public_release(root: Path) -> Iterator[Case]:
    has_test_set = (root / "Testing").is_dir()
    for patient in sorted(root.glob("T[re]*ing/Center_*/*")):
        part, centre = patient.parts[-3:-1]
        images = _images(patient / "Preprocessed_Data", PREPARED) or _images(
            patient / "Raw_Data", RAW
        )
        if not images or part not in SPLITS:
            continue
        case_id = (
            f"{part}_{centre}_{patient.name}"  # patients are numbered anew in each centre and part
        )
        yield Case(
            case_id=case_id,
            subject_id=case_id,
            images=images,
            labels=_labels(patient / "Masks"),
            brain_mask=nifti(patient / "Masks", "Brain_Mask"),
            site=centre.removeprefix("Center_"),
            split=SPLITS[part] if has_test_set else None,
            consensus=nifti(patient / "Masks", "Consensus") is not None,
        )


def _challenge_release(root: Path) -> Iterator[Case]:
    folders = [root / "Pre-processed", root, *sorted(p for p in root.glob("*") if p.is_dir())]
    patients = {
        p.name: p for folder in reversed(folders) for p in folder.glob("[0-9][0-9][0-9][0-9][0-9]*")
    }
    for name, patient in sorted(patients.items()):
        images = _images(patient, PREPARED) or _images(patient, RAW)
        labels = _labels(root / "ManualSegmentation" / name) or _labels(patient)
        if images:
            yield Case(
                case_id=name,
                subject_id=name,
                images=images,
                labels=labels,
                brain_mask=nifti(patient, "Mask_registered"),
                site=name[:2],
                consensus=bool(labels) and labels[0].name.startswith("Consensus"),
            )


def _images(folder: Path, names: Mapping[str, list[str]]) -> dict[str, Path]:
    found = {modality: nifti(folder, *stems) for modality, stems in names.items()}
    return {modality: file for modality, file in found.items() if file}


def _labels(folder: Path) -> tuple[Path, ...]:
    stems = ["Consensus", *(f"ManualSegmentation_{rater}" for rater in range(1, N_RATERS + 1))]
    return tuple(file for stem in stems if (file := nifti(folder, stem)))
