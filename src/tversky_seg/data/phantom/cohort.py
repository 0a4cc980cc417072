"""A synthetic multiple sclerosis cohort: an atlas deformed, with lesions as many, as large and as faint as real ones.

The ranges of contrast and noise below are those of one real pair of patients (open_ms_data; Lesjak et al. 2018,
doi 10.1007/s12021-017-9348-7), by the measurements of `python scripts/dev/compare_phantom.py --real <open_ms_data>`;
docs/phantom.md sets real beside made.
"""

import json
import logging
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from tversky_seg.data.case import Case
from tversky_seg.data.datasets.msseg2016 import find_msseg2016
from tversky_seg.data.errors import DataError
from tversky_seg.data.nifti import write_volume
from tversky_seg.data.phantom.anatomy import (
    Anatomy,
    Array,
    Head,
    Mask,
    draw_head,
    load_anatomy,
    smooth_noise,
)
from tversky_seg.data.phantom.lesions import Lesion, draw_lesion_sizes, grow_lesions
from tversky_seg.runtime.progress import track

logger = logging.getLogger("tversky_seg")

VERSION = 2  # of what the same settings make; raise it when the images change
CENTRES = ("01", "07", "08")
MODALITIES = ("FLAIR", "T1", "T2")
WHITE_MATTER_LEVEL = (
    300.0  # intensity of white matter in the int16 files, before the subject's own gain
)
# fmt: off
# Ranges that one subject's value is drawn from; intensities are relative to white matter = 1, of the real pair.
GREY_MATTER = {"FLAIR": (1.10, 1.19), "T1": (0.61, 0.71), "T2": (1.34, 1.57)}
CSF = {"FLAIR": (0.20, 0.40), "T1": (0.09, 0.11), "T2": (2.85, 3.40)}
LESION_CONTRAST = {"FLAIR": (0.46, 0.57), "T1": (-0.45, -0.28), "T2": (0.70, 1.25)}  # lesion minus white matter
NOISE_2MM = {"FLAIR": (0.018, 0.040), "T1": (0.010, 0.020), "T2": (0.020, 0.044)}  # standard deviation
TEXTURE = {"FLAIR": (0.05, 0.10), "T1": (0.03, 0.06), "T2": (0.08, 0.12)}  # standard deviation, smooth
# fmt: on


@dataclass(frozen=True)
class Subject:
    """One synthetic subject on a grid of `spacing_mm`; axes R, A, S.

    Attributes:
        images: Modality -> (X, Y, Z) int16, 0 outside the brain.
        lesions: (X, Y, Z) what the consensus of raters would mark.
        brain: (X, Y, Z).
        affine: (4, 4) voxel indices to mm.
    """

    images: Mapping[str, NDArray[np.int16]]
    lesions: Mask
    brain: Mask
    affine: NDArray[np.float64]


@dataclass(frozen=True)
class _Task:
    """All that a worker process needs to make one subject."""

    folder: Path
    load_rank: float
    spacing_mm: float
    key: tuple[int, ...]


def make_phantom(
    root: Path,
    *,
    n_train: int = 15,
    n_test: int = 4,
    spacing_mm: float = 2.0,
    seed: int = 0,
    n_workers: int | None = None,
) -> list[Case]:
    """List the cases of the synthetic cohort with these settings; make it first where it is not there yet.

    The cohort is a folder below `root` in the layout of MSSEG 2016, named by its settings. It is made beside and
    renamed when whole, so that a cohort half made is never used. The same settings give the same bytes.

    Args:
        root: Folder to keep synthetic cohorts in; made when absent.
        n_train: Number of subjects in the official training set, 1 or more.
        n_test: Number of subjects in the official test set.
        spacing_mm: Voxel size, 1 to 6 mm.
        seed: Of everything that is drawn.
        n_workers: Processes to make subjects in; 0 or 1: in this one. None: as many as there are processors.

    Raises:
        DataError: A number is out of range, or `root` cannot be written.
    """
    for name, value, low, high in (
        ("n_train", n_train, 1, np.inf),
        ("n_test", n_test, 0, np.inf),
        ("spacing_mm", spacing_mm, 1, 6),
        ("seed", seed, 0, np.inf),
    ):
        if (
            not isinstance(value, int | float if name == "spacing_mm" else int)
            or not low <= value <= high
        ):
            top = "or more" if high == np.inf else f"to {high}"
            raise DataError(f"data.importer.{name}", f"{value}", f"expected {low} {top}")
    settings = {
        "n_train": n_train,
        "n_test": n_test,
        "spacing_mm": float(spacing_mm),
        "seed": seed,
        "version": VERSION,
    }
    cohort = Path(root) / f"ms_{n_train}+{n_test}_{spacing_mm:g}mm_seed{seed}_v{VERSION}"
    if not cohort.is_dir():
        try:
            _make_cohort(
                cohort, settings, n_workers=_n_processors() if n_workers is None else n_workers
            )
        except OSError as error:
            raise DataError(
                root, f"{error.strerror or error}", "expected a folder to write to, as data.root="
            ) from error
    return find_msseg2016(cohort)


