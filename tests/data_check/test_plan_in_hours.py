"""The check's plan in hours, and what it says of the split: folds, validation, few subjects."""

import shlex
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from helpers.cohorts import case_without_files, make_cohort
from helpers.command_line import call
from tversky_seg.data import Case, Dataset
from tversky_seg.data.split import draw_split
from tversky_seg.data_check.duration import (
    Evaluation,
    Timing,
    count_windows,
    estimate_duration,
    fit_into_hours,
    format_hours,
    round_down,
    time_steps,
)
from tversky_seg.data_check.split_findings import split_findings
from tversky_seg.data_check.training_time import with_duration
from tversky_seg.losses import TverskyLoss
from tversky_seg.models import UNet3D
from tversky_seg.training import Trainer
from tversky_seg.weighting import inverse_weights


@pytest.mark.parametrize("weighting", [None, inverse_weights])
def test_the_trainer_s_own_steps_are_timed(weighting) -> None:
    network = UNet3D(in_channels=2, out_channels=2, width=4, n_levels=2)
    before = [parameter.clone() for parameter in network.parameters()]
    trainer = Trainer(model=network, loss=TverskyLoss(), weighting=weighting, device="cpu")
    timing = time_steps(trainer, (1, 2, 8, 8, 8), n_classes=2, n_steps=2)
    assert timing.n_steps == 2
    assert timing.step_s > 0
    assert not all(map(torch.equal, before, network.parameters())), "weights were updated"
    slow = time_steps(trainer, (1, 2, 8, 8, 8), n_classes=2, n_steps=5, seconds=0)
    assert slow.n_steps == 1


def test_windows_are_counted_as_they_cover_a_volume() -> None:
    assert count_windows((64, 64, 64), (64, 64, 64), overlap=0.5) == 1
    assert count_windows((96, 64, 10), (64, 64, 64), overlap=0.5) == 2
    assert count_windows((182, 218, 182), (64, 64, 64), overlap=0.5) == 5 * 6 * 5


def test_hours_by_hand() -> None:
    # 1,000 steps of 3.6 s are 1 h; two validations of 5 cases and 10 test cases are 20 cases of 300
    # windows, each a sixth of a step of two patches: 20 * 300 * 0.6 s = 1 h.
    evaluation = Evaluation(n_validation=5, n_test=10, validate_every=500, n_windows=300)
    duration = estimate_duration(Timing(3.6, 3), 1000, evaluation, batch_size=2)
    assert (duration.steps_h, duration.evaluation_h) == (1, pytest.approx(1))


def test_a_training_is_cut_to_a_night_in_round_steps() -> None:
    evaluation = Evaluation(n_validation=1, n_test=1, validate_every=1000, n_windows=100)
    night = fit_into_hours(Timing(3.0, 3), 20_000, evaluation, batch_size=2)
    assert 7.5 < night.hours <= 8
    assert night.max_steps == round_down(night.max_steps) == 9_400
    quick = fit_into_hours(Timing(0.1, 3), 20_000, evaluation, batch_size=2)
    assert quick.max_steps == 20_000
    hopeless = fit_into_hours(Timing(3000.0, 1), 20_000, evaluation, batch_size=2)
    assert hopeless.max_steps == 100


def test_hours_are_written_as_people_say_them() -> None:
    assert [format_hours(hours) for hours in (0.001, 0.2, 7.84, 74.4)] == [
        "1 min",
        "12 min",
        "7.8 h",
        "3.1 days",
    ]


def findings(cases: Sequence[Case], **settings: object) -> list[str]:
    """Texts of the findings about the split of some cases."""
    dataset = Dataset(manifest=Path("m.csv"), modalities=("FLAIR",), stratify=False, **settings)  # type: ignore[arg-type]
    split = draw_split(dataset, cases)
    sets: dict[str, str] = {}
    for name in ("train", "val", "test"):
        sets |= dict.fromkeys((case.case_id for case in getattr(split, name)), name)
    return [f"{finding.level} {finding}" for finding in split_findings(dataset, cases, sets)]


