"""Processor time and memory of each stage on cohorts of 100, 1,000 and 10,000 cases.

    python benchmarks/scale.py [--cases 100 1000 10000] [--stages read split check …] [--folder D]

Writes five small synthetic subjects (24 x 24 x 20 voxels, two modalities, a label) with a
prediction each, and hard links them under many names, so that 10,000 cases take no space. Each
stage is a process of its own. Prints its processor time, with that of its workers, and the peak of
its resident memory. The claim: time grows with the number of cases, no faster, and memory hardly
grows. Linux and macOS.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from tversky_seg.data.case import Case
from tversky_seg.data.dataset import Dataset, find_cases
from tversky_seg.data.manifest import read_manifest, write_manifest
from tversky_seg.data.nifti import write_volume
from tversky_seg.data.preprocessing.parallel import prepare_all
from tversky_seg.data.preprocessing.pipeline import Preprocessing
from tversky_seg.data.split import split_dataset

SHAPE = (24, 24, 20)
MODALITIES = ("FLAIR", "T1")
N_SUBJECTS = 5
N_BATCHES = 500
PROBABILITY_SCALE = 1 / 65535
LINUX_KIB = 1024


def main() -> None:
    """Print a row for each stage; with --stage, do one of them in this process."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", nargs="+", type=int, default=[100, 1000, 10000])
    parser.add_argument("--stages", nargs="+", default=list(STAGES), choices=list(STAGES))
    parser.add_argument("--folder", type=Path, help="folder to work in; default: a temporary one")
    parser.add_argument("--stage", choices=list(STAGES), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.stage:
        STAGES[arguments.stage](arguments.folder)
        return
    with tempfile.TemporaryDirectory() as name:
        folder = arguments.folder or Path(name)
        print_table(folder, arguments.cases, arguments.stages)


def print_table(folder: Path, sizes: list[int], stages: list[str]) -> None:
    """Measure each stage on each cohort."""
    print("| stage | cases | CPU seconds | ms per case | peak MiB |")
    print("|---|---|---|---|---|")
    for n_cases in sizes:
        cohort = folder / str(n_cases)
        if not cohort.exists():
            link_cohort(cohort, n_cases)
        for stage in stages:
            seconds, mib = measure(stage, cohort)
            each_ms = 1000 * seconds / n_cases
            row = f"| {stage} | {n_cases:,} | {seconds:.1f} | {each_ms:.2f} | {mib:.0f} |"
            print(row, flush=True)


def measure(stage: str, cohort: Path) -> tuple[float, float]:
    """Do a stage in a process of its own; return processor seconds and peak memory in MiB."""
    command = [sys.executable, __file__, "--stage", stage, "--folder", str(cohort)]
    log = cohort / f"{stage}.log"
    with log.open("w") as file:
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT)
        # Unlike RUSAGE_CHILDREN, this is what one stage took alone.
        _, status, usage = os.wait4(process.pid, 0)
    seconds = usage.ru_utime + usage.ru_stime  # other programs on the machine do not count
    if status:
        raise SystemExit(f"{stage} failed: see {log}")
    unit = LINUX_KIB if sys.platform == "linux" else 1
    return seconds, usage.ru_maxrss * unit / 2**20


def link_cohort(folder: Path, n_cases: int) -> None:
    """Write the subjects, link them as cases with predictions, and list them in a manifest."""
    originals = folder / "originals"
    for number in range(N_SUBJECTS):
        write_subject(originals, number)
    images = folder / "images"
    predictions = folder / "predictions"
    images.mkdir()
    predictions.mkdir()
    cases = []
    for number in range(n_cases):
        case_id = f"c{number:05d}"
        subject = originals / str(number % N_SUBJECTS)
        for name in (*MODALITIES, "label"):
            os.link(f"{subject}_{name}.nii.gz", images / f"{case_id}_{name}.nii.gz")
        for name in ("probability", "mask"):
            os.link(f"{subject}_{name}.nii.gz", predictions / f"{case_id}_{name}.nii.gz")
        files = {name: images / f"{case_id}_{name}.nii.gz" for name in MODALITIES}
        label = images / f"{case_id}_label.nii.gz"
        cases.append(Case(case_id, f"s{number:05d}", files, (label,), site=f"site{number % 20}"))
    write_manifest(cases, folder / "cases.csv")


