"""Look at a cohort before training on it: `python scripts/check_data.py <the words of train.py>`."""

import csv
import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig
from rich.console import Console
from torch import nn

from tversky_seg import config
from tversky_seg.data.case import Case
from tversky_seg.data.dataset import Dataset, find_cases, survey_cases, with_modalities
from tversky_seg.data.errors import DataError
from tversky_seg.data.nifti import read_grid
from tversky_seg.data.patches.sampling import patch_sides
from tversky_seg.data.preprocessing.pipeline import Preprocessing, preprocessing_of
from tversky_seg.data.preprocessing.prepared_case import one_case_per_rater
from tversky_seg.data.split import draw_split
from tversky_seg.data_check.examine import (
    LEVELS,
    CaseReport,
    Finding,
    cohort_findings,
    examine_cases,
    n_cores,
    training_findings,
)
from tversky_seg.data_check.memory import (
    GIB,
    Plan,
    draws_for_all,
    expected_draws,
    lesion_shares,
    loader_bytes,
    make_plan,
    memory_at_hand,
    step_bytes,
    times,
)
from tversky_seg.data_check.page import HEADERS, Checkup, case_row, print_checkup, write_page
from tversky_seg.runtime.devices import pick_device

OWN = (
    "output_dir",
    "n_workers",
    "memory_gib",
)  # words that train.py does not know, or should not take over


@config.command("check_data")
def check_data(cfg: DictConfig) -> int:
    """Examine every case, print the table, write the page; 1 where training would refuse something."""
    data, cases, findings = list_cohort(config.build(cfg, "data"))
    sampler = config.build(cfg, "sampler")
    model = config.build(
        cfg, "model", in_channels=len(data.modalities), out_channels=len(data.classes)
    )
    output_dir = Path(str(cfg.output_dir)).expanduser()
    output_dir.mkdir(parents=True, exist_ok=True)

    sets, faults = assign_sets(data, cases)
    reports = examine_cases(cases, settings_for(data, cases), n_workers=cfg.n_workers)
    findings += [*faults, *(finding for report in reports for finding in report.findings)]
    findings += cohort_findings(reports, normalization=data.normalization)
    training = [
        report for report in reports if report.prepared and sets.get(report.case.case_id) == "train"
    ]
    findings += training_findings([r.prepared for r in training if r.prepared]) if training else []
    findings += too_few_draws(cfg, sampler, training)
    plan = plan_for(cfg, model, training or reports, data)
    checkup = Checkup(
        title=" ".join(words_of_user()) or "data=phantom",
        reports=reports,
        sets=sets,
        findings=sorted(findings, key=lambda finding: LEVELS.index(finding.level)),
        costs=list(costs(cfg, model, sampler, reports, training, n_classes=len(data.classes))),
        command=None if plan is None else command_line(plan),
        reasons=() if plan is None else plan.reasons,
    )
    write_page(output_dir / "report.html", checkup)
    write_csv(output_dir / "cases.csv", HEADERS, [case_row(report, checkup) for report in reports])
    write_csv(output_dir / "findings.csv", ("level", "case_id", "where", "found", "remedy"),
              [(f.level, f.case_id or "", f.where, f.found, f.remedy) for f in checkup.findings])  # fmt: skip
    print_checkup(checkup, Console())
    print(output_dir / "report.html")
    return 1 if checkup.count("error") else 0


def list_cohort(data: Dataset) -> tuple[Dataset, list[Case], list[Finding]]:
    """The data set with its modalities named, the cases that can be looked at, and what is wrong with the list.

    Raises:
        DataError: There is no case to look at.
    """
    data = data if data.importer is None else with_modalities(data)
    cases, incomplete, faults = survey_cases(data)
    if not cases:
        find_cases(data)
        raise DataError.gather(faults)
    if not data.modalities:
        data = replace(data, modalities=max((tuple(case.images) for case in cases), key=len))
    findings = [Finding.of_fault(each) for fault in faults for each in fault.faults]
    remedy = "it is left out; download the files or name other data.modalities"
    findings += [
        Finding("warning", str(data.root), f"{case_id} has no {lack}", remedy, case_id)
        for case_id, lack in incomplete.items()
    ]
    return data, cases, findings


def assign_sets(data: Dataset, cases: Sequence[Case]) -> tuple[dict[str, str], list[Finding]]:
    """Case id -> "train", "val" or "test" as training would part them, or why it would not."""
    try:
        split = draw_split(data, cases)
    except DataError as fault:
        return {}, [Finding.of_fault(each) for each in fault.faults]
    parts = {"train": split.train, "val": split.val, "test": split.test}
    return {case.case_id: name for name, part in parts.items() for case in part}, []


def settings_for(data: Dataset, cases: Sequence[Case]) -> Preprocessing:
    """What training would do to the cases, whose voxel size follows from the headers that can be read."""
    readable = [case for case in cases if is_readable(next(iter(case.images.values())))]
    return preprocessing_of(data if readable else replace(data, spacing_mm="native"), readable)


def is_readable(path: Path) -> bool:
    """Whether an image has a header."""
    try:
        read_grid(path)
    except DataError:
        return False
    return True


