"""Where the training patches lie: lesion by lesion, voxel by voxel, as two papers had it, or on a grid.

A sampler is a frozen dataclass with `sides` (of a patch in voxels), `aim` (the voxel that a patch is drawn for) and
`draw` (where the patch lies).
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from tversky_seg.data.grids import Shape
from tversky_seg.data.preprocessing.pipeline import PreparedCase

logger = logging.getLogger("tversky_seg")

Voxel = Sequence[int]


class Sampler(Protocol):
    """Draws patches; see the samplers below."""

    @property
    def sides(self) -> Shape:
        """The three sides of a patch in voxels."""
        ...

    def aim(
        self, cases: Sequence[PreparedCase], rng: np.random.Generator, *, patch_number: int = 0
    ) -> tuple[int, int | None, Voxel]:
        """Index of a case, of one of its lesions (None: aims at none), and the voxel that the patch is drawn for."""
        ...

    def draw(
        self, cases: Sequence[PreparedCase], rng: np.random.Generator, *, patch_number: int = 0
    ) -> tuple[int, Shape]:
        """Index of a case and the first voxel of a patch; patch_number counts the patches of a training from 0 on."""
        ...


@dataclass(frozen=True)
class LesionSampler:
    """Draw a patch around a random voxel of a random lesion, or around a random voxel of the brain.

    With probability `lesion_probability`: a case uniformly among those with lesions, one of its lesions uniformly (of
    all classes together), one voxel of it uniformly. Otherwise: a case uniformly among all, a voxel of its brain
    uniformly. Drawing voxels instead of lesions would give the smallest half of MS lesions 5 % of the patches.
    Without any lesion in any case every patch is a brain patch.

    The voxel then lies uniformly in the central `jitter` share of the patch's sides, so that no place in the patch
    tells of a lesion; next to the border the patch is pushed back into the volume. A volume smaller than the patch
    lies wholly inside it.

    Args:
        patch_size: Sides of a patch in voxels, one number or three.
        lesion_probability: Share of patches drawn from lesions, in [0, 1].
        jitter: Share of each side in which the drawn voxel may lie, in [0, 1]: 0 puts it in the centre, 1 anywhere.

    Raises:
        ValueError: A side below 1, or a share outside [0, 1].
    """

    patch_size: int | tuple[int, int, int] = 64
    lesion_probability: float = 0.5
    jitter: float = 0.75

    def __post_init__(self) -> None:
        """Refuse what cannot be drawn."""
        _check(self.patch_size, lesion_probability=self.lesion_probability, jitter=self.jitter)

    @property
    def sides(self) -> Shape:
        """The three sides of a patch in voxels."""
        return _sides(self.patch_size)

    def aim(
        self, cases: Sequence[PreparedCase], rng: np.random.Generator, *, patch_number: int = 0
    ) -> tuple[int, int | None, Voxel]:
        """Index of the case, of the lesion (None: a voxel of the brain), and the voxel drawn."""
        index = _case_with_lesions(cases, rng) if rng.random() < self.lesion_probability else None
        if index is None:
            return _brain_aim(cases, rng)
        lesion = int(rng.integers(len(cases[index].lesion_offsets) - 1))
        return index, lesion, _voxel_of(lesion, cases[index], rng)

    def draw(
        self, cases: Sequence[PreparedCase], rng: np.random.Generator, *, patch_number: int = 0
    ) -> tuple[int, Shape]:
        """Draw one patch.

        Args:
            cases: The prepared cases, at least one.
            rng: All randomness comes from here.
            patch_number: Not needed.

        Returns:
            The index of the case, and the patch's first voxel (X, Y, Z); negative where the volume is too small.

        Raises:
            ValueError: Without cases.
        """
        _require_cases(cases)
        index, _, voxel = self.aim(cases, rng)
        return index, _start(
            voxel, cases[index].geometry.shape, self.sides, rng, jitter=self.jitter
        )


@dataclass(frozen=True)
class SizeTemperedSampler:
    """As `LesionSampler`, with a lesion's chance growing as its number of voxels to the power `power`.

    Args:
        patch_size: Sides of a patch in voxels, one number or three.
        lesion_probability: Share of patches drawn from lesions, in [0, 1].
        jitter: As in `LesionSampler`.
        power: In [0, 1]: 0 draws lesions uniformly, 1 their voxels.

    Raises:
        ValueError: A side below 1, or a share outside [0, 1].
    """

    patch_size: int | tuple[int, int, int] = 64
    lesion_probability: float = 0.5
    jitter: float = 0.75
    power: float = 0.5

    def __post_init__(self) -> None:
        """Refuse what cannot be drawn."""
        _check(
            self.patch_size,
            lesion_probability=self.lesion_probability,
            jitter=self.jitter,
            power=self.power,
        )

    @property
    def sides(self) -> Shape:
        """The three sides of a patch in voxels."""
        return _sides(self.patch_size)

    def aim(
        self, cases: Sequence[PreparedCase], rng: np.random.Generator, *, patch_number: int = 0
    ) -> tuple[int, int | None, Voxel]:
        """Index of the case, of the lesion (None: a voxel of the brain), and the voxel drawn."""
        index = _case_with_lesions(cases, rng) if rng.random() < self.lesion_probability else None
        if index is None:
            return _brain_aim(cases, rng)
        chances = np.diff(cases[index].lesion_offsets).astype(float) ** self.power
        lesion = int(rng.choice(len(chances), p=chances / chances.sum()))
        return index, lesion, _voxel_of(lesion, cases[index], rng)

    def draw(
        self, cases: Sequence[PreparedCase], rng: np.random.Generator, *, patch_number: int = 0
    ) -> tuple[int, Shape]:
        """Index of the case and the patch's first voxel, as `LesionSampler.draw`."""
        _require_cases(cases)
        index, _, voxel = self.aim(cases, rng)
        return index, _start(
            voxel, cases[index].geometry.shape, self.sides, rng, jitter=self.jitter
        )


