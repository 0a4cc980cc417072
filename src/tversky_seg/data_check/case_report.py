"""The report on one case: facts of its files, and the findings about them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tversky_seg.data.case import Case
from tversky_seg.data.preprocessing.prepared_case import PreparedCase
from tversky_seg.data_check.finding import Finding


@dataclass(frozen=True, eq=False)
class CaseReport:
    """Facts of one case: a few hundred bytes and a small picture, whatever the volumes' size."""

    case: Case
    shape: tuple[int, int, int] | None = None
    """Shape of the first modality's file; None where it cannot be read."""
    spacing_mm: tuple[float, float, float] | None = None
    """Voxel size along the axes of that file."""
    orientation: str = ""
    """Direction of its axes, as "RAS"."""
    affine_shift: float | None = None
    """Largest shift, in voxels, of a voxel by any other file's affine, its axes turned to those of
    the first; None without another file of this shape."""
    is_stored_flipped: bool = False
    """Whether the axes of another file run in other directions or another order."""
    intensities: Mapping[str, tuple[float, float]] | None = None
    """Modality -> smallest and largest value."""
    n_non_finite: int = 0
    """Voxels that are NaN or infinite."""
    checksum: int = 0
    """Checksum of the first modality's file: equal for copies."""
    prepared: PreparedCase | None = None
    """The case as training sees it, without its voxels (`lesion_offsets` stays); None where it is
    refused."""
    lesion_sizes: Mapping[str, NDArray[np.int64]] | None = None
    """Class -> voxels of each of its lesions on the network's grid; None without label."""
    n_foreground: int = 0
    """Voxels of the brain on that grid."""
    n_lesion_voxels: int = 0
    """Lesion voxels of any class."""
    cache_bytes: int = 0
    """Size of the case in the cache."""
    peak_bytes: int = 0
    """Largest memory that the process which prepared the case has held so far."""
    seconds: float = 0.0
    """Processor time to examine and prepare the case."""
    picture: bytes | None = None
    """PNG of the slice with most lesion."""
    findings: tuple[Finding, ...] = ()

    @property
    def prevalence(self) -> float | None:
        """Share of the brain that is lesion; None without label."""
        if self.prepared is None or self.lesion_sizes is None:
            return None
        # A blank scan has no brain: 0, not a division by zero.
        return self.n_lesion_voxels / max(self.n_foreground, 1)

    @property
    def n_lesions(self) -> int | None:
        """Lesions of all classes; None without label."""
        if self.lesion_sizes is None:
            return None
        # A lesion of nested classes counts once in each.
        return sum(len(sizes) for sizes in self.lesion_sizes.values())

    @property
    def volumes_mm3(self) -> dict[str, NDArray[np.float64]]:
        """Class -> volume of each lesion; empty without label."""
        if self.prepared is None or self.lesion_sizes is None:
            return {}
        # Lesions are counted after resampling, so the voxel is the network's, not the file's.
        voxel_mm3 = float(np.prod(self.prepared.spacing_mm))
        volumes: dict[str, NDArray[np.float64]] = {}
        for name, sizes in self.lesion_sizes.items():
            volumes[name] = (sizes * voxel_mm3).astype(np.float64)
        return volumes
