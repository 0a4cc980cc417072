"""Averages over cases, and the shape of results with one class or several."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TypeVar

import numpy as np

Value = TypeVar("Value")


def mean_of_defined(values: Iterable[float]) -> float:
    """Average the values that are not NaN; NaN if there is none."""
    array = np.fromiter(values, dtype=np.float64)
    defined = array[~np.isnan(array)]
    # numpy would warn of the mean of an empty array.
    if not defined.size:
        return float("nan")
    return float(defined.mean())


def unwrap_single(by_class: Mapping[str, Value]) -> Value | dict[str, Value]:
    """Return the value itself if there is one class, else a dict of class name to value.

    So metrics.json and checkpoints of one class hold `"threshold": 0.5`, and those of several
    hold `"threshold": {"liver": 0.5, "tumour": 0.7}`.
    """
    if len(by_class) == 1:
        return next(iter(by_class.values()))
    return dict(by_class)