@dataclass(frozen=True)
class ForegroundSampler:
    """As other tools draw: a case uniformly, then one of its lesion voxels uniformly, in the centre of the patch.

    Large lesions are seen more often, by their volume. Otherwise, and in a case without lesion, the patch lies
    uniformly where it fits.

    Args:
        patch_size: Sides of a patch in voxels, one number or three.
        lesion_probability: Share of patches drawn from lesion voxels, in [0, 1].
        jitter: As in `LesionSampler`; 0 is the centre.

    Raises:
        ValueError: A side below 1, or a share outside [0, 1].
    """

    patch_size: int | tuple[int, int, int] = 64
    lesion_probability: float = 0.33
    jitter: float = 0.0

    def __post_init__(self) -> None:
        """Refuse what cannot be drawn."""
        _check(self.patch_size, lesion_probability=self.lesion_probability, jitter=self.jitter)

    @property
    def sides(self) -> Shape:
        """The three sides of a patch in voxels."""
        return _sides(self.patch_size)

    def aim(
        self, cases: Sequence[PreparedCase], rng: np.random.Generator, *, patch_number: int = 0
    ) -> tuple[int, int | None, Voxel]:
        """Index of the case, of the lesion that the drawn voxel belongs to (None: none), and the voxel."""
        index = int(rng.integers(len(cases)))
        if rng.random() >= self.lesion_probability or not any(cases[index].n_lesions):
            return index, None, _fitting_centre(cases[index], self.sides, rng)
        return index, *_lesion_voxel(cases[index], rng)

    def draw(
        self, cases: Sequence[PreparedCase], rng: np.random.Generator, *, patch_number: int = 0
    ) -> tuple[int, Shape]:
        """Index of the case and the patch's first voxel, as `LesionSampler.draw`."""
        _require_cases(cases)
        index, lesion, voxel = self.aim(cases, rng)
        jitter = 0.0 if lesion is None else self.jitter
        return index, _start(voxel, cases[index].geometry.shape, self.sides, rng, jitter=jitter)


@dataclass(frozen=True)
class UniformSampler:
    """A case uniformly, then a place uniformly where the patch fits; nothing is aimed at.

    Args:
        patch_size: Sides of a patch in voxels, one number or three.

    Raises:
        ValueError: A side below 1.
    """

    patch_size: int | tuple[int, int, int] = 64

    def __post_init__(self) -> None:
        """Refuse what cannot be drawn."""
        _check(self.patch_size)

    @property
    def sides(self) -> Shape:
        """The three sides of a patch in voxels."""
        return _sides(self.patch_size)

    def aim(
        self, cases: Sequence[PreparedCase], rng: np.random.Generator, *, patch_number: int = 0
    ) -> tuple[int, int | None, Voxel]:
        """Index of the case, None, and the centre of the patch."""
        index = int(rng.integers(len(cases)))
        return index, None, _fitting_centre(cases[index], self.sides, rng)

    def draw(
        self, cases: Sequence[PreparedCase], rng: np.random.Generator, *, patch_number: int = 0
    ) -> tuple[int, Shape]:
        """Index of the case and the patch's first voxel, as `LesionSampler.draw`."""
        _require_cases(cases)
        index, _, voxel = self.aim(cases, rng)
        return index, _start(voxel, cases[index].geometry.shape, self.sides, rng, jitter=0)