def draw_subject(
    anatomy: Anatomy, *, load_rank: float, spacing_mm: float, rng: np.random.Generator
) -> Subject:
    """Draw one subject.

    Args:
        anatomy: The atlas.
        load_rank: In [0, 1]: where among real patients the lesion load lies, 0 the least.
        spacing_mm: Voxel size.
        rng: Where all that is random comes from.
    """
    head = draw_head(anatomy, spacing_mm=spacing_mm, rng=rng)
    sizes = draw_lesion_sizes(load_rank, spacing_mm=spacing_mm, rng=rng)
    lesions = list(grow_lesions(head, sizes, rng=rng))
    brain = ndimage.binary_fill_holes(head.tissue.sum(0) > 0.5)
    marked = np.zeros(brain.shape, dtype=bool)
    for lesion in lesions:
        marked[tuple(lesion.marked.T)] = True
    images = _draw_images(head, lesions, rng=rng)
    affine = np.diag([spacing_mm, spacing_mm, spacing_mm, 1.0])
    affine[:3, 3] = anatomy.centre_mm - spacing_mm * (np.array(brain.shape) - 1) / 2
    return Subject(
        images={name: _as_int16(image * brain) for name, image in images.items()},
        lesions=marked & brain,
        brain=brain,
        affine=affine,
    )


def _make_cohort(cohort: Path, settings: Mapping[str, Any], *, n_workers: int) -> None:
    partial = cohort.with_name(f".{cohort.name}.{uuid4().hex}")
    tasks = list(_plan(partial, settings))
    logger.info("makes the synthetic cohort %s (once)", cohort)
    try:
        partial.mkdir(parents=True)
        for _ in track(
            _run(tasks, n_workers=min(n_workers, len(tasks))),
            "synthetic subjects",
            total=len(tasks),
        ):
            pass
        (partial / "phantom.json").write_text(
            json.dumps(settings, indent=1) + "\n", encoding="utf-8"
        )
        try:
            partial.rename(cohort)
        except OSError:
            if not cohort.is_dir():  # else another process was faster, with the same result
                raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _plan(folder: Path, settings: Mapping[str, Any]) -> Iterator[_Task]:
    """Name the subjects and spread the lesion loads evenly over all, and over the test subjects."""
    n_train, n_test, seed = settings["n_train"], settings["n_test"], settings["seed"]
    n = n_train + n_test
    rng = np.random.default_rng(seed)
    ranks = (np.arange(n) + rng.random(n)) / n
    in_test = np.zeros(n, dtype=bool)
    in_test[[int((i + 0.5) * n / n_test) for i in range(n_test)]] = True
    number = 0
    for part, members in (("Training", ranks[~in_test]), ("Testing", ranks[in_test])):
        for i, rank in enumerate(rng.permutation(members)):
            patient = folder / part / f"Center_{CENTRES[i % 3]}" / f"Patient_{i // 3 + 1:02d}"
            yield _Task(
                patient,
                load_rank=float(rank),
                spacing_mm=settings["spacing_mm"],
                key=(seed, number),
            )
            number += 1


def _run(tasks: Sequence[_Task], *, n_workers: int) -> Iterator[None]:
    """Make all subjects, the result of each depending on its task alone."""
    anatomy = load_anatomy()
    if n_workers <= 1:
        for task in tasks:
            _make_subject(task, anatomy)
            yield
        return
    pool = ProcessPoolExecutor(
        n_workers, get_context("spawn"), initializer=_set_anatomy, initargs=(anatomy,)
    )
    try:
        with pool:
            for done in as_completed(
                [pool.submit(_make_subject_in_worker, task) for task in tasks]
            ):
                done.result()
                yield
    except BrokenProcessPool as error:
        raise RuntimeError(
            "a process that made synthetic subjects ended; "
            'in a script, call under `if __name__ == "__main__":` or set n_workers=1'
        ) from error


_worker_anatomy: Anatomy | None = None


def _set_anatomy(anatomy: Anatomy) -> None:
    global _worker_anatomy
    _worker_anatomy = anatomy


def _make_subject_in_worker(task: _Task) -> None:
    assert _worker_anatomy is not None
    _make_subject(task, _worker_anatomy)


