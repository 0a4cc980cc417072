"""Check a dataset before training on it: table of cases, findings, plan of a training."""

import shlex
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from omegaconf import DictConfig
from rich.console import Console
from torch import nn

from tversky_seg import config
from tversky_seg.data.dataset import Dataset
from tversky_seg.data.errors import DataError
from tversky_seg.data_check import DatasetCheck, Training, check_dataset, survey_dataset
from tversky_seg.data_check.duration import Timing, time_steps
from tversky_seg.data_check.finding import ERROR, Finding
from tversky_seg.data_check.memory import GIB
from tversky_seg.data_check.page import write_page
from tversky_seg.data_check.plan import Plan, is_here
from tversky_seg.data_check.tables import FINDING_COLUMNS, HEADERS, case_row
from tversky_seg.data_check.terminal import print_check
from tversky_seg.runtime.devices import pick_device, resolve_precision
from tversky_seg.runtime.files import write_csv
from tversky_seg.runtime.program import as_called

# Settings that train.py does not know, or that mean something else there.
OWN_SETTINGS = ("output_dir", "n_workers", "memory_gib", "timed_steps")


def check_data(cfg: DictConfig) -> int:
    """Examine every case, write the page and print the table; 1 where training would refuse."""
    dataset, cases, list_findings = survey_dataset(config.build(cfg, "data"))
    config.resolve_voxel_settings(cfg, dataset)
    network = config.build(
        cfg, "model", in_channels=len(dataset.modalities), out_channels=len(dataset.classes)
    )
    device = training_device(cfg)
    training = Training(
        network=network,
        sampler=config.build(cfg, "sampler"),
        max_steps=cfg.trainer.max_steps,
        batch_size=cfg.trainer.batch_size,
        precision=resolve_precision(cfg.trainer.precision, device),
        device=device,
        memory_bytes=int(cfg.memory_gib * GIB) if cfg.memory_gib else None,
        validate_every=cfg.trainer.validate_every,
        overlap=cfg.inference.overlap,
    )
    if not isinstance(cfg.timed_steps, int) or cfg.timed_steps < 0:
        raise DataError("timed_steps", str(cfg.timed_steps), "expected 0 or more")
    # Steps on another machine's GPU cannot be timed here.
    if cfg.timed_steps and is_here(device):
        training = replace(training, time_plan=partial(time_plan, cfg, dataset, network))
    output_dir = Path(str(cfg.output_dir)).expanduser()
    output_dir.mkdir(parents=True, exist_ok=True)

    check = check_dataset(
        dataset, cases, training, n_workers=cfg.n_workers, list_findings=list_findings
    )

    title = " ".join(config.user_overrides()) or "data=phantom"
    command = None
    if check.plan is not None:
        command = planned_command(check.plan)
    write_page(output_dir / "report.html", check, title=title, command=command)
    write_tables(output_dir, check)
    print_check(check, Console(), title=title, command=command)
    print(output_dir / "report.html")
    return 1 if check.count(ERROR) else 0


def training_device(cfg: DictConfig) -> torch.device:
    """Choose the device, which need not be in this machine where its memory is given."""
    name = cfg.trainer.device
    # So a laptop can plan the training of a cluster.
    if cfg.memory_gib and name.startswith("cuda"):
        return torch.device(name)
    return pick_device(name)


def time_plan(cfg: DictConfig, dataset: Dataset, network: nn.Module, plan: Plan) -> Timing:
    """Time some steps of the training with the patch and the batch of a plan."""
    # The batch of the plan is for the timing alone.
    cfg = cfg.copy()
    cfg.trainer.batch_size = plan.batch_size
    trainer = config.build(
        cfg,
        "trainer",
        model=network,
        loss=config.build(cfg, "loss"),
        lesion_term=config.build(cfg, "lesion_term"),
        weighting=config.build(cfg, "weighting"),
        optimizer=config.build(cfg, "optimizer"),
        schedule=config.build(cfg, "schedule"),
        seed=cfg.seed,
        modalities=dataset.modalities,
    )
    shape = (plan.batch_size, len(dataset.modalities), *plan.patch_size)
    return time_steps(trainer, shape, n_classes=len(dataset.classes), n_steps=cfg.timed_steps)


def planned_command(plan: Plan) -> str:
    """Write the user's command line for train.py, with the settings of the plan."""
    replaced = (*plan.overrides, *OWN_SETTINGS)
    words = [word for word in config.user_overrides() if override_key(word) not in replaced]
    planned = [f"{key}={value}" for key, value in plan.overrides.items()]
    return as_called(shlex.join(["python", "train.py", *words, *planned]))


def override_key(override: str) -> str:
    """Return the key of an override: "+data.root=x" -> "data.root"."""
    return override.lstrip("+~").split("=")[0]


def write_tables(output_dir: Path, check: DatasetCheck) -> None:
    """Write cases.csv and findings.csv."""
    cases = [case_row(report, check.sets) for report in check.reports]
    write_csv(output_dir / "cases.csv", HEADERS, cases)
    findings = [finding_row(finding) for finding in check.findings]
    write_csv(output_dir / "findings.csv", FINDING_COLUMNS, findings)


def finding_row(finding: Finding) -> tuple[str, ...]:
    """List the cells of a finding."""
    return (
        finding.level,
        finding.case_id or "",
        finding.where,
        finding.found,
        finding.remedy,
    )
