import math

import pytest
import torch

from tversky_seg.training.schedules import cosine, poly, steps


def test_cosine_rises_in_a_line_and_falls_to_the_final_factor() -> None:
    rise = [cosine(step, 100, warmup_steps=10) for step in range(10)]
    assert rise == pytest.approx([(step + 1) / 10 for step in range(10)])
    assert cosine(55, 100, warmup_steps=10) == pytest.approx(0.5)  # half way down
    assert cosine(99, 100, warmup_steps=10, final=0.2) == pytest.approx(0.2, abs=1e-3)


def test_cosine_is_that_of_torch() -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    reference = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=40, eta_min=0.1)
    for step in range(40):
        assert cosine(step, 40, warmup_steps=0, final=0.1) == pytest.approx(
            optimizer.param_groups[0]["lr"]
        )
        optimizer.step()
        reference.step()


def test_poly_is_a_power_of_what_is_left() -> None:
    assert poly(0, 100) == 1.0
    assert poly(50, 100, power=0.9) == pytest.approx(0.5**0.9)
    assert poly(99, 100, power=2.0) == pytest.approx(1e-4)
    assert poly(0, 100, warmup_steps=4) == pytest.approx(0.25)


def test_steps_are_salehis() -> None:
    assert [steps(step, 10**4) for step in (0, 999, 1000, 1999, 2000)] == pytest.approx(
        [1, 1, 0.9, 0.9, 0.81]
    )
    assert steps(7, 10, every=2, factor=0.5) == pytest.approx(0.125)
    with pytest.raises(ValueError, match="every must be >= 1, got 0"):
        steps(0, 10, every=0)


@pytest.mark.parametrize("schedule", [cosine, poly])
@pytest.mark.parametrize("max_steps", [1, 2, 3])
def test_a_warm_up_longer_than_the_training_is_cut(schedule, max_steps: int) -> None:
    factors = [schedule(step, max_steps, warmup_steps=50) for step in range(max_steps)]
    assert factors == pytest.approx([(step + 1) / max_steps for step in range(max_steps)])


@pytest.mark.parametrize("schedule", [cosine, poly, steps])
def test_a_factor_depends_on_the_step_alone_and_stays_in_range(schedule) -> None:
    factors = [schedule(step, 300) for step in range(300)]
    assert factors == [schedule(step, 300) for step in range(300)]
    assert all(math.isfinite(factor) and 0 < factor <= 1 for factor in factors)
