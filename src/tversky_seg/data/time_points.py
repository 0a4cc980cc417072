"""Examinations of one subject at two times: which belong together, and one case made of both."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise

from tversky_seg.data.case import Case

EARLIER = "@1"
LATER = "@2"
"""Endings of modalities: FLAIR@1 is that of the earlier examination."""


def pairs_of(cases: Sequence[Case]) -> list[tuple[Case, Case]]:
    """Pair each case with the earlier examination of its subject.

    That is its baseline where the case names one, otherwise the session before; sessions are
    ordered by their numbers, as month 2 before month 10.

    Args:
        cases: Cases of any subjects.

    Returns:
        (earlier, later) for each case that has an earlier one among the cases.
    """
    by_id = {case.case_id: case for case in cases}
    pairs: list[tuple[Case, Case]] = []
    for sessions in sessions_by_subject(cases):
        # Sessions 1, 2, 3 make the pairs (1, 2) and (2, 3).
        pairs.extend(pair for pair in pairwise(sessions) if pair[1].baseline is None)
    for case in cases:
        if case.baseline in by_id:
            pairs.append((by_id[case.baseline], case))
    return pairs


def sessions_by_subject(cases: Sequence[Case]) -> list[list[Case]]:
    """List the cases of each subject in the order of its sessions; those without are left out."""
    by_subject: dict[str, list[Case]] = {}
    for case in cases:
        if case.session is not None:
            by_subject.setdefault(case.subject_id, []).append(case)
    for sessions in by_subject.values():
        sessions.sort(key=_session_order)
    return list(by_subject.values())


def _session_order(case: Case) -> list[tuple[int, str]]:
    """Give a sort key that puts session 2 before session 10.

    "month10" -> [(0, "month"), (10, "")]
    """
    key: list[tuple[int, str]] = []
    # Digits are compared as numbers, the rest as text.
    for part in re.split(r"(\d+)", str(case.session)):
        if part.isdigit():
            key.append((int(part), ""))
        elif part:
            key.append((0, part))
    return key
