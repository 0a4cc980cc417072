"""Preprocessing: from the files of a case to normalised arrays on one grid, kept in a cache."""

from tversky_seg.data.preprocessing.case_cache import prepare
from tversky_seg.data.preprocessing.note import Note
from tversky_seg.data.preprocessing.parallel import prepare_all
from tversky_seg.data.preprocessing.pipeline import Preprocessing, preprocess, preprocessing_of
from tversky_seg.data.preprocessing.prepared_case import PreparedCase, one_case_per_rater
from tversky_seg.data.preprocessing.spacing import common_spacing, median_spacing

__all__ = [
    "Note",
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
