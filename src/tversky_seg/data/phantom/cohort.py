"""A synthetic multiple sclerosis cohort, made once in a folder in the layout of MSSEG 2016."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np

from tversky_seg.data.case import Case
from tversky_seg.data.datasets.msseg2016 import find_msseg2016
from tversky_seg.data.errors import DataError
from tversky_seg.data.nifti import write_volume
from tversky_seg.data.phantom.anatomy import load_anatomy
from tversky_seg.data.phantom.subject import draw_subject
from tversky_seg.runtime.files import new_folder, write_json
from tversky_seg.runtime.progress import Reporter
from tversky_seg.runtime.workers import map_in_processes

logger = logging.getLogger("tversky_seg")

VERSION = 2
"""Version of the images: raise it when equal settings make other ones."""

CENTRES = ("01", "07", "08")
SETTINGS_FILE = "phantom.json"


@dataclass(frozen=True)
class CohortSettings:
    """Settings of a synthetic cohort, as they stand in its SETTINGS_FILE.

    Attributes:
        n_train: Subjects of the official training set, 1 or more.
        n_test: Subjects of the official test set.
        spacing_mm: Voxel size, 1 to 6 mm.
        seed: Seed of all draws.
        version: Version of the images.
        contrast: "measured" or "any"; see `subject.draw_subject`.

    Raises:
        DataError: A number is out of range, or the contrast is another word.
    """

    n_train: int
    n_test: int
    spacing_mm: float
    seed: int
    version: int = VERSION
    contrast: str = "measured"

    def __post_init__(self) -> None:
        _check_number("n_train", self.n_train, low=1)
        _check_number("n_test", self.n_test, low=0)
        _check_number("spacing_mm", self.spacing_mm, low=1, high=6, kind=(int, float))
        _check_number("seed", self.seed, low=0)
        if self.contrast not in ("measured", "any"):
            raise DataError("data.importer.contrast", self.contrast, "expected measured or any")
        object.__setattr__(self, "spacing_mm", float(self.spacing_mm))

    @property
    def folder_name(self) -> str:
        """Name of the cohort's folder."""
        size = f"{self.n_train}+{self.n_test}_{self.spacing_mm:g}mm"
        # Folders of before there was a choice keep their name.
        kind = "_any" if self.contrast == "any" else ""
        return f"ms_{size}_seed{self.seed}_v{self.version}{kind}"


@dataclass(frozen=True)
class SubjectPlan:
    """Everything that one subject depends on.

    Attributes:
        folder: Folder of the subject, relative to that of the cohort.
        load_rank: Rank of its lesion load among real patients, in [0, 1].
        spacing_mm: Voxel size.
        key: Key of its random generator: seed and number of the subject.
        contrast: "measured" or "any".
    """

    folder: Path
    load_rank: float
    spacing_mm: float
    key: tuple[int, int]
    contrast: str = "measured"


def make_phantom(
    root: Path,
    *,
    n_train: int = 15,
    n_test: int = 4,
    spacing_mm: float = 2.0,
    seed: int = 0,
    contrast: str = "measured",
    n_workers: int | None = None,
) -> list[Case]:
    """List the cases of the synthetic cohort with these settings; make it first where it is absent.

    The cohort is a folder below `root` in the layout of MSSEG 2016, named by its settings. It
    appears whole, so that half a cohort is never used. Equal settings give equal bytes.

    Args:
        root: Folder of synthetic cohorts; made when absent.
        n_train: Number of subjects in the official training set, 1 or more.
        n_test: Number of subjects in the official test set.
        spacing_mm: Voxel size, 1 to 6 mm.
        seed: Seed of all draws.
        contrast: "measured": contrast and noise of real scans. "any": drawn from wide ranges for
            each subject, as is the resolution, to train for unknown scanners.
        n_workers: Processes; 0 or 1 works in this one; None: one per core, at most 8, if the work
            takes longer than their start.

    Raises:
        DataError: A number is out of range, `root` holds other files, or cannot be written.
    """
    settings = CohortSettings(n_train, n_test, spacing_mm, seed, contrast=contrast)
    cohort = Path(root) / settings.folder_name
    if not cohort.is_dir():
        _refuse_other_files(Path(root))
        try:
            _make_cohort(cohort, settings, n_workers=n_workers)
        except OSError as error:
            expected = "expected a folder to write to, as data.root="
            raise DataError(root, error.strerror or str(error), expected) from error
    return find_msseg2016(cohort)


