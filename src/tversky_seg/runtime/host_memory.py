"""Memory that is free on this machine."""

from contextlib import suppress
from pathlib import Path

UNLIMITED = 2**63


def free_host_memory() -> int:
    """Return the free bytes of this machine, within the limits of its container."""
    import psutil

    return min(int(psutil.virtual_memory().available), _free_in_container())


def _free_in_container() -> int:
    """Return the bytes that the control group (v2) leaves, including file cache it would drop."""
    group = Path("/sys/fs/cgroup")
    with suppress(OSError, ValueError, KeyError):
        limit = int((group / "memory.max").read_text(encoding="utf-8"))
        used = int((group / "memory.current").read_text(encoding="utf-8"))
        statistics: dict[str, str] = {}
        for line in (group / "memory.stat").read_text(encoding="utf-8").splitlines():
            name, value = line.split()
            statistics[name] = value
        # Files that the kernel caches count as used, but go as soon as memory is needed.
        file_cache = int(statistics["inactive_file"]) + int(statistics["active_file"])
        used -= file_cache
        return max(limit - used, 0)
    return UNLIMITED
