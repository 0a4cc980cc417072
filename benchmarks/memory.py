"""Memory of a training on 10 and on 1,000 cases, per process; prints a Markdown table.

    python benchmarks/memory.py --cases 10 1000 --steps 200

The cases are hard links to the cached arrays of five, so that the disk holds five while the
training reads all of them. Each row is a command of its own: `Trainer` with loader workers,
measured in its validations half-way and at the end. Anonymous memory is Pss_Anon of
/proc/<pid>/smaps_rollup, in which a page that processes share counts for each in part. Pages of the
cached files are not included: they belong to the page cache, which all workers share and the kernel
takes back. Linux only.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
from torch import nn

from tversky_seg.data.case import Case
from tversky_seg.data.patches.augmentation import Augmentation
from tversky_seg.data.patches.batches import PatchBatches
from tversky_seg.data.patches.samplers import LesionSampler
from tversky_seg.data.preprocessing.case_cache import prepare
from tversky_seg.data.preprocessing.pipeline import Preprocessing
from tversky_seg.data.preprocessing.prepared_case import PreparedCase
from tversky_seg.losses import TverskyLoss
from tversky_seg.models import UNet3D
from tversky_seg.training.trainer import Trainer
from tversky_seg.training.validation import Validation

N_ON_DISK = 5


def main() -> None:
    """Print a row for each number of cases; with --one, measure one of them in this process."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", type=int, nargs="+", default=[10, 1000])
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--side", type=int, default=128, help="voxels of a case along each axis")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        figures = measure(
            arguments.one,
            steps=arguments.steps,
            side=arguments.side,
            n_workers=arguments.workers,
        )
        print(json.dumps(figures))
        return
    print("| cases | trainer, half-way (MiB) | trainer, end | a worker, half-way | a worker, end |")
    print("|---|---|---|---|---|")
    for n_cases in arguments.cases:
        print(table_row(n_cases, arguments), flush=True)


def table_row(n_cases: int, arguments: argparse.Namespace) -> str:
    """Measure one number of cases in a process of its own."""
    command = [sys.executable, __file__, "--one", str(n_cases)]
    command += ["--steps", str(arguments.steps), "--side", str(arguments.side)]
    command += ["--workers", str(arguments.workers)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    # The trainer may print before the last line.
    half_way, end = json.loads(done.stdout.strip().splitlines()[-1])
    cells = (half_way["trainer"], end["trainer"], half_way["worker"], end["worker"])
    return f"| {n_cases} | {' | '.join(f'{mib:.0f}' for mib in cells)} |"


def measure(n_cases: int, *, steps: int, side: int, n_workers: int) -> list[dict[str, float]]:
    """Measure the memory of the trainer and of its largest worker, half-way and at the end."""
    figures: list[dict[str, float]] = []

    def validate(network: nn.Module) -> Validation:
        of_workers = [anonymous_mib(pid) for pid in child_processes()]
        figures.append(
            {"trainer": anonymous_mib(os.getpid()), "worker": max(of_workers, default=0.0)}
        )
        return Validation({"dice": 0.0})

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        cases = linked_cases(folder, n_cases=n_cases, side=side)
        batches = PatchBatches(cases, LesionSampler(patch_size=32), Augmentation(), batch_size=4)
        trainer = Trainer(
            model=UNet3D(in_channels=1, out_channels=1, width=4, n_levels=2),
            loss=TverskyLoss(),
            # The second validation comes before the last step, while the workers still run.
            max_steps=steps + 8,
            validate_every=steps // 2,
            checkpoint_every=steps,
            batch_size=4,
            n_workers=n_workers,
            threads=1,
            device="cpu",
        )
        trainer.fit(batches, folder / "run", validate=validate)
    return figures[:2]


def linked_cases(folder: Path, *, n_cases: int, side: int) -> list[PreparedCase]:
    """Prepare a few cases, and many with cache entries that are links to the files of these."""
    preprocessing = Preprocessing(("FLAIR",))
    few: list[PreparedCase] = []
    for number in range(N_ON_DISK):
        case = make_case(folder, number, side=side)
        few.append(prepare(case, preprocessing, cache_dir=folder))
    many: list[PreparedCase] = []
    for number in range(n_cases):
        many.append(link(few[number % N_ON_DISK], folder / f"linked{number}"))
    return many


def make_case(folder: Path, number: int, *, side: int) -> Case:
    """Write bright cubes in noise as a case."""
    rng = np.random.default_rng(number)
    image = rng.normal(100, 5, (side,) * 3)
    label = np.zeros((side,) * 3, np.uint8)
    for x, y, z in rng.integers(2, side - 8, (20, 3)):
        label[x : x + 5, y : y + 5, z : z + 5] = 1
    image = (image + 30 * label).astype(np.int16)
    image_path = folder / f"{number}_image.nii.gz"
    label_path = folder / f"{number}_label.nii.gz"
    nib.save(nib.Nifti1Image(image, np.eye(4)), image_path)
    nib.save(nib.Nifti1Image(label, np.eye(4)), label_path)
    return Case(f"c{number}", f"s{number}", images={"FLAIR": image_path}, labels=(label_path,))


def link(case: PreparedCase, folder: Path) -> PreparedCase:
    """Make another case of the same cached files."""
    folder.mkdir()
    assert case.folder is not None
    for file in case.folder.iterdir():
        os.link(file, folder / file.name)
    return replace(case, case_id=folder.name, subject_id=folder.name, folder=folder)


def anonymous_mib(pid: int) -> float:
    """Read Pss_Anon of a process."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss_Anon:"):
            return float(line.split()[1]) / 1024
    raise ValueError(f"Pss_Anon is not in /proc/{pid}/smaps_rollup")


def child_processes() -> list[int]:
    """List the processes that this one started: the loader workers."""
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text()
    return [int(pid) for pid in children.split()]


if __name__ == "__main__":
    main()
