"""Public data sets known by the names of their files."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from tversky_seg.data.image_files import image_stem

STEMS = {
    "brats_mets": r"BraTS-MET-\d+-\d+-(t1c|t1n|t2w|t2f|seg)",
    "isbi2015": r"(training|test)\d\d_\d\d_flair_pp",
    "isles2022": r"sub-strokecase\d+_ses-\d+_(dwi|adc|msk)",
    "lesjak2016": r"(patient\d+_)?study[12]_(FLAIR|T1W|T2W)(reg|_common)?",
    "lesjak2017": r"GOLD_STANDARD_N4_noneck_reduced_winsor_regtoFLAIR_regtoMNI",
    "mslesseg": r"P\d+(_T\d)?_MASK",
    "msseg2": r"flair_time0[12]_on_middle_space",
    "msseg2016": r"ManualSegmentation_[1-7]",
    "shifts_ms": r"\d+_(FLAIR|gt)_isovox",
    "simvent_ms": r"\d+_abWMHmask",
    "wmh2017": r"wmh",
}
"""Data set -> names of a file, without ending, that only it is known to have."""


def data_sets_of(files: Iterable[Path]) -> list[str]:
    """List the public data sets, as in `data=`, that the names of some files tell."""
    stems = {image_stem(file) for file in files}
    names = []
    for name, pattern in STEMS.items():
        if any(re.fullmatch(pattern, stem) for stem in stems):
            names.append(name)
    return names