def costs(
    cfg: DictConfig,
    model: nn.Module,
    sampler: Any,
    reports: Sequence[CaseReport],
    training: Sequence[CaseReport],
    *,
    n_classes: int,
) -> Iterator[tuple[str, str, str]]:
    """What a training takes: the thing, how much, and how that was found."""
    done = [report for report in reports if report.prepared]
    if done:
        total = sum(report.cache_bytes for report in done)
        yield "cache on disk", f"{_size(total)} for {len(done)} cases", "as prepared here"
        seconds = sum(report.seconds for report in done)
        yield (
            "preprocessing",
            f"{_size(max(r.peak_bytes for r in done))} a process, {seconds:.0f} s on one core",
            ("measured here, Python and torch included"),
        )
    shape = (cfg.trainer.batch_size, model_channels(reports), *patch_sides(sampler.patch_size))
    batch = f"{shape[0]} x {times(shape[2:])}"
    try:
        need = step_bytes(model, shape, precision=cfg.trainer.precision)
        yield (
            "training step",
            f"{_size(need)} for a batch of {batch}",
            (f"counted, beside program and libraries; {_size(memory_for(cfg))} are free"),
        )
    except (RuntimeError, ValueError, TypeError) as fault:  # as check_network would say
        yield "training step", f"unknown for a batch of {batch}", str(fault).splitlines()[0]
    yield (
        "loader worker",
        _size(loader_bytes(shape, n_classes=n_classes)),
        "of batches, beside Python and torch",
    )
    prepared = one_case_per_rater([report.prepared for report in training if report.prepared])
    shares = lesion_shares(sampler, prepared)
    if shares is None:
        yield (
            "patches until each lesion was drawn once",
            "not known",
            "this sampler does not aim at lesions one by one",
        )
    elif shares.size:
        mean, most = expected_draws(shares), draws_for_all(shares)
        in_run = cfg.trainer.max_steps * cfg.trainer.batch_size
        yield (
            "patches until each lesion was drawn once",
            (
                f"{mean:,.0f} on average, {most:,.0f} with 95 % certainty"
                if np.isfinite(mean)
                else "never"
            ),
            f"{shares.size} training lesions; the run draws {in_run:,} patches, the rarest lesion "
            f"{shares.min() * in_run:,.1f} times",
        )


def too_few_draws(
    cfg: DictConfig, sampler: Any, training: Sequence[CaseReport]
) -> Iterator[Finding]:
    """A run that ends before each lesion was drawn."""
    shares = lesion_shares(
        sampler, one_case_per_rater([report.prepared for report in training if report.prepared])
    )
    in_run = cfg.trainer.max_steps * cfg.trainer.batch_size
    if shares is not None and expected_draws(shares) > in_run:
        found = f"the run draws {in_run:,} patches; it takes {expected_draws(shares):,.0f} on average until each of "
        found += f"{shares.size} lesions was aimed at"
        remedy = "lesions are seen in passing too; more steps or a larger batch aim at each"
        yield Finding("note", "trainer.max_steps", found, remedy)


def model_channels(reports: Sequence[CaseReport]) -> int:
    """Modalities of the cohort."""
    return max((len(report.case.images) for report in reports), default=1)


def memory_for(cfg: DictConfig) -> int:
    """Bytes to plan with."""
    return int(cfg.memory_gib * GIB) if cfg.memory_gib else memory_at_hand(device_for(cfg))


def device_for(cfg: DictConfig) -> torch.device:
    """The device of the training, which need not be in this machine where the memory is given."""
    name = cfg.trainer.device
    return torch.device(name) if cfg.memory_gib and name.startswith("cuda") else pick_device(name)


def plan_for(
    cfg: DictConfig, model: nn.Module, reports: Sequence[CaseReport], data: Dataset
) -> Plan | None:
    """Settings for the cohort and the machine; None where no case could be prepared."""
    prepared = [report.prepared for report in reports if report.prepared]
    if not prepared:
        return None
    x, y, z = (float(np.median([case.spacing_mm[axis] for case in prepared])) for axis in range(3))
    shape = np.median([case.geometry.shape for case in prepared], axis=0).astype(int).tolist()
    try:
        return make_plan(
            model,
            spacing_mm=(round(x, 4), round(y, 4), round(z, 4)),
            shape=shape,
            n_channels=len(data.modalities),
            device=device_for(cfg),
            precision=cfg.trainer.precision,
            memory_bytes=memory_for(cfg),
            n_cores=n_cores(),
        )
    except (
        RuntimeError,
        TypeError,
    ):  # a network that looks at values cannot be measured without computing
        return None


def command_line(plan: Plan) -> str:
    """The user's words with those of the plan."""
    own = [
        word
        for word in words_of_user()
        if word.lstrip("+~").split("=")[0] not in (*plan.words, *OWN)
    ]
    return shlex.join(
        ["python", "train.py", *own, *(f"{key}={value}" for key, value in plan.words.items())]
    )


def words_of_user() -> list[str]:
    """The overrides of the command line as they were typed."""
    quoted = re.compile(r"([\w.+]+)='(.*)'")
    return [
        f"{found[1]}={found[2]}".replace(r"\'", "'") if (found := quoted.fullmatch(word)) else word
        for word in HydraConfig.get().overrides.task
    ]


def write_csv(path: Path, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table as CSV."""
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows([header, *rows])


def _size(n_bytes: float) -> str:
    return f"{n_bytes / GIB:.1f} GiB" if n_bytes >= GIB else f"{n_bytes / 2**20:.0f} MiB"


if __name__ == "__main__":
    check_data()
