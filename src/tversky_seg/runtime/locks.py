"""Lock files: one process at a time, on a shared disk too, and free again after a crash.

A lock is a file that its owner creates, touches every few seconds and removes at the end. It is
abandoned once its owner is dead, which another process of the same machine can see at once, or has
not touched it for two minutes, which is all that another machine can see. No lock of the system
(flock) is used, since network file systems often keep it to one machine, or have none.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import secrets
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tversky_seg.runtime.files import read_json

SECONDS_BETWEEN_TOUCHES = 10.0
SECONDS_UNTIL_ABANDONED = 120.0  # a network file system may show a time that is a minute old
SECONDS_BETWEEN_TRIES = 0.05
SECONDS_FOR_AN_END = 5.0  # of a process that was interrupted and writes its checkpoint


@dataclass(frozen=True)
class Owner:
    """The process that holds a lock."""

    host: str
    pid: int
    machine: str
    started: str | None
    """Start time of the process: its number alone may be taken again by another one."""
    token: str

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"

    @classmethod
    def this_process(cls) -> Owner:
        """Describe this process, with a token that no other lock has."""
        pid = os.getpid()
        return cls(platform.node(), pid, _machine(), _start_time(pid), secrets.token_hex(8))


class Locked(RuntimeError):
    """Another process holds the lock; `owner` says which."""

    def __init__(self, path: Path, owner: Owner | None) -> None:
        super().__init__(f"{path}: in use by {owner or 'another process'}")
        self.path = path
        self.owner = owner


@contextlib.contextmanager
def lock_file(
    path: Path,
    *,
    wait_s: float = 0.0,
    even_if_alive: bool = False,
    content: Mapping[str, Any] | None = None,
) -> Iterator[None]:
    """Hold a lock file within the block.

        with lock_file(folder / ".lock", wait_s=60):
            ...  # no other process of any machine is here

    Args:
        path: File to create. Its folder must exist.
        wait_s: Seconds to wait at most while another process holds it.
        even_if_alive: Whether to wait for a process that works, as for one that is soon done; if
            not, the wait ends once the other is known to be alive: after five seconds on this
            machine, and on another one when it touches its lock.
        content: Plain values to keep in the file besides the owner; see `read_lock`.

    Raises:
        Locked: Another process still holds it after the wait.
        OSError: The folder cannot be written.
    """
    owner = Owner.this_process()
    start = time.monotonic()
    first_touch = None
    while not _create(path, {"owner": asdict(owner), **(content or {})}):
        waited_s = time.monotonic() - start
        if first_touch is None:
            first_touch = _last_touch(path)
        if is_abandoned(path):
            _take_away(path)
            continue
        is_in_vain = waited_s >= wait_s
        if not even_if_alive:
            is_in_vain |= _is_alive(path, first_touch=first_touch, waited_s=waited_s)
        if is_in_vain:
            raise Locked(path, owner_of(path))
        time.sleep(SECONDS_BETWEEN_TRIES)
    is_over = threading.Event()
    toucher = threading.Thread(target=_touch_until, args=(path, is_over), daemon=True)
    toucher.start()
    try:
        yield
    finally:
        is_over.set()
        toucher.join()
        holder = owner_of(path)
        # A process that slept for minutes may have lost its lock to another.
        if holder is None or holder.token == owner.token:
            path.unlink(missing_ok=True)


def read_lock(path: Path) -> dict[str, Any]:
    """Read the content of a lock file; empty if it is gone or being written."""
    try:
        content = read_json(path)
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def owner_of(path: Path) -> Owner | None:
    """Return the owner of a lock file; None if it is gone or being written."""
    try:
        return Owner(**read_lock(path)["owner"])
    except (KeyError, TypeError):
        return None


def is_abandoned(path: Path) -> bool:
    """Tell whether the owner of a lock file has ended without removing it."""
    owner = owner_of(path)
    if owner is not None and owner.machine == _machine() and not _is_running(owner):
        return True
    try:
        return _file_system_time(path.parent) - path.stat().st_mtime > SECONDS_UNTIL_ABANDONED
    except OSError:  # it is gone
        return False


def _is_alive(path: Path, *, first_touch: float | None, waited_s: float) -> bool:
    """Tell whether the owner of a lock is known to be alive: by its number, or by a new touch."""
    owner = owner_of(path)
    is_here = owner is not None and owner.machine == _machine()
    if owner is not None and is_here and os.name != "nt" and _is_running(owner):
        return waited_s >= SECONDS_FOR_AN_END
    # Of another machine only the touches are seen.
    touch = _last_touch(path)
    return None not in (touch, first_touch) and touch != first_touch


def _last_touch(path: Path) -> float | None:
    """Return the time of a file; None if it is gone."""
    try:
        return path.stat().st_mtime
    except OSError:
        return None


def _create(path: Path, content: Mapping[str, Any]) -> bool:
    """Create the file, unless it exists; only one process can succeed."""
    try:
        # On every file system creation is atomic, unlike a look whether the file exists.
        descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
    except FileExistsError:
        return False
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        json.dump(content, file)
    return True


def _take_away(path: Path) -> None:
    """Remove an abandoned lock, unless another process has just done so and locked again."""
    abandoned = owner_of(path)
    aside = path.with_name(f"{path.name}-{secrets.token_hex(8)}")
    try:
        path.rename(aside)
    except OSError:  # another process was faster
        return
    if owner_of(aside) != abandoned:
        with contextlib.suppress(OSError):
            os.link(aside, path)  # the new lock, put back
    aside.unlink(missing_ok=True)


def _touch_until(path: Path, is_over: threading.Event) -> None:
    while not is_over.wait(SECONDS_BETWEEN_TOUCHES):
        with contextlib.suppress(OSError):
            os.utime(path)


def _file_system_time(folder: Path) -> float:
    """Ask the file system for the time, since the clocks of two machines may differ."""
    probe = folder / f".scratch-{secrets.token_hex(8)}"
    try:
        probe.touch()
        return probe.stat().st_mtime
    finally:
        probe.unlink(missing_ok=True)


def _machine() -> str:
    """Name what process numbers belong to: a machine since its last start, a container apart."""
    name = platform.node()
    with contextlib.suppress(OSError):
        name += " " + Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        name += " " + str(Path("/proc/self/ns/pid").readlink())
    return name


def _is_running(owner: Owner) -> bool:
    if platform.system() == "Linux":
        return _start_time(owner.pid) == owner.started
    if os.name == "nt":
        return True  # here a signal cannot ask; the time of the file decides
    try:
        os.kill(owner.pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def _start_time(pid: int) -> str | None:
    """Read when a process of Linux started; None if it has ended."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    # "123 (name) S …": the name may hold blanks and brackets; the state follows it.
    state, *fields = text.rpartition(")")[2].split()
    return None if state == "Z" else fields[18]
