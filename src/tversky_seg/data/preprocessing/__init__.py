"""Preprocessing: from the files of a case to normalised arrays on one grid, kept in a cache."""

from tversky_seg.data.preprocessing.pipeline import (
    Preprocessing,
    common_spacing,
    median_spacing,
    prepare,
    prepare_all,
    preprocess,
    preprocessing_of,
)
from tversky_seg.data.preprocessing.prepared_case import PreparedCase, one_case_per_rater

__all__ = [
    "PreparedCase",
    "Preprocessing",
    "common_spacing",
    "median_spacing",
    "one_case_per_rater",
    "prepare",
    "prepare_all",
    "preprocess",
    "preprocessing_of",
]
