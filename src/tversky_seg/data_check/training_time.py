"""Hours, memory and disk of a planned training."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from shutil import disk_usage

from tversky_seg.data.case import Case
from tversky_seg.data_check.duration import (
    HOURS_OF_A_NIGHT,
    Evaluation,
    count_windows,
    estimate_duration,
    fit_into_hours,
    format_hours,
)
from tversky_seg.data_check.finding import NOTE, WARNING, Finding
from tversky_seg.data_check.memory import format_bytes
from tversky_seg.data_check.plan import Plan, times
from tversky_seg.data_check.training import Cost, Training
from tversky_seg.report.labels import count
from tversky_seg.runtime.devices import is_out_of_memory
from tversky_seg.runtime.one_line import message_lines

N_CHECKPOINTS = 3
"""Checkpoints of a run: the last, the one before, the best."""
BYTES_OF_A_WEIGHT = 12
"""In a checkpoint: the weight and Adam's two moments, in float32."""
MOST_FEW_SUBJECTS = 3
"""For so many outside the test set, no more than `STEPS_FOR_FEW` are planned."""
STEPS_FOR_FEW = 600
"""Three patients gained nothing from 1,000 or 1,500 steps (docs/experiments.md)."""


def with_duration(
    plan: Plan, training: Training, cases: Sequence[Case], sets: Mapping[str, str]
) -> tuple[Plan, list[Finding]]:
    """Time some steps of a plan, and shorten it for few subjects, and to a night on a CPU.

    Args:
        plan: Patch, batch and loaders.
        training: Training whose costs are estimated.
        cases: Cases of the dataset.
        sets: Case id -> "train", "val" or "test".

    Returns:
        The plan with its duration, and what there is to say about it.
    """
    if training.time_plan is None:
        return plan, []
    try:
        timing = training.time_plan(plan)
    except (RuntimeError, ValueError, TypeError, AssertionError) as fault:
        # The plan is of use without hours, whatever a loss or a network has against noise.
        reason = "memory ran out" if is_out_of_memory(fault) else message_lines(fault)[0]
        return plan, [Finding(NOTE, "timed_steps", f"no step was timed: {reason}", "hours unknown")]
    n_cases = Counter(sets.values())
    evaluation = Evaluation(
        n_validation=n_cases["val"],
        n_test=n_cases["test"],
        validate_every=training.validate_every,
        n_windows=count_windows(plan.volume, plan.patch_size, overlap=training.overlap),
    )
    max_steps = training.max_steps
    why = ""
    if max_steps > STEPS_FOR_FEW and _has_few_subjects(cases, sets):
        max_steps = STEPS_FOR_FEW
        why = "; more did not help three patients"
    wanted = estimate_duration(timing, max_steps, evaluation, batch_size=plan.batch_size)
    if plan.device != "cpu" or wanted.hours <= HOURS_OF_A_NIGHT:
        reason = f"{wanted.max_steps:,} steps: {format_hours(wanted.hours)} here{why}"
        return replace(plan, duration=wanted, reasons=(*plan.reasons, reason)), []
    night = fit_into_hours(timing, max_steps, evaluation, batch_size=plan.batch_size)
    reason = (
        f"{night.max_steps:,} steps: a night of {HOURS_OF_A_NIGHT:g} h on this CPU, where "
        f"{wanted.max_steps:,} would take {format_hours(wanted.hours)}"
    )
    finding = Finding(
        WARNING,
        "trainer.max_steps",
        f"{wanted.max_steps:,} steps take {format_hours(wanted.hours)} on this CPU",
        f"the planned command takes {night.max_steps:,}, {format_hours(night.hours)}; a network "
        "that learned for so short a time finds less than one trained on a GPU",
    )
    return replace(plan, duration=night, reasons=(*plan.reasons, reason)), [finding]


def _has_few_subjects(cases: Sequence[Case], sets: Mapping[str, str]) -> bool:
    """Tell whether few subjects are left to learn from; not where no split could be drawn."""
    subjects = {case.subject_id for case in cases if sets.get(case.case_id) in ("train", "val")}
    return 0 < len(subjects) <= MOST_FEW_SUBJECTS


def plan_costs(plan: Plan, training: Training) -> Iterator[Cost]:
    """List steps, seconds a step, hours, memory and disk of the plan."""
    duration = plan.duration
    if duration is not None:
        timing = duration.timing
        batch = f"{plan.batch_size} x {times(plan.patch_size)}"
        yield Cost(
            "plan: time",
            f"{duration.max_steps:,} steps, {timing.step_s:.3g} s a step, "
            f"{format_hours(duration.hours)}",
            f"{count(timing.n_steps, 'step')} of {batch} timed here, on the {plan.device} in "
            f"{training.precision}, without loading; {format_hours(duration.evaluation_h)} of it "
            "for validation and test cases",
        )
    yield Cost(
        "plan: memory",
        format_bytes(plan.step_bytes),
        f"estimated, without Python and torch; {format_bytes(plan.memory_bytes)} are free",
    )
    n_weights = 0
    for parameter in training.network.parameters():
        n_weights += parameter.numel()
    checkpoints = N_CHECKPOINTS * BYTES_OF_A_WEIGHT * n_weights
    yield Cost(
        "plan: disk",
        f"{format_bytes(checkpoints)} for {N_CHECKPOINTS} checkpoints",
        "beside cache and predictions; "
        f"{format_bytes(disk_usage(Path.cwd()).free)} are free in this folder",
    )
