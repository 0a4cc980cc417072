"""The cases of a training, with what samplers ask about all of them for every patch."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from tversky_seg.data.preprocessing.prepared_case import PreparedCase


class CaseList(tuple[PreparedCase, ...]):
    """Prepared cases, and tables of them that are made once in a process.

    Of ten thousand cases a table takes longer to make than a patch.
    """

    @cached_property
    def with_lesions(self) -> list[int]:
        """Indices of the cases with lesions."""
        return [index for index, case in enumerate(self) if any(case.n_lesions)]

    @cached_property
    def n_lesions(self) -> NDArray[np.float64]:
        """Lesions of all classes, by case."""
        return np.array([sum(case.n_lesions) for case in self], dtype=float)

    @cached_property
    def n_lesion_voxels(self) -> NDArray[np.int64]:
        """Lesion voxels of all classes, by case; opens a file of each case with lesions."""
        n_voxels = np.zeros(len(self), dtype=np.int64)
        for index in self.with_lesions:
            n_voxels[index] = len(self[index].lesion_voxels)
        return n_voxels


def as_case_list(cases: Sequence[PreparedCase]) -> CaseList:
    """Return the cases with tables; a list that has them already keeps those."""
    return cases if isinstance(cases, CaseList) else CaseList(cases)
