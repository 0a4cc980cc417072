"""The check of a dataset before a training: cases, findings, costs and a plan."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tversky_seg.config.messages import first_line
from tversky_seg.data.case import Case
from tversky_seg.data.dataset import Dataset, find_cases, survey_cases, with_modalities
from tversky_seg.data.errors import DataError
from tversky_seg.data.nifti import read_grid
from tversky_seg.data.patches.sampling import patch_sides
from tversky_seg.data.preprocessing.pipeline import Preprocessing, preprocessing_of
from tversky_seg.data.preprocessing.prepared_case import PreparedCase, one_case_per_rater
from tversky_seg.data.split import draw_split
from tversky_seg.data_check.case_report import CaseReport
from tversky_seg.data_check.cohort import cohort_findings, training_findings
from tversky_seg.data_check.coverage import draws_for_all, expected_draws, lesion_shares
from tversky_seg.data_check.examine import examine_cases
from tversky_seg.data_check.finding import LEVELS, NOTE, WARNING, Finding
from tversky_seg.data_check.memory import format_bytes, loader_bytes, step_bytes
from tversky_seg.data_check.pair_findings import pair_findings
from tversky_seg.data_check.plan import Plan, make_plan, times
from tversky_seg.data_check.split_findings import split_findings
from tversky_seg.data_check.training import Cost, Training
from tversky_seg.data_check.training_time import plan_costs, with_duration
from tversky_seg.report.labels import count
from tversky_seg.runtime.workers import n_cores


@dataclass(frozen=True, eq=False)
class DatasetCheck:
    """Result of the check of a dataset."""

    reports: Sequence[CaseReport]
    sets: dict[str, str]
    """Case id -> "train", "val" or "test"."""
    findings: Sequence[Finding]
    """Findings of the dataset and of its cases, errors first."""
    costs: Sequence[Cost]
    plan: Plan | None
    """None where no case can be preprocessed."""

    def count(self, level: str) -> int:
        """Count the findings of a level."""
        levels = Counter(finding.level for finding in self.findings)
        return levels[level]

    @property
    def summary(self) -> str:
        """Number of cases and findings in one line."""
        n_errors, n_warnings, n_notes = (count(self.count(level), level) for level in LEVELS)
        n_cases = count(len(self.reports), "case")
        # As "6 cases checked: 0 errors, 1 warning, 2 notes".
        return f"{n_cases} checked: {n_errors}, {n_warnings}, {n_notes}"


def survey_dataset(dataset: Dataset) -> tuple[Dataset, list[Case], list[Finding]]:
    """List the cases of a dataset as far as possible.

    Returns:
        The dataset with its modalities named, the cases, and findings about the list.

    Raises:
        DataError: There is no case to examine.
    """
    if dataset.importer is not None:
        dataset = with_modalities(dataset)
    cases, incomplete, faults = survey_cases(dataset)
    if not cases:
        # This raises the error that training would end with.
        find_cases(dataset)
        raise DataError.gather(faults)
    if not dataset.modalities:
        # As `with_modalities` does for a downloaded dataset.
        richest = max(cases, key=lambda case: len(case.images))
        dataset = replace(dataset, modalities=tuple(richest.images))
    findings: list[Finding] = []
    for fault in faults:
        # A fault may gather several: a manifest of ten bad lines gives ten findings.
        for one_fault in fault.faults:
            findings.append(Finding.of_fault(one_fault))
    for case_id, missing in incomplete.items():
        finding = Finding(
            WARNING,
            str(dataset.root),
            f"{case_id} has no {missing}",
            "it is left out; download the files or set other data.modalities",
            case_id,
        )
        findings.append(finding)
    return dataset, cases, findings


def check_dataset(
    dataset: Dataset,
    cases: Sequence[Case],
    training: Training,
    *,
    list_findings: Sequence[Finding] = (),
    n_workers: int | None = None,
) -> DatasetCheck:
    """Examine every case, estimate what the training takes, and plan it.

    Args:
        dataset: Dataset with its modalities named, see `survey_dataset`.
        cases: Cases to examine.
        training: Training whose costs are estimated.
        list_findings: Findings about the list of cases.
        n_workers: Processes; None: as many as save time.
    """
    # The split comes first: only training cases count for coverage, plan and training findings.
    sets, split_findings = _assign_sets(dataset, cases)
    findings = [*list_findings, *split_findings]
    settings = _preprocessing_for(dataset, cases)
    reports = examine_cases(cases, settings, n_workers=n_workers)
    for report in reports:
        findings.extend(report.findings)
    findings.extend(cohort_findings(reports, normalization=dataset.normalization))
    findings.extend(pair_findings(cases))

    training_reports: list[CaseReport] = []
    training_cases: list[PreparedCase] = []
    for report in reports:
        if report.prepared is not None and sets.get(report.case.case_id) == "train":
            training_reports.append(report)
            training_cases.append(report.prepared)
    if training_cases:
        findings.extend(training_findings(training_cases))
    # A sampler draws a rater with each case, hence one entry for each.
    shares = lesion_shares(training.sampler, one_case_per_rater(training_cases))
    findings.extend(_coverage_findings(shares, training))

    # Where no split can be drawn, the plan is made for all cases.
    plan = _plan(training_reports or reports, training, n_channels=len(dataset.modalities))
    if plan is not None:
        plan, time_findings = with_duration(plan, training, cases, sets)
        findings.extend(time_findings)

    costs = [
        *_preprocessing_costs(reports),
        *_step_costs(training, reports, n_classes=len(dataset.classes)),
        *_coverage_costs(shares, training),
    ]
    if plan is not None:
        costs.extend(plan_costs(plan, training))
    return DatasetCheck(
        reports=reports,
        sets=sets,
        findings=sorted(findings, key=lambda finding: LEVELS.index(finding.level)),
        costs=costs,
        plan=plan,
    )


def _assign_sets(dataset: Dataset, cases: Sequence[Case]) -> tuple[dict[str, str], list[Finding]]:
    """Split the cases as training would, or report why it would not."""
    try:
        split = draw_split(dataset, cases)
    except DataError as fault:
        return {}, [Finding.of_fault(one) for one in fault.faults]
    sets: dict[str, str] = {}
    for name, part in (("train", split.train), ("val", split.val), ("test", split.test)):
        for case in part:
            sets[case.case_id] = name
    return sets, list(split_findings(dataset, cases, sets))


def _preprocessing_for(dataset: Dataset, cases: Sequence[Case]) -> Preprocessing:
    """Choose the preprocessing; its voxel size follows from the headers that can be read."""
    readable = [case for case in cases if _has_header(next(iter(case.images.values())))]
    # Without a header there is no voxel size to take the median of, and every case is refused.
    if not readable:
        dataset = replace(dataset, spacing_mm="native")
    return preprocessing_of(dataset, readable)


def _has_header(path: Path) -> bool:
    try:
        read_grid(path)
    except DataError:
        return False
    return True


def _preprocessing_costs(reports: Sequence[CaseReport]) -> Iterator[Cost]:
    n_cases = 0
    cache_bytes = 0
    peak_bytes = 0
    seconds = 0.0
    for report in reports:
        if report.prepared is not None:
            n_cases += 1
            cache_bytes += report.cache_bytes
            # A process prepares one case after another, and keeps the memory of the largest.
            peak_bytes = max(peak_bytes, report.peak_bytes)
            seconds += report.seconds
    if n_cases == 0:
        return
    amount = f"{format_bytes(cache_bytes)} for {count(n_cases, 'case')}"
    yield Cost("cache on disk", amount, "as preprocessed here")
    yield Cost(
        "preprocessing",
        f"{format_bytes(peak_bytes)} a process, {seconds:.0f} s on one core",
        "measured here, with Python and torch",
    )


def _step_costs(
    training: Training, reports: Sequence[CaseReport], *, n_classes: int
) -> Iterator[Cost]:
    n_channels = 1
    # The dataset may name no modalities, so the fullest case tells how many there are.
    for report in reports:
        n_channels = max(n_channels, len(report.case.images))
    sides = patch_sides(training.sampler.patch_size)
    shape = (training.batch_size, n_channels, *sides)
    batch = f"a batch of {training.batch_size} x {times(sides)}"
    try:
        need = step_bytes(
            training.network,
            shape,
            precision=training.precision,
            device=training.device.type,
        )
    except (RuntimeError, ValueError, TypeError) as fault:
        # The network cannot take such a batch, or looks at values, which the meta device lacks.
        yield Cost("training step", f"unknown for {batch}", first_line(fault))
    else:
        free = format_bytes(training.free_bytes)
        yield Cost(
            "training step",
            f"{format_bytes(need)} for {batch}",
            f"estimated, without Python and torch; {free} are free",
        )
    amount = format_bytes(loader_bytes(shape, n_classes=n_classes))
    yield Cost("loader worker", amount, "for batches, without Python and torch")


def _coverage_costs(shares: NDArray[np.float64] | None, training: Training) -> Iterator[Cost]:
    what = "patches needed to sample every lesion once"
    if shares is None:
        yield Cost(what, "unknown", "this sampler does not aim at single lesions")
    elif shares.size:
        mean = expected_draws(shares)
        # A sampler without lesion patches has shares of 0.
        amount = "never"
        if math.isfinite(mean):
            amount = f"{mean:,.0f} on average, {draws_for_all(shares):,.0f} with 95 % certainty"
        rarest = f"{shares.min() * training.n_patches:,.1f} times"
        yield Cost(
            what,
            amount,
            f"{shares.size} training lesions; the run draws {training.n_patches:,} patches, the "
            f"rarest lesion {rarest}",
        )


def _coverage_findings(shares: NDArray[np.float64] | None, training: Training) -> Iterator[Finding]:
    """Note a run that ends before each lesion was sampled once."""
    if shares is None:
        return
    # A run that ends earlier has probably never aimed at some lesion.
    needed = expected_draws(shares)
    if needed > training.n_patches:
        yield Finding(
            NOTE,
            "trainer.max_steps",
            f"the run draws {training.n_patches:,} patches, but about {needed:,.0f} are needed "
            f"before each of the {shares.size} lesions has been sampled once",
            "lesions are also seen in passing; increase max_steps or batch_size",
        )


def _plan(reports: Sequence[CaseReport], training: Training, *, n_channels: int) -> Plan | None:
    spacings: list[tuple[float, float, float]] = []
    shapes: list[tuple[int, int, int]] = []
    for report in reports:
        if report.prepared is not None:
            spacings.append(report.prepared.spacing_mm)
            shapes.append(report.prepared.geometry.shape)
    if not spacings:
        return None
    # A median: one scan of another protocol does not change the plan of the others.
    x_mm, y_mm, z_mm = (round(float(size), 4) for size in np.median(spacings, axis=0))
    shape = np.median(shapes, axis=0).astype(int)
    try:
        return make_plan(
            training.network,
            spacing_mm=(x_mm, y_mm, z_mm),
            shape=shape.tolist(),
            n_channels=n_channels,
            device=training.device,
            precision=training.precision,
            memory_bytes=training.free_bytes,
            n_cores=n_cores(),
        )
    except (RuntimeError, TypeError):
        # A network that looks at values cannot be measured on the meta device.
        return None