@dataclass(frozen=True)
class Hashemi2018Sampler:
    """As the released code of arXiv:1803.11078: every patch holds lesion voxels in its central half.

    A case uniformly among those with at least `min_case_voxels` lesion voxels, then a lesion voxel uniformly, which
    lies off the centre by -20 to 19 voxels along each axis, pushed back into the volume. The patch is drawn again while
    the cube of half its sides in its middle holds fewer lesion voxels than asked for, at most 50 times: then the one
    with most is taken. So lesions at the volume's border are seen in patches drawn for others, or where no patch holds
    enough. Both limits are lower after the first patches of a training. (There, subjects took turns.)

    Args:
        patch_size: Sides of a patch in voxels, one number or three.
        jitter_voxels: 20 is -20 to 19.
        min_voxels: Lesion voxels in the middle, for the first 1000 patches and after.
        min_case_voxels: Lesion voxels of a case, for the first 100 patches and after.

    Raises:
        ValueError: A side below 1, or a limit below 0.
    """

    patch_size: int | tuple[int, int, int] = 128
    jitter_voxels: int = 20
    min_voxels: tuple[int, int] = (50, 5)
    min_case_voxels: tuple[int, int] = (100, 10)

    def __post_init__(self) -> None:
        """Refuse what cannot be drawn."""
        _check(self.patch_size)
        for name in ("min_voxels", "min_case_voxels"):
            if len(getattr(self, name)) != 2 or min(getattr(self, name)) < 0:
                raise ValueError(
                    f"{name} must be two numbers >= 0, got {name}={getattr(self, name)}"
                )
        if self.jitter_voxels < 0:
            raise ValueError(f"jitter_voxels must be >= 0, got jitter_voxels={self.jitter_voxels}")

    @property
    def sides(self) -> Shape:
        """The three sides of a patch in voxels."""
        return _sides(self.patch_size)

    def aim(
        self, cases: Sequence[PreparedCase], rng: np.random.Generator, *, patch_number: int = 0
    ) -> tuple[int, int | None, Voxel]:
        """Index of the case, of the lesion, and the voxel drawn; None and a voxel of the brain without any lesion."""
        return self._accepted(cases, rng, patch_number)[0]

    def draw(
        self, cases: Sequence[PreparedCase], rng: np.random.Generator, *, patch_number: int = 0
    ) -> tuple[int, Shape]:
        """Index of the case and the patch's first voxel, as `LesionSampler.draw`."""
        _require_cases(cases)
        (index, _, _), start = self._accepted(cases, rng, patch_number)
        return index, start

    def _accepted(
        self, cases: Sequence[PreparedCase], rng: np.random.Generator, patch_number: int
    ) -> tuple[tuple[int, int | None, Voxel], Shape]:
        enough = self.min_case_voxels[patch_number >= 100]
        indices = [
            i
            for i, case in enumerate(cases)
            if any(case.n_lesions) and len(case.lesion_voxels) >= enough
        ]
        if not indices:
            index, _, voxel = _brain_aim(cases, rng)
            return (index, None, voxel), _start(
                voxel, cases[index].geometry.shape, self.sides, rng, jitter=0
            )
        index = indices[rng.integers(len(indices))]
        case, found = cases[index], []
        places = np.stack(np.unravel_index(case.lesion_voxels, case.geometry.shape), axis=1)
        for _ in range(50):
            lesion, voxel = _lesion_voxel(case, rng)
            off = rng.integers(-self.jitter_voxels, max(self.jitter_voxels, 1), 3)
            start = _start(np.add(voxel, off), case.geometry.shape, self.sides, rng, jitter=0)
            low = np.add(start, np.array(self.sides) // 4)
            n_voxels = (
                ((places >= low) & (places < low + (np.array(self.sides) + 1) // 2))
                .all(axis=1)
                .sum()
            )
            found.append((int(n_voxels), lesion, voxel, start))
            if n_voxels >= self.min_voxels[patch_number >= 1000]:
                break
        _, lesion, voxel, start = max(found, key=lambda candidate: candidate[0])
        return (index, lesion, voxel), start


@dataclass(frozen=True)
class Shirokikh2020Sampler:
    """As the released code of arXiv:2007.10033: a case by its number of lesions, half the patches on a lesion.

    A case is drawn in proportion to its number of lesions, so one without is never seen. Then, with
    `lesion_probability`, a lesion uniformly and one of its voxels uniformly, in the centre of the patch (pushed back
    into the volume); otherwise a place uniformly where the patch fits.

    Args:
        patch_size: Sides of a patch in voxels, one number or three.
        lesion_probability: Share of patches drawn from lesions, in [0, 1].

    Raises:
        ValueError: A side below 1, or a share outside [0, 1].
    """

    patch_size: int | tuple[int, int, int] = 128
    lesion_probability: float = 0.5

    def __post_init__(self) -> None:
        """Refuse what cannot be drawn."""
        _check(self.patch_size, lesion_probability=self.lesion_probability)

    @property
    def sides(self) -> Shape:
        """The three sides of a patch in voxels."""
        return _sides(self.patch_size)

    def aim(
        self, cases: Sequence[PreparedCase], rng: np.random.Generator, *, patch_number: int = 0
    ) -> tuple[int, int | None, Voxel]:
        """Index of the case, of the lesion (None: aims at none), and the voxel in the centre."""
        n_lesions = np.array([sum(case.n_lesions) for case in cases], dtype=float)
        if not n_lesions.any():
            return _brain_aim(cases, rng)
        index = int(rng.choice(len(cases), p=n_lesions / n_lesions.sum()))
        if rng.random() >= self.lesion_probability:
            return index, None, _fitting_centre(cases[index], self.sides, rng)
        lesion = int(rng.integers(n_lesions[index]))
        return index, lesion, _voxel_of(lesion, cases[index], rng)

    def draw(
        self, cases: Sequence[PreparedCase], rng: np.random.Generator, *, patch_number: int = 0
    ) -> tuple[int, Shape]:
        """Index of the case and the patch's first voxel, as `LesionSampler.draw`."""
        _require_cases(cases)
        index, _, voxel = self.aim(cases, rng)
        return index, _start(voxel, cases[index].geometry.shape, self.sides, rng, jitter=0)


@dataclass(frozen=True)
class GridSampler:
    """All patches of a regular grid over every case, each once before any comes again, in an order drawn per round.

    Patches lie as evenly as they can and cover each volume, overlapping by at least `overlap` of their sides.

    Args:
        patch_size: Sides of a patch in voxels, one number or three.
        overlap: Share of a side, in [0, 1).

    Raises:
        ValueError: A side below 1, or an overlap outside [0, 1).
    """

    patch_size: int | tuple[int, int, int] = 64
    overlap: float = 0.0

    def __post_init__(self) -> None:
        """Refuse what cannot be drawn."""
        _check(self.patch_size)
        if not 0 <= self.overlap < 1:
            raise ValueError(f"overlap must lie in [0, 1), got overlap={self.overlap}")

    @property
    def sides(self) -> Shape:
        """The three sides of a patch in voxels."""
        return _sides(self.patch_size)

    def aim(
        self, cases: Sequence[PreparedCase], rng: np.random.Generator, *, patch_number: int = 0
    ) -> tuple[int, int | None, Voxel]:
        """Index of the case, None, and the centre of the patch."""
        index, start = self.draw(cases, rng, patch_number=patch_number)
        return (
            index,
            None,
            [first + side // 2 for first, side in zip(start, self.sides, strict=True)],
        )

    def draw(
        self, cases: Sequence[PreparedCase], rng: np.random.Generator, *, patch_number: int = 0
    ) -> tuple[int, Shape]:
        """Index of the case and the first voxel of patch `patch_number`; rng is not used."""
        _require_cases(cases)
        ends = np.cumsum([np.prod([len(along) for along in self._starts(case)]) for case in cases])
        in_round, place = divmod(patch_number, int(ends[-1]))
        k = int(np.random.default_rng(in_round).permutation(int(ends[-1]))[place])
        index = int(np.searchsorted(ends, k, side="right"))
        x, y, z = list(product(*self._starts(cases[index])))[k - int(ends[index])]
        return index, (x, y, z)

    def _starts(self, case: PreparedCase) -> list[list[int]]:
        """The first voxels of the patches along each axis; ends[index] - n + j counts them back to front."""
        starts = []
        for side, n in zip(self.sides, case.geometry.shape, strict=True):
            room = n - side
            n_patches = (
                1 if room <= 0 else 1 + int(np.ceil(room / max(1, int(side * (1 - self.overlap)))))
            )
            starts.append(
                np.linspace(
                    min(room // 2, 0) if n_patches == 1 else 0, max(room, 0), n_patches
                ).astype(int)
            )
        return [along[:1].tolist() if len(along) == 1 else along.tolist() for along in starts]


def _check(patch_size: int | Sequence[int], **shares: float) -> None:
    """Refuse sides below 1 and shares outside [0, 1], by name and value."""
    sides = (patch_size,) * 3 if isinstance(patch_size, int) else patch_size
    if len(sides) != 3 or min(sides) < 1:
        raise ValueError(f"patch_size must be one or three numbers >= 1, got {patch_size}")
    for name, share in shares.items():
        if not 0 <= share <= 1:
            raise ValueError(f"{name} must lie in [0, 1], got {name}={share}")


def _require_cases(cases: Sequence[PreparedCase]) -> None:
    if not cases:
        raise ValueError("patches are drawn from at least one case, got none")


def _sides(patch_size: int | Sequence[int]) -> Shape:
    x, y, z = (patch_size,) * 3 if isinstance(patch_size, int) else patch_size
    return x, y, z


def _start(
    voxel: Voxel | NDArray[np.int_],
    shape: Voxel,
    sides: Shape,
    rng: np.random.Generator,
    *,
    jitter: float,
) -> Shape:
    """First voxel of a patch in whose central `jitter` share the voxel lies, inside the volume where it fits."""
    room = np.subtract(shape, sides)  # negative where the volume is smaller than the patch
    place = 0.5 + jitter * (rng.random(3) - 0.5)  # of the voxel in the patch, in [0, 1)
    start = np.asarray(voxel) - np.floor(place * np.array(sides)).astype(int)
    x, y, z = np.clip(start, np.minimum(room, 0), np.maximum(room, 0)).tolist()
    return x, y, z


def _fitting_centre(case: PreparedCase, sides: Shape, rng: np.random.Generator) -> Voxel:
    """Centre of a patch that lies uniformly where it fits; along an axis that is too short, in the middle."""
    room = np.subtract(case.geometry.shape, sides)
    start = np.where(room > 0, rng.integers(np.maximum(room, 0) + 1), room // 2)
    return [int(n) for n in start + np.array(sides) // 2]


def _brain_aim(cases: Sequence[PreparedCase], rng: np.random.Generator) -> tuple[int, None, Voxel]:
    """A case uniformly, then a voxel of its brain uniformly."""
    index = int(rng.integers(len(cases)))
    return index, None, _brain_voxel(cases[index], rng)


def _case_with_lesions(cases: Sequence[PreparedCase], rng: np.random.Generator) -> int | None:
    """Uniform among the cases with lesions; None where no case has any."""
    with_lesions = [index for index, case in enumerate(cases) if any(case.n_lesions)]
    return with_lesions[rng.integers(len(with_lesions))] if with_lesions else None


def _voxel_of(lesion: int, case: PreparedCase, rng: np.random.Generator) -> tuple[int, ...]:
    first, end = case.lesion_offsets[lesion : lesion + 2]
    return _position(case.lesion_voxels[rng.integers(first, end)], case)


def _lesion_voxel(case: PreparedCase, rng: np.random.Generator) -> tuple[int, tuple[int, ...]]:
    """A lesion voxel uniformly, after the number of its lesion."""
    number = int(rng.integers(len(case.lesion_voxels)))
    lesion = int(np.searchsorted(case.lesion_offsets, number, side="right")) - 1
    return lesion, _position(case.lesion_voxels[number], case)


def _brain_voxel(case: PreparedCase, rng: np.random.Generator) -> tuple[int, ...]:
    n_voxels = len(case.foreground_voxels)
    if n_voxels == 0:  # a blank scan still gives a patch
        return tuple(rng.integers(case.geometry.shape).tolist())
    return _position(case.foreground_voxels[rng.integers(n_voxels)], case)


def _position(linear: np.int32, case: PreparedCase) -> tuple[int, ...]:
    return tuple(int(i) for i in np.unravel_index(int(linear), case.geometry.shape))


@dataclass(frozen=True)
class DrawShares:
    """What a sampler shows a network of the lesions of a cohort.

    Attributes:
        n_lesions: In all cases and classes.
        limits: (3,) sizes in voxels that part the lesions into quarters.
        shares: (4,) share of the patches drawn for a lesion that go to each quarter, the smallest lesions first; NaN
            where no patch is drawn for a lesion.
        lesion_share: Share of all patches that are drawn for a lesion.
        off_centre: (2,) median and 90th percentile of the drawn lesion voxel's distance from the patch's centre along
            the axis where it is largest, as a share of half the side: 0 is the centre, 1 the border. NaN likewise.
    """

    n_lesions: int
    limits: tuple[float, ...]
    shares: tuple[float, ...]
    lesion_share: float
    off_centre: tuple[float, float]


def draw_shares(
    sampler: Sampler, cases: Sequence[PreparedCase], *, n_draws: int = 2000, seed: int = 0
) -> DrawShares:
    """Draw patches as a training does, and count which lesions they are drawn for; no image is read.

    Args:
        sampler: Any of this module.
        cases: The training cases, at least one.
        n_draws: How many.
        seed: Of the draws.
    """
    quarters, limits = _quarters(cases)
    counts, off_centre = np.zeros(4), []
    half = np.array(sampler.sides) / 2
    for k in range(n_draws):
        index, lesion, voxel = sampler.aim(cases, np.random.default_rng([seed, k]), patch_number=k)
        if lesion is not None:
            _, start = sampler.draw(cases, np.random.default_rng([seed, k]), patch_number=k)
            counts[quarters[index][lesion]] += 1
            off_centre.append(np.abs((np.subtract(voxel, start) + 0.5) / half - 1).max())
    n_aimed = int(counts.sum())
    shares = counts / n_aimed if n_aimed else np.full(4, np.nan)
    median, high = np.percentile(off_centre, (50, 90)) if n_aimed else (np.nan, np.nan)
    n_lesions = sum(len(quarter) for quarter in quarters)
    return DrawShares(
        n_lesions, limits, tuple(shares.tolist()), n_aimed / n_draws, (float(median), float(high))
    )


def _quarters(cases: Sequence[PreparedCase]) -> tuple[list[NDArray[np.int_]], tuple[float, ...]]:
    """For each case the quarter (0 smallest) of each of its lesions among those of all, by rank; and the limits."""
    sizes = [np.diff(case.lesion_offsets) for case in cases]
    pooled = np.concatenate(sizes)
    ranks = np.empty(len(pooled), dtype=int)
    ranks[np.argsort(pooled, kind="stable")] = np.arange(len(pooled))
    quarters = ranks * 4 // max(len(pooled), 1)
    limits = tuple(np.percentile(pooled, (25, 50, 75)).tolist()) if len(pooled) else (np.nan,) * 3
    return np.split(quarters, np.cumsum([len(of_case) for of_case in sizes])[:-1]), limits


def log_draw_shares(sampler: Sampler, cases: Sequence[PreparedCase]) -> None:
    """Say before a training which lesions its patches will be drawn for."""
    found = draw_shares(sampler, cases)
    name = type(sampler).__name__
    if not found.lesion_share:
        logger.info(
            "%s: patches are drawn for no lesion in particular (%d lesions)", name, found.n_lesions
        )
        return
    quarters = ", ".join(
        f"{100 * share:.0f} % to {label}"
        for share, label in zip(
            found.shares,
            [
                f"those up to {found.limits[0]:.0f} voxels",
                *(f"up to {n:.0f}" for n in found.limits[1:]),
                "the largest",
            ],
            strict=True,
        )
    )
    logger.info("%s: %.0f %% of patches are drawn for a lesion; of these %s (quarters of %d lesions)", name,
                100 * found.lesion_share, quarters, found.n_lesions)  # fmt: skip
    logger.info("%s: the drawn lesion voxel lies %.0f %% (median; 90th percentile %.0f %%) of the way from the patch's "
                "centre to its border", name, *(100 * share for share in found.off_centre))  # fmt: skip
