"""Values that nobody expects in a JSON file or a config."""

from typing import Any

from hypothesis import strategies as st

ODD_VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 3, 10**9, 10**30, 0.5, -0.0, float("nan"), float("inf")),
    *("", "x", "dice", "é", "\x1b[2J", "\ud800", "1", "null", "../x", "a/b", "x" * 300),
    *([], [1], [1, 2, 3], [0, 0, 0], [10**6] * 3, [None], [[[]]], ["FLAIR"], ["FLAIR", "T1"]),
    *({}, {"a": 1}, {"lesion": 0.5}, {"lesion": [1]}, {"lesion": None}, {"": {"": []}}),
)


def odd_json() -> st.SearchStrategy[Any]:
    """Draw a value that JSON can hold."""
    return st.one_of(st.sampled_from(ODD_VALUES), st.integers(), st.floats(), st.text(max_size=5))