def _check_number(
    name: str,
    value: float,
    *,
    low: float,
    high: float = math.inf,
    kind: type | tuple[type, ...] = int,
) -> None:
    if isinstance(value, kind) and low <= value <= high:
        return
    expected = f"expected {low} to {high}"
    if high == math.inf:
        expected = f"expected {low} or more"
    raise DataError(f"data.importer.{name}", str(value), expected)


def _refuse_other_files(root: Path) -> None:
    """Refuse a folder that holds anything but synthetic cohorts: probably the user's own data.

    `data.root=my_scans` without `data=` asks for the synthetic cohort, which is the default.
    """
    if not root.is_dir():
        return
    for path in sorted(root.iterdir()):
        is_hidden = path.name.startswith(".")
        if not is_hidden and not (path / SETTINGS_FILE).is_file():
            raise DataError(
                f"data.root={root}",
                f"holds {path.name}, but data=phantom makes a synthetic cohort there",
                "add data=NAME to use your data (data=manifest, msseg2016, bids, …), "
                "or name an empty folder",
            )


def _make_cohort(cohort: Path, settings: CohortSettings, *, n_workers: int | None) -> None:
    logger.info("creating the synthetic demo cohort in %s (first run only)", cohort)
    plans = list(_plan_subjects(settings))
    try:
        with new_folder(cohort) as folder:
            _write_subjects(folder, plans, n_workers=n_workers)
            write_json(folder / SETTINGS_FILE, asdict(settings))
    except OSError:
        # Another process may have been faster, with the same result.
        if not cohort.is_dir():
            raise


def _plan_subjects(settings: CohortSettings) -> Iterator[SubjectPlan]:
    """Name the subjects and spread the lesion loads evenly over all, and over the test set."""
    n_subjects = settings.n_train + settings.n_test
    rng = np.random.default_rng(settings.seed)
    # One rank in each of n equal intervals of [0, 1].
    ranks = (np.arange(n_subjects) + rng.random(n_subjects)) / n_subjects
    # Every n/n_test-th rank is tested on: of 19 subjects with 4, ranks 2, 7, 11, 16.
    in_test = np.zeros(n_subjects, dtype=bool)
    for i in range(settings.n_test):
        in_test[int((i + 0.5) * n_subjects / settings.n_test)] = True
    number = 0
    for part, ranks_of_part in (("Training", ranks[~in_test]), ("Testing", ranks[in_test])):
        # Mixed, so that no centre gets all the patients with few lesions.
        for i, rank in enumerate(rng.permutation(ranks_of_part)):
            centre = f"Center_{CENTRES[i % 3]}"
            patient = f"Patient_{i // 3 + 1:02d}"
            yield SubjectPlan(
                folder=Path(part) / centre / patient,
                load_rank=float(rank),
                spacing_mm=settings.spacing_mm,
                # By number, so that a subject depends neither on the others nor on the process.
                key=(settings.seed, number),
                contrast=settings.contrast,
            )
            number += 1


def _write_subjects(folder: Path, plans: list[SubjectPlan], *, n_workers: int | None) -> None:
    work = partial(write_subject, folder)
    with Reporter("synthetic subjects", total=len(plans)) as reporter:
        for _ in map_in_processes(work, plans, n_workers=n_workers):
            reporter.advance()
    load_anatomy.cache_clear()  # 70 MB that the training does not need


def write_subject(folder: Path, plan: SubjectPlan) -> None:
    """Draw one subject and write its files into the folder of the cohort."""
    rng = np.random.default_rng(plan.key)
    subject = draw_subject(
        load_anatomy(),
        load_rank=plan.load_rank,
        spacing_mm=plan.spacing_mm,
        rng=rng,
        contrast=plan.contrast,
    )
    images = folder / plan.folder / "Preprocessed_Data"
    masks = folder / plan.folder / "Masks"
    for name, image in subject.images.items():
        write_volume(images / f"{name}_preprocessed.nii.gz", image, subject.affine)
    lesions = subject.lesions.astype(np.uint8)
    brain = subject.brain.astype(np.uint8)
    write_volume(masks / "Consensus.nii.gz", lesions, subject.affine)
    write_volume(masks / "Brain_Mask.nii.gz", brain, subject.affine)