def test_a_step_that_fails_without_a_word_leaves_the_plan() -> None:
    def fail(_: object) -> Timing:
        raise AssertionError

    plan, training = object(), SimpleNamespace(time_plan=fail)
    found, findings = with_duration(plan, training, [], {})  # type: ignore[arg-type]
    assert found is plan
    assert "no step was timed: AssertionError" in str(findings)


def test_few_subjects_and_no_validation_are_warnings() -> None:
    few, empty, held_out = findings([case_without_files(i) for i in range(3)])
    assert few.startswith("warning subjects: 3 labelled subjects, fewer than 5; ")
    assert empty.startswith("warning validation set: empty, 2 training subjects: too few to spare")
    assert held_out.startswith("note data.fold: fold 0 of 3 is held out: 1 test case (c")
    assert held_out.endswith("by -m data.fold=0,1,2")


def test_the_held_out_fold_is_named() -> None:
    cases = [case_without_files(i) for i in range(10)]
    (held_out,) = findings(cases, fold=2)
    assert held_out.startswith("note data.fold: fold 2 of 5 is held out: 2 test cases (c")
    (held_out,) = findings(cases, folds="loso", fold=3)
    assert held_out.startswith("note data.fold: fold 3 of 10 is held out: 1 test case (c3)")
    empty, held_out = findings(cases, val_fraction=0)
    assert "8 training subjects: data.val_fraction=0;" in empty


def test_a_split_column_is_named_and_an_empty_test_set_is_a_warning() -> None:
    words = ["train"] * 6 + ["val", "test"]
    cases = [case_without_files(i, split=word) for i, word in enumerate(words)]
    (held_out,) = findings(cases)
    assert held_out.startswith("note split column: holds out 1 test case (c7); ")
    (nothing,) = findings(cases[:-1])
    assert nothing.startswith("warning test set: no test case; nothing is evaluated")


def plan_of(folder: Path, monkeypatch: pytest.MonkeyPatch, *, n: int) -> tuple[str, str, set[str]]:
    """What the check of n subjects prints at 3 s a step; its line of hours; the planned command."""
    monkeypatch.setattr("tversky_seg.commands.check_data.write_page", lambda *_, **__: None)
    monkeypatch.setattr(
        "tversky_seg.commands.check_data.time_steps", lambda *_, **__: Timing(3.0, 3)
    )
    manifest = make_cohort(folder, n=n)
    outcome = call(
        "check_data",
        "data=manifest",
        f"data.manifest={manifest}",
        f"data.cache_dir={folder / 'cache'}",
        f"output_dir={folder / 'check'}",
        "n_workers=1",
        "model.width=4",
        "model.n_levels=2",
        "trainer.device=cpu",
    )
    assert outcome.status == 0, outcome
    (plan,) = [line for line in outcome.stdout.splitlines() if "plan: time:" in line]
    (line,) = [line for line in outcome.stdout.splitlines() if line.startswith("python train.py ")]
    return outcome.stdout, plan, set(shlex.split(line))


def test_the_check_says_hours_and_prints_a_command_for_this_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text, plan, words = plan_of(tmp_path, monkeypatch, n=6)
    assert "trainer.max_steps: 20,000 steps take 16.7 h on this CPU; the planned command" in text
    assert plan.startswith("  plan: time: 9,500 steps, 3 s a step, 7.9 h (3 steps of 2 x "), plan
    assert {"trainer.max_steps=9500", "trainer.precision=fp32"} < words
    assert not any(word.startswith("timed_steps") for word in words)


def test_three_subjects_are_planned_no_more_steps_than_help_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text, plan, words = plan_of(tmp_path, monkeypatch, n=4)
    assert "trainer.max_steps: 20,000 steps" not in text
    assert "600 steps: 30 min here; more did not help three patients" in text
    assert plan.startswith("  plan: time: 600 steps, 3 s a step, 30 min "), plan
    assert "trainer.max_steps=600" in words


def test_timed_steps_are_a_number(tmp_path: Path) -> None:
    manifest = make_cohort(tmp_path, n=2)
    words = ("data=manifest", f"data.manifest={manifest}", "timed_steps=-1")
    assert call("check_data", *words).error == "timed_steps: -1; expected 0 or more"