def write_subject(folder: Path, number: int) -> None:
    """Write the images, the label and the prediction of one synthetic subject."""
    rng = np.random.default_rng(number)
    centre = (np.array(SHAPE) - 1) / 2
    distance = (np.indices(SHAPE).T - centre).T / centre[:, None, None, None]
    brain = (distance**2).sum(axis=0) < 0.9
    label = np.zeros(SHAPE, np.uint8)
    for x, y, z in rng.integers(5, 15, (4, 3)):
        label[x : x + 2, y : y + 3, z : z + 2] = 1
    for name in MODALITIES:
        image = np.where(brain, rng.normal(500, 80, SHAPE) + 300.0 * label, 0)
        write_volume(folder / f"{number}_{name}.nii.gz", image.astype(np.int16), np.eye(4))
    write_volume(folder / f"{number}_label.nii.gz", label, np.eye(4))
    noise = rng.random(SHAPE)
    probability = np.where(brain, 0.7 * label + 0.3 * noise**4, 0).astype(np.float32)
    file = folder / f"{number}_probability.nii.gz"
    write_volume(file, probability, np.eye(4), scale=PROBABILITY_SCALE)
    mask = (probability >= 0.5).astype(np.uint8)
    write_volume(folder / f"{number}_mask.nii.gz", mask, np.eye(4))


def dataset_in(folder: Path) -> Dataset:
    """Describe the cohort of a folder as a data set."""
    return Dataset(
        modalities=MODALITIES,
        manifest=folder / "cases.csv",
        cache_dir=folder / "cache",
        spacing_mm=1.0,
    )


def read(folder: Path) -> None:
    """Read the manifest."""
    read_manifest(folder / "cases.csv")


def split(folder: Path) -> None:
    """Draw folds with equal shares of lesion loads and sites."""
    split_dataset(dataset_in(folder), folder / "manifest.csv", is_started=False)


def check(folder: Path) -> None:
    """Check the data set as `tversky-seg check` does."""
    run_command(
        "check",
        "data=manifest",
        f"data.manifest={folder / 'cases.csv'}",
        f"data.cache_dir={folder / 'cache'}",
        f"output_dir={folder / 'check'}",
        "timed_steps=0",
        "n_workers=1",
        "trainer.device=cpu",
    )


def prepare(folder: Path) -> None:
    """Prepare all cases."""
    prepare_cohort(folder)


def cached(folder: Path) -> None:
    """Take all cases from the cache, as a training that starts or resumes."""
    prepare_cohort(folder)


def sample(folder: Path) -> None:
    """Draw batches of the prepared cases with two loader workers."""
    # Torch takes memory and time, which the stages of tables do without.
    from tversky_seg.data.patches.batches import PatchBatches
    from tversky_seg.data.patches.draw_shares import log_draw_shares
    from tversky_seg.data.patches.loader import load_batches
    from tversky_seg.data.patches.samplers import LesionSampler

    cases = prepare_cohort(folder)
    sampler = LesionSampler(patch_size=16)
    log_draw_shares(sampler, cases)
    start = time.perf_counter()
    batches = PatchBatches(cases, sampler, batch_size=4)
    for _ in load_batches(batches, start=0, stop=N_BATCHES, n_workers=2):
        pass
    each_ms = (time.perf_counter() - start) / N_BATCHES * 1000
    print(f"{each_ms:.2f} ms for each of {N_BATCHES} batches")


def evaluate(folder: Path) -> None:
    """Evaluate a prediction of each case, with the report."""
    run_command(
        "evaluate",
        f"predictions={folder / 'predictions'}",
        f"manifest={folder / 'cases.csv'}",
        f"output_dir={folder / 'evaluation'}",
    )


def prepare_cohort(folder: Path) -> list:
    """Prepare the cases of a folder, or take them from the cache."""
    dataset = dataset_in(folder)
    preprocessing = Preprocessing(MODALITIES, spacing_mm=(1.0, 1.0, 1.0))
    return prepare_all(find_cases(dataset), preprocessing, cache_dir=dataset.cache_dir, n_workers=1)


def run_command(name: str, *words: str) -> None:
    """Run a command of the command line in this process."""
    from tversky_seg.cli import command

    sys.argv = [f"tversky-seg {name}", *words]
    command(name)()


STAGES = {
    "read": read,
    "split": split,
    "check": check,
    "prepare": prepare,
    "cached": cached,
    "sample": sample,
    "evaluate": evaluate,
}


if __name__ == "__main__":
    main()
