"""Which examinations of a subject belong together."""

from helpers.cohorts import case_without_files
from tversky_seg.data.time_points import pairs_of


def names(*cases: object) -> list[tuple[str, str]]:
    return [(before.case_id, after.case_id) for before, after in pairs_of(cases)]


def test_sessions_follow_each_other_by_number() -> None:
    cases = [
        case_without_files(number, subject="s", session=session)
        for number, session in enumerate(["m10", "m2", "m1"])
    ]
    assert names(*cases) == [("c2", "c1"), ("c1", "c0")]
    assert names(case_without_files(0, session="1"), case_without_files(1, session="2")) == []


def test_a_baseline_goes_before_the_session() -> None:
    cases = [
        case_without_files(0, subject="s", session="1"),
        case_without_files(1, subject="s", session="2"),
        case_without_files(2, subject="s", session="3", baseline="c0"),
    ]
    assert names(*cases) == [("c0", "c1"), ("c0", "c2")]
    assert names(*cases[1:]) == []  # the baseline is not among them