def _make_subject(task: _Task, anatomy: Anatomy) -> None:
    """Draw one subject and write its files."""
    rng = np.random.default_rng(task.key)
    subject = draw_subject(anatomy, load_rank=task.load_rank, spacing_mm=task.spacing_mm, rng=rng)
    prepared, masks = task.folder / "Preprocessed_Data", task.folder / "Masks"
    prepared.mkdir(parents=True)
    masks.mkdir()
    for name, image in subject.images.items():
        write_volume(prepared / f"{name}_preprocessed.nii.gz", image, subject.affine)
    write_volume(masks / "Consensus.nii.gz", subject.lesions.astype(np.uint8), subject.affine)
    write_volume(masks / "Brain_Mask.nii.gz", subject.brain.astype(np.uint8), subject.affine)


def _n_processors() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _draw_images(
    head: Head, lesions: Sequence[Lesion], *, rng: np.random.Generator
) -> dict[str, Array]:
    """Intensities of all modalities, white matter about 1 times a gain."""
    spacing = head.spacing_mm
    grey, white, csf = head.tissue
    shape = white.shape
    faint = _draw_faint_spots(head, n=len(lesions) // 4 + 2, rng=rng)
    share, severity = _paint(shape, lesions, faint, rng=rng)
    severity *= np.exp(0.4 * smooth_noise(shape, rng, sigma_mm=4, spacing_mm=spacing))
    rim = rng.uniform(0.03, 0.15) * np.exp(
        -head.ventricle_mm / 2.5
    )  # the lining of the ventricles shines on FLAIR
    images = {}
    for name in MODALITIES:
        contrast = rng.uniform(*LESION_CONTRAST[name])
        solid = grey * rng.uniform(*GREY_MATTER[name]) + white * (
            1 + (rim if name == "FLAIR" else 0.0)
        )
        patchy = (
            1 + 0.15 * smooth_noise(shape, rng, sigma_mm=3, spacing_mm=spacing)
            if name == "FLAIR"
            else severity
        )
        lesion = np.maximum(1 + contrast * patchy, 0.15)
        image = (
            share * lesion * (grey + white) + (1 - share) * solid + csf * rng.uniform(*CSF[name])
        )
        images[name] = _add_scanner(image, head, name=name, rng=rng)
    return images


def _draw_faint_spots(head: Head, *, n: int, rng: np.random.Generator) -> list[Lesion]:
    """Small bright spots of white matter that no rater marks."""
    candidates = np.argwhere(head.tissue[1] > 0.7)
    return [
        Lesion(spot, spot) for spot in candidates[rng.integers(len(candidates), size=n)][:, None, :]
    ]


def _paint(
    shape: tuple[int, ...],
    lesions: Sequence[Lesion],
    faint: Sequence[Lesion],
    *,
    rng: np.random.Generator,
) -> tuple[Array, Array]:
    """Where lesion replaces tissue, in [0, 1] with graded borders, and how severe each lesion is (about 1)."""
    share = np.zeros(shape, dtype=np.float32)
    severity = np.ones(shape, dtype=np.float32)
    for lesion, strength in [*((one, 1.0) for one in lesions), *((one, 0.7) for one in faint)]:
        low = np.maximum(lesion.seen.min(0) - 3, 0)
        box = tuple(slice(a, b) for a, b in zip(low, lesion.seen.max(0) + 4, strict=True))
        inside = np.zeros(share[box].shape, dtype=np.float32)
        inside[tuple((lesion.seen - low).T)] = strength * np.clip(rng.normal(1, 0.15), 0.5, 1.4)
        soft = ndimage.gaussian_filter(inside, rng.uniform(0.45, 0.7))
        share[box] = np.maximum(share[box], soft)
        n = len(lesion.seen)
        severity[box][soft > 0.02] = (0.65 + 0.35 * n / (n + 10)) * np.exp(rng.normal(0, 0.25))
    return np.minimum(share, 1.0), severity


def _add_scanner(image: Array, head: Head, *, name: str, rng: np.random.Generator) -> Array:
    """Uneven tissue, bias field, Rician noise and a gain."""
    shape, spacing = image.shape, head.spacing_mm
    uneven = 0.7 * smooth_noise(shape, rng, sigma_mm=3, spacing_mm=spacing)
    uneven += 0.7 * smooth_noise(shape, rng, sigma_mm=9, spacing_mm=spacing)
    bias = 0.04 * smooth_noise(shape, rng, sigma_mm=45, spacing_mm=spacing)
    clean = image * np.exp(
        rng.uniform(*TEXTURE[name]) * uneven * (1 + 0.25 * head.tissue[0]) + bias
    )
    sd = (
        rng.uniform(*NOISE_2MM[name]) * (2 / spacing) ** 0.4
    )  # as measured at 1 mm: neighbours' noise is alike
    real, imaginary = rng.standard_normal((2, *shape), dtype=np.float32) * np.float32(sd)
    return np.asarray(
        rng.uniform(0.6, 1.6) * WHITE_MATTER_LEVEL * np.hypot(clean + real, imaginary)
    )


def _as_int16(image: Array) -> NDArray[np.int16]:
    return np.clip(np.rint(image), 0, 32767).astype(np.int16)
