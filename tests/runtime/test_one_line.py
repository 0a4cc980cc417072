import pytest

from tversky_seg.runtime.one_line import message_lines


@pytest.mark.parametrize(
    ("error", "lines"),
    [
        (MemoryError(), ["MemoryError"]),
        (RuntimeError("\n \n"), ["RuntimeError"]),
        (RuntimeError("\n first \n\nlast\n"), ["first", "last"]),
    ],
)
def test_there_is_a_line_whatever_an_error_says(error: Exception, lines: list[str]) -> None:
    assert message_lines(error) == lines
