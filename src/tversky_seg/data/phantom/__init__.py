"""The synthetic cohort: subjects with MS-like lesions, drawn from a seed."""

from tversky_seg.data.phantom.cohort import make_phantom

__all__ = ["make_phantom"]
