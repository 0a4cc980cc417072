"""Findings of the dataset check."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from tversky_seg.data.errors import DataError

ERROR = "error"
WARNING = "warning"
NOTE = "note"
LEVELS = (ERROR, WARNING, NOTE)


@dataclass(frozen=True)
class Finding:
    """One finding about a file or a setting, and what to do about it."""

    level: str
    """ERROR: training refuses it. WARNING: training runs, but please review. NOTE: handled."""
    where: str
    """File, line of the manifest, or key."""
    found: str
    """Content of the file or setting."""
    remedy: str
    """Advice, or how the finding is handled."""
    case_id: str | None = None
    """Case that the finding is about."""

    @classmethod
    def of_fault(
        cls, fault: DataError, *, case_id: str | None = None, level: str = ERROR
    ) -> Finding:
        """Make a finding of one fault of the data."""
        return cls(level, fault.where, fault.found, fault.expected, case_id)

    def __str__(self) -> str:
        return f"{self.where}: {self.found}; {self.remedy}"


def findings_by_level(findings: Iterable[Finding]) -> dict[str, list[Finding]]:
    """Sort findings into levels, errors first; levels without any are left out."""
    by_level: dict[str, list[Finding]] = {level: [] for level in LEVELS}
    for finding in findings:
        by_level[finding.level].append(finding)
    return {level: members for level, members in by_level.items() if members}


def group_by_remedy(findings: Iterable[Finding]) -> list[list[Finding]]:
    """Group findings of one level that share their remedy, in the order of their first."""
    # The remedy is the same text for the same kind of fault; what was found names files.
    groups: dict[tuple[str, str], list[Finding]] = {}
    for finding in findings:
        groups.setdefault((finding.level, finding.remedy), []).append(finding)
    return list(groups.values())


def name_some(names: Sequence[str]) -> str:
    """List the first five names: "a, b, c, d, e, …"."""
    listed = ", ".join(names[:5])
    if len(names) > 5:
        listed += ", …"
    return listed
