"""Oddities of a case's files that preprocessing puts right or leaves as they are."""

from __future__ import annotations

from dataclasses import dataclass

HALF_VOXEL = "half_voxel"
OTHER_GRID = "other_grid"
OUTSIDE_BRAIN = "outside_brain"
OUTSIDE_CROP = "outside_crop"


@dataclass(frozen=True)
class Note:
    """One oddity of the files of a case; its text is `<found>; <handling>`.

    Attributes:
        kind: HALF_VOXEL, OTHER_GRID, OUTSIDE_BRAIN or OUTSIDE_CROP.
        volume: Volume at fault: the name of a modality, "label" or "brain mask".
        found: Oddity, with the volume named.
        handling: How preprocessing treats it.
    """

    kind: str
    volume: str
    found: str
    handling: str

    def __str__(self) -> str:
        return f"{self.found}; {self.handling}"
