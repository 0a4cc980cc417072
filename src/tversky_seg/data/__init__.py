"""Cohorts: cases, manifests, splits, and the NIfTI files behind them."""

from typing import TYPE_CHECKING

from tversky_seg.runtime.lazy_names import lazy_names

if TYPE_CHECKING:
    from tversky_seg.data.case import Case
    from tversky_seg.data.dataset import Dataset, find_cases
    from tversky_seg.data.discovery.make import make_manifest
    from tversky_seg.data.errors import DataError
    from tversky_seg.data.inputs import find_inputs
    from tversky_seg.data.manifest import read_manifest, write_manifest
    from tversky_seg.data.nifti import Volume, read_label, read_volume, write_volume
    from tversky_seg.data.split import Split, split_cases
else:
    # Help and error messages need none of nibabel and scipy.
    __getattr__ = lazy_names(
        __name__,
        {
            "case": ["Case"],
            "dataset": ["Dataset", "find_cases"],
            "discovery.make": ["make_manifest"],
            "errors": ["DataError"],
            "inputs": ["find_inputs"],
            "manifest": ["read_manifest", "write_manifest"],
            "nifti": ["Volume", "read_label", "read_volume", "write_volume"],
            "split": ["Split", "split_cases"],
        },
    )

__all__ = [
    "Case",
    "DataError",
    "Dataset",
    "Split",
    "Volume",
    "find_cases",
    "find_inputs",
    "make_manifest",
    "read_label",
    "read_manifest",
    "read_volume",
    "split_cases",
    "write_manifest",
    "write_volume",
]
