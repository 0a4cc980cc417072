"""A synthetic multiple sclerosis cohort: an atlas deformed, with lesions as many, as large and as faint as real ones.

The tissue maps are those of the MNI152 atlas that nilearn carries. What is drawn at random follows 29 real lesion masks
and one real pair of patients (open_ms_data; Lesjak et al. 2018, doi 10.1007/s12021-017-9348-7). The constants below
come from `python scripts/compare_phantom.py --real <open_ms_data> --constants`; docs/phantom.md sets real beside made.
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

from tversky_seg.data.cases import Case, DataError
from tversky_seg.data.datasets.msseg2016 import find_msseg2016
from tversky_seg.data.volumes import write_volume
from tversky_seg.progress import track

logger = logging.getLogger("tversky_seg")

VERSION = 2  # of what the same settings make; raise it when the images change
CENTRES = ("01", "07", "08")
MODALITIES = ("FLAIR", "T1", "T2")
WHITE_MATTER_LEVEL = 300.0  # intensity of white matter in the int16 files, before the subject's own gain

Array = NDArray[np.float32]
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class LesionSizes:
    """Real lesions on a grid of one spacing: of each of 29 patients, in order of lesion load, and of all together.

    Attributes:
        count: Number of lesions (26-connected).
        largest: Voxels of the largest lesion.
        second: Voxels of the second largest.
        others: Quantiles of the voxels of all further lesions, at `QUANTILES`.
    """

    count: tuple[int, ...]
    largest: tuple[int, ...]
    second: tuple[int, ...]
    others: tuple[int, ...]


# fmt: off
QUANTILES = (0, .05, .1, .2, .3, .4, .5, .6, .7, .8, .9, .95, .98, .99, .995, 1)
LESION_SIZES = {
    1.0: LesionSizes(
        count=(19, 17, 20, 21, 41, 37, 27, 25, 61, 50, 246, 124, 59, 109, 29, 114, 76, 95, 92, 370, 195, 39, 82, 251,
               191, 116, 392, 98, 100),
        largest=(71, 131, 253, 260, 189, 210, 203, 424, 455, 1480, 629, 859, 4917, 2525, 7509, 7133, 7532, 6338, 4520,
                 4116, 3971, 22433, 22825, 5360, 29692, 15150, 39401, 46870, 24724),
        second=(64, 99, 207, 258, 141, 138, 195, 395, 231, 1037, 473, 847, 3827, 2087, 3919, 2127, 4615, 5424, 4248,
                2922, 1838, 6031, 2530, 4985, 213, 10525, 420, 606, 21008),
        others=(1, 1, 2, 5, 8, 11, 16, 24, 36, 54, 105, 203, 408, 698, 1062, 3073),
    ),
    2.0: LesionSizes(
        count=(10, 14, 14, 12, 25, 25, 17, 18, 48, 36, 145, 105, 50, 76, 24, 74, 81, 49, 259, 54, 135, 51, 182, 26,
               125, 96, 220, 56, 85),
        largest=(6, 18, 32, 35, 24, 30, 26, 53, 63, 196, 81, 122, 594, 337, 772, 819, 636, 937, 555, 604, 527, 2946,
                 659, 2939, 4003, 1986, 5096, 6184, 3347),
        second=(5, 11, 25, 30, 17, 17, 21, 51, 28, 140, 67, 112, 499, 193, 517, 233, 488, 617, 392, 396, 325, 333,
                645, 788, 28, 1400, 53, 67, 2766),
        others=(1, 1, 1, 1, 2, 2, 3, 4, 6, 10, 20, 38, 77, 123, 153, 400),
    ),
}
# Ranges that one subject's value is drawn from; intensities are relative to white matter = 1, of the real pair.
GREY_MATTER = {"FLAIR": (1.10, 1.19), "T1": (0.61, 0.71), "T2": (1.34, 1.57)}
CSF = {"FLAIR": (0.20, 0.40), "T1": (0.09, 0.11), "T2": (2.85, 3.40)}
LESION_CONTRAST = {"FLAIR": (0.46, 0.57), "T1": (-0.45, -0.28), "T2": (0.70, 1.25)}  # lesion minus white matter
NOISE_2MM = {"FLAIR": (0.018, 0.040), "T1": (0.010, 0.020), "T2": (0.020, 0.044)}  # standard deviation
TEXTURE = {"FLAIR": (0.05, 0.10), "T1": (0.03, 0.06), "T2": (0.08, 0.12)}  # standard deviation, smooth
# fmt: on


@dataclass(frozen=True)
class Anatomy:
    """Tissue maps of the atlas at 1 mm, cut to the brain; axes R, A, S.

    Attributes:
        tissue: (3, X, Y, Z) shares of grey matter, white matter and cerebrospinal fluid (CSF), in [0, 1].
        ventricle_mm: (X, Y, Z) distance to the lateral ventricles, 0 inside.
        centre_mm: (3,) MNI coordinate of the array's centre.
    """

    tissue: Array
    ventricle_mm: Array
    centre_mm: NDArray[np.float64]


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
class _Head:
    """A subject's anatomy before lesions and intensities, on the subject's grid."""

    tissue: Array  # (3, X, Y, Z) grey matter, white matter, CSF
    ventricle_mm: Array
    spacing_mm: float


@dataclass(frozen=True)
class _Lesion:
    marked: NDArray[np.intp]  # (n, 3) voxels in the mask
    seen: NDArray[np.intp]  # (m, 3) voxels that look abnormal, some more or fewer than are marked


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
        if not isinstance(value, int | float if name == "spacing_mm" else int) or not low <= value <= high:
            top = "or more" if high == np.inf else f"to {high}"
            raise DataError(f"data.importer.{name}: {value}; expected {low} {top}")
    settings = {"n_train": n_train, "n_test": n_test, "spacing_mm": float(spacing_mm), "seed": seed, "version": VERSION}
    cohort = Path(root) / f"ms_{n_train}+{n_test}_{spacing_mm:g}mm_seed{seed}_v{VERSION}"
    if not cohort.is_dir():
        try:
            _make_cohort(cohort, settings, n_workers=_n_processors() if n_workers is None else n_workers)
        except OSError as error:
            raise DataError(
                f"{root}: {error.strerror or error}; expected a folder to write to, as data.root="
            ) from error
    return find_msseg2016(cohort)


def load_anatomy() -> Anatomy:
    """The MNI152 (2009a, symmetric) tissue maps of the installed nilearn package; nothing is downloaded."""
    from nilearn import datasets

    maps = [datasets.load_mni152_gm_template(resolution=1), datasets.load_mni152_wm_template(resolution=1)]
    brain = datasets.load_mni152_brain_mask(resolution=1).get_fdata() > 0.5
    box = ndimage.find_objects(brain.astype(np.uint8))[0]
    brain = brain[box]
    grey, white = (np.asarray(image.get_fdata(dtype=np.float32))[box] for image in maps)
    tissue = np.stack([grey, white, np.clip(brain - grey - white, 0, 1)]).astype(np.float32)
    centre = np.array([axis.start for axis in box]) + (np.array(brain.shape) - 1) / 2
    return Anatomy(
        tissue=tissue,
        ventricle_mm=_distance_to_ventricles(tissue[2] > 0.5),
        centre_mm=maps[0].affine[:3, :3] @ centre + maps[0].affine[:3, 3],
    )


def draw_subject(anatomy: Anatomy, *, load_rank: float, spacing_mm: float, rng: np.random.Generator) -> Subject:
    """Draw one subject.

    Args:
        anatomy: The atlas.
        load_rank: In [0, 1]: where among real patients the lesion load lies, 0 the least.
        spacing_mm: Voxel size.
        rng: Where all that is random comes from.
    """
    head = _draw_head(anatomy, spacing_mm=spacing_mm, rng=rng)
    sizes = draw_lesion_sizes(load_rank, spacing_mm=spacing_mm, rng=rng)
    lesions = list(_grow_lesions(head, sizes, rng=rng))
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


def draw_lesion_sizes(load_rank: float, *, spacing_mm: float, rng: np.random.Generator) -> list[int]:
    """Lesion sizes of one subject in voxels, largest first.

    Number, largest and second largest lie between those of the real patients next in lesion load; the rest is drawn
    from the lesions of all patients. The real masks were resampled to 1 and 2 mm: other spacings take the nearer.
    """
    measured = min(LESION_SIZES, key=lambda spacing: abs(np.log(spacing / spacing_mm)))
    table = LESION_SIZES[measured]
    place = np.linspace(0, 1, len(table.count))
    count, largest, second = (
        float(np.exp(np.interp(load_rank, place, np.log(column))))
        for column in (table.count, table.largest, table.second)
    )
    scale = np.exp(rng.normal(0, 0.3))  # patients differ in the size of their small lesions, too
    below_second = np.interp(np.log(second / scale), np.log(table.others), QUANTILES)
    drawn = rng.random(max(round(count) - 2, 0)) * below_second
    others = scale * np.exp(np.interp(drawn, QUANTILES, np.log(table.others)))
    voxels = np.array([largest, second, *others]) * (measured / spacing_mm) ** 3
    sizes = sorted((int(n) for n in np.round(voxels)), reverse=True)
    return [n for n in sizes if n > 0] or [1]


def _make_cohort(cohort: Path, settings: Mapping[str, Any], *, n_workers: int) -> None:
    partial = cohort.with_name(f".{cohort.name}.{uuid4().hex}")
    tasks = list(_plan(partial, settings))
    logger.info("makes the synthetic cohort %s (once)", cohort)
    try:
        partial.mkdir(parents=True)
        for _ in track(_run(tasks, n_workers=min(n_workers, len(tasks))), "synthetic subjects", total=len(tasks)):
            pass
        (partial / "phantom.json").write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")
        if not cohort.is_dir():  # else another process was faster, with the same result
            partial.rename(cohort)
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
            yield _Task(patient, load_rank=float(rank), spacing_mm=settings["spacing_mm"], key=(seed, number))
            number += 1


def _run(tasks: Sequence[_Task], *, n_workers: int) -> Iterator[None]:
    """Make all subjects, the result of each depending on its task alone."""
    anatomy = load_anatomy()
    if n_workers <= 1:
        for task in tasks:
            _make_subject(task, anatomy)
            yield
        return
    pool = ProcessPoolExecutor(n_workers, get_context("spawn"), initializer=_set_anatomy, initargs=(anatomy,))
    try:
        with pool:
            for done in as_completed([pool.submit(_make_subject_in_worker, task) for task in tasks]):
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


def _distance_to_ventricles(csf: Mask) -> Array:
    """Distance in voxels to the second largest connected part of the CSF; the largest is around the brain."""
    parts, _ = ndimage.label(csf)
    outside = parts != 1 + np.argsort(np.bincount(parts.ravel())[1:])[-2]
    distance = 2 * ndimage.distance_transform_edt(outside[::2, ::2, ::2]).astype(np.float32)
    return np.where(outside, _upsample(distance, 2, shape=csf.shape), np.float32(0))


def _draw_head(anatomy: Anatomy, *, spacing_mm: float, rng: np.random.Generator) -> _Head:
    """Deform the atlas: size, pose, a smooth random field, wider ventricles; then sharpen what averaging blurred."""
    size = np.array(anatomy.ventricle_mm.shape)
    shape = tuple(int(n) for n in np.ceil((size + 2) / spacing_mm))
    scale = rng.uniform(0.82, 0.92) * np.exp(rng.normal(0, 0.02, 3))
    turn = _rotation(rng.normal(0, 0.05, 3)) / scale
    grid = np.indices(shape, dtype=np.float32)
    position = (grid - ((np.array(shape) - 1) / 2)[:, None, None, None]) * spacing_mm
    position = np.einsum("ij,jxyz->ixyz", turn.astype(np.float32), position)
    position += np.stack([_noise(shape, rng, sigma_mm=18, spacing_mm=spacing_mm) for _ in range(3)]) * 2.5
    position += ((size - 1) / 2)[:, None, None, None].astype(np.float32)
    distance = _sample(anatomy.ventricle_mm, position)
    inward = np.stack(np.gradient(ndimage.gaussian_filter(distance, 2 / spacing_mm), spacing_mm))
    position -= rng.uniform(0, 5) * np.exp(-distance / 15) * inward
    tissue = np.stack([_sample(part, position, outside=0.0) for part in anatomy.tissue])
    return _Head(_sharpen(tissue), _sample(anatomy.ventricle_mm, position), spacing_mm)


def _rotation(angles: NDArray[np.float64]) -> NDArray[np.float64]:
    """Rotation about the three axes in turn, angles in radians."""
    product = np.eye(3)
    for axis, angle in enumerate(angles):
        i, j = [k for k in range(3) if k != axis]
        turn = np.eye(3)
        turn[[i, j], [i, j]] = np.cos(angle)
        turn[i, j], turn[j, i] = -np.sin(angle), np.sin(angle)
        product = product @ turn
    return product


def _sample(volume: Array, position: Array, *, outside: float | None = None) -> Array:
    """Linear interpolation at (3, …) voxel positions; beyond the edge `outside`, or the nearest value."""
    mode, value = ("nearest", 0.0) if outside is None else ("constant", outside)
    return np.asarray(ndimage.map_coordinates(volume, position, order=1, mode=mode, cval=value, output=np.float32))


def _sharpen(tissue: Array, power: float = 2.0) -> Array:
    """Push (3, …) tissue shares, and the share that is none of them, towards 0 and 1."""
    powered = np.clip(tissue, 0, 1) ** power
    none = np.clip(1 - tissue.sum(0), 0, 1) ** power
    return np.asarray(powered / (powered.sum(0) + none))


def _noise(shape: Sequence[int], rng: np.random.Generator, *, sigma_mm: float, spacing_mm: float) -> Array:
    """Smooth Gaussian noise, mean about 0 and standard deviation 1, drawn on a grid as coarse as it may be."""
    sigma = sigma_mm / spacing_mm
    step = max(1, int(sigma / 1.5))
    field = rng.standard_normal([n // step + 2 for n in shape], dtype=np.float32)
    field = ndimage.gaussian_filter(field, sigma / step)
    field /= field.std()
    return _upsample(field, step, shape=shape)


def _upsample(field: Array, step: int, *, shape: Sequence[int]) -> Array:
    """Linear interpolation to a grid `step` times as fine, cut to `shape`."""
    for axis in range(3):
        field = ndimage.uniform_filter1d(np.repeat(field, step, axis=axis), step, axis=axis)
    return np.asarray(field[tuple(slice(n) for n in shape)])


def _grow_lesions(head: _Head, sizes: Sequence[int], *, rng: np.random.Generator) -> Iterator[_Lesion]:
    """Grow lesions of exactly these sizes where there is room, none touching another; largest first.

    A lesion is what a front starting at a random voxel of white matter reaches first. The front is slow in grey
    matter and away from the ventricles, and a smooth random field makes it ragged.
    """
    white, csf = head.tissue[1], head.tissue[2]
    raggedness = np.exp(0.8 * _noise(white.shape, rng, sigma_mm=2.5, spacing_mm=head.spacing_mm))
    slowness = (raggedness * (1 + head.ventricle_mm / 5) ** 2 / (white**2 + 0.03)).astype(np.float64)
    slowness[(csf > 0.5) | (head.tissue.sum(0) < 0.7)] = -1
    candidates = np.argwhere((white > 0.5) & (slowness > 0))
    distance = head.ventricle_mm[tuple(candidates.T)]
    reach_mm = (3.0, 8.0, 14.0)
    chances = [np.cumsum(np.exp(-distance / reach)) for reach in reach_mm]
    for size in sizes:
        volume_mm3 = size * head.spacing_mm**3
        chance = chances[0 if volume_mm3 >= 400 else 1 if volume_mm3 >= 40 else 2]
        seen_size = max(1, round(size * np.exp(rng.normal(0, 0.15))))
        order = np.empty((0, 3), dtype=np.intp)
        for _ in range(10):
            seed = candidates[np.searchsorted(chance, rng.random() * chance[-1])]
            reached = _spread(slowness, seed, n=max(size, seen_size))
            order = max(order, reached, key=len)
            if len(order) >= size:
                break
        if len(order):
            lesion = _Lesion(marked=order[:size], seen=order[:seen_size])
            for offset in np.ndindex(3, 3, 3):
                slowness[tuple((lesion.marked + offset - 1).T)] = -1
            yield lesion


def _spread(slowness: NDArray[np.float64], seed: NDArray[np.intp], *, n: int) -> NDArray[np.intp]:
    """The n voxels that a front from `seed` reaches first, in order; fewer where there is no more way.

    Args:
        slowness: (X, Y, Z) cost of a step; negative: no way.
        seed: (3,) where it starts.
        n: How many voxels.
    """
    from skimage.graph import MCP_Geometric

    if slowness[tuple(seed)] < 0:
        return np.empty((0, 3), dtype=np.intp)
    half = int(np.ceil(1.2 * n ** (1 / 3))) + 2
    while True:
        start = np.maximum(seed - half, 0)
        box = tuple(slice(a, b) for a, b in zip(start, seed + half + 1, strict=True))
        costs = slowness[box]
        front = MCP_Geometric(costs, fully_connected=True)
        arrival, _ = front.find_costs([tuple(seed - start)], max_coverage=min(1.0, (1.2 * n + 30) / costs.size))
        reached = np.flatnonzero(np.isfinite(arrival))
        if len(reached) >= n or costs.shape == slowness.shape:
            first = reached[np.argsort(arrival.ravel()[reached], kind="stable")][:n]
            return np.stack(np.unravel_index(first, costs.shape), axis=1) + start
        half *= 2


def _draw_images(head: _Head, lesions: Sequence[_Lesion], *, rng: np.random.Generator) -> dict[str, Array]:
    """Intensities of all modalities, white matter about 1 times a gain."""
    spacing = head.spacing_mm
    grey, white, csf = head.tissue
    shape = white.shape
    faint = _draw_faint_spots(head, n=len(lesions) // 4 + 2, rng=rng)
    share, severity = _paint(shape, lesions, faint, rng=rng)
    severity *= np.exp(0.4 * _noise(shape, rng, sigma_mm=4, spacing_mm=spacing))
    rim = rng.uniform(0.03, 0.15) * np.exp(-head.ventricle_mm / 2.5)  # the lining of the ventricles shines on FLAIR
    images = {}
    for name in MODALITIES:
        contrast = rng.uniform(*LESION_CONTRAST[name])
        solid = grey * rng.uniform(*GREY_MATTER[name]) + white * (1 + (rim if name == "FLAIR" else 0.0))
        patchy = 1 + 0.15 * _noise(shape, rng, sigma_mm=3, spacing_mm=spacing) if name == "FLAIR" else severity
        lesion = np.maximum(1 + contrast * patchy, 0.15)
        image = share * lesion * (grey + white) + (1 - share) * solid + csf * rng.uniform(*CSF[name])
        images[name] = _add_scanner(image, head, name=name, rng=rng)
    return images


def _draw_faint_spots(head: _Head, *, n: int, rng: np.random.Generator) -> list[_Lesion]:
    """Small bright spots of white matter that no rater marks."""
    candidates = np.argwhere(head.tissue[1] > 0.7)
    return [_Lesion(spot, spot) for spot in candidates[rng.integers(len(candidates), size=n)][:, None, :]]


def _paint(
    shape: tuple[int, ...], lesions: Sequence[_Lesion], faint: Sequence[_Lesion], *, rng: np.random.Generator
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


def _add_scanner(image: Array, head: _Head, *, name: str, rng: np.random.Generator) -> Array:
    """Uneven tissue, bias field, Rician noise and a gain."""
    shape, spacing = image.shape, head.spacing_mm
    uneven = 0.7 * _noise(shape, rng, sigma_mm=3, spacing_mm=spacing)
    uneven += 0.7 * _noise(shape, rng, sigma_mm=9, spacing_mm=spacing)
    bias = 0.04 * _noise(shape, rng, sigma_mm=45, spacing_mm=spacing)
    clean = image * np.exp(rng.uniform(*TEXTURE[name]) * uneven * (1 + 0.25 * head.tissue[0]) + bias)
    sd = rng.uniform(*NOISE_2MM[name]) * (2 / spacing) ** 0.4  # as measured at 1 mm: neighbours' noise is alike
    real, imaginary = rng.standard_normal((2, *shape), dtype=np.float32) * np.float32(sd)
    return np.asarray(rng.uniform(0.6, 1.6) * WHITE_MATTER_LEVEL * np.hypot(clean + real, imaginary))


def _as_int16(image: Array) -> NDArray[np.int16]:
    return np.clip(np.rint(image), 0, 32767).astype(np.int16)
