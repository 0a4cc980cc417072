"""Repeatability: by hand, against another implementation, and at its borders."""

import math

import numpy as np
import pytest

from tversky_seg.metrics.repeatability import intraclass_correlations, repeatability

FIRST = [1.2, 3.4, 0.8, 10.5, 6.1, 2.2]
REPEAT = [1.5, 3.1, 1.0, 11.9, 6.0, 2.9]


def test_intraclass_correlations_equal_another_implementation() -> None:
    # pingouin 0.6, intraclass_corr: ICC(A,1) = ICC(2,1) and ICC(C,1) = ICC(3,1).
    agreement, consistency = intraclass_correlations(np.stack([FIRST, REPEAT], axis=1))
    assert agreement == pytest.approx(0.9852500880591757, rel=1e-12)
    assert consistency == pytest.approx(0.9875981993115014, rel=1e-12)


def test_the_example_of_shrout_and_fleiss() -> None:
    # Table 2 and 4 of Shrout & Fleiss (1979): six subjects, four raters.
    ratings = np.array(
        [[9, 2, 5, 8], [6, 1, 3, 2], [8, 4, 6, 8], [7, 1, 2, 6], [10, 5, 6, 9], [6, 2, 4, 7.0]]
    )
    assert intraclass_correlations(ratings) == pytest.approx((0.29, 0.71), abs=0.005)


def test_a_shift_costs_agreement_but_not_consistency() -> None:
    values = np.array(FIRST)
    shifted = repeatability(values, values + 2)
    assert shifted.icc_consistency == pytest.approx(1)
    assert shifted.icc_agreement < 0.95
    assert shifted.bias == pytest.approx(2)
    assert shifted.limits == pytest.approx((2, 2))


def test_coefficients_by_hand() -> None:
    # Pairs 90, 110 and 200, 200: d = 20 and 0, means 100 and 200.
    result = repeatability([90, 200], [110, 200])
    assert result.cv == pytest.approx(math.sqrt((0.04 + 0) / 2 / 2))
    assert result.coefficient == pytest.approx(1.96 * math.sqrt(2) * math.sqrt(400 / 2 / 2))
    assert result.bias == 10
    assert result.sd == pytest.approx(math.sqrt(200))


def test_scaling_changes_no_rate() -> None:
    one = repeatability(FIRST, REPEAT)
    other = repeatability(np.array(FIRST) * 7, np.array(REPEAT) * 7)
    assert other.cv == pytest.approx(one.cv)
    assert other.icc_agreement == pytest.approx(one.icc_agreement)
    assert other.coefficient == pytest.approx(7 * one.coefficient)


def test_few_pairs_leave_values_undefined() -> None:
    none = repeatability([], [])
    assert none.n_pairs == 0
    assert math.isnan(none.cv)
    assert math.isnan(none.bias)
    one = repeatability([10.0], [12.0])
    assert one.cv == pytest.approx(2 / 11 / math.sqrt(2))
    assert math.isnan(one.icc_agreement)
    assert math.isnan(one.sd)
    empty = repeatability([0.0, 0.0], [0.0, 0.0])
    assert math.isnan(empty.cv)
    assert math.isnan(empty.icc_agreement)
    assert empty.bias == 0
    with pytest.raises(ValueError, match="one length"):
        repeatability([1.0], [1.0, 2.0])
