"""What all fuzzing has in common: how many inputs there are, and what no input may do.

FUZZ_INPUTS is the number of inputs over all targets: 2,000 in `make test`, 100,000 in `make fuzz`.
Equal numbers give equal inputs, on every machine.
"""

import contextlib
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st

from tversky_seg.config import ConfigError
from tversky_seg.data.errors import DataError
from tversky_seg.runtime.checkpoints import CheckpointError

N_INPUTS = int(os.environ.get("FUZZ_INPUTS", "2000"))
LONGEST_S = 10
MOST_BYTES = 2**30

Edit = Callable[[bytes], bytes]


def fuzz(share: float) -> Callable[[Any], Any]:
    """Run a test on its share of the inputs."""
    return settings(
        max_examples=max(1, round(share * N_INPUTS)),
        derandomize=True,
        database=None,
        deadline=None,
        phases=(Phase.explicit, Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
    )


def result_or_refusal(function: Callable[[], Any], *, named: Sequence[object]) -> Any:
    """Call a function on a damaged input, in bounded time and memory.

    Returns:
        What it returns; None where it refuses the input in one line that holds one of the names.
    """
    try:
        with bounded():
            return function()
    except (DataError, ConfigError, CheckpointError) as error:
        line = str(error)
        assert line.isprintable(), repr(line)
        assert any(str(name) in line for name in named), line
        return None


def rewrite(file: Path, content: bytes) -> Path:
    """Write a file anew, which is ten times as fast as to write over it."""
    file.unlink(missing_ok=True)
    file.write_bytes(content)
    return file


@contextlib.contextmanager
def bounded() -> Iterator[None]:
    """Fail if the block takes more than 10 s or 1 GiB."""
    before = _peak_bytes()
    has_alarm = hasattr(signal, "SIGALRM")  # Windows has none
    if has_alarm:
        previous = signal.signal(signal.SIGALRM, _too_slow)
        signal.alarm(LONGEST_S)
    try:
        yield
    finally:
        if has_alarm:
            signal.alarm(0)
            signal.signal(signal.SIGALRM, previous)
    assert _peak_bytes() - before < MOST_BYTES, "more than 1 GiB"


@contextlib.contextmanager
def untouched(folder: Path) -> Iterator[None]:
    """Fail if the block makes, changes or removes a file of a folder."""
    before = _states(folder)
    yield
    assert _states(folder) == before


def damages() -> st.SearchStrategy[list[Edit]]:
    """Draw one to three changes of some bytes, wherever they are."""
    place = st.integers(0, 2**20)
    some_bytes = st.binary(min_size=1, max_size=8)
    one = st.one_of(
        st.builds(_flip, place, st.integers(0, 7)),
        st.builds(_overwrite, place, some_bytes),
        st.builds(_insert, place, some_bytes),
        st.builds(_cut, place),
        st.builds(_leave_out, place, st.integers(1, 64)),
        st.builds(_zero, place, st.integers(1, 256)),
    )
    return st.lists(one, min_size=1, max_size=3)


def edited(content: bytes, edits: Sequence[Edit]) -> bytes:
    """Apply changes one after the other."""
    for edit in edits:
        content = edit(content)
    return content


def _flip(place: int, bit: int) -> Edit:
    def edit(content: bytes) -> bytes:
        at = place % max(1, len(content))
        return (
            content[:at]
            + bytes(byte ^ 1 << bit for byte in content[at : at + 1])
            + content[at + 1 :]
        )

    return edit


def _overwrite(place: int, new: bytes) -> Edit:
    def edit(content: bytes) -> bytes:
        at = place % max(1, len(content))
        return content[:at] + new + content[at + len(new) :]

    return edit


def _insert(place: int, new: bytes) -> Edit:
    def edit(content: bytes) -> bytes:
        at = place % (len(content) + 1)
        return content[:at] + new + content[at:]

    return edit


def _cut(place: int) -> Edit:
    return lambda content: content[: place % max(1, len(content))]


def _leave_out(place: int, n: int) -> Edit:
    def edit(content: bytes) -> bytes:
        at = place % max(1, len(content))
        return content[:at] + content[at + n :]

    return edit


def _zero(place: int, n: int) -> Edit:
    def edit(content: bytes) -> bytes:
        at = place % max(1, len(content))
        block = content[at : at + n]
        return content[:at] + bytes(len(block)) + content[at + n :]

    return edit


def _too_slow(number: int, frame: object) -> NoReturn:
    raise AssertionError(f"not done after {LONGEST_S} s")


def _peak_bytes() -> int:
    """Read the largest memory that this process has had; 0 where the system does not tell."""
    if sys.platform == "win32":
        return 0
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def _states(folder: Path) -> dict[Path, tuple[int, int]]:
    states = {}
    for path in folder.rglob("*"):
        status = path.lstat()
        states[path] = (status.st_size, status.st_mtime_ns)
    return states
