"""Memory of a training on 10 and on 1,000 cases, per process; prints a Markdown table.

    python benchmarks/memory.py --cases 10 1000 --steps 200

The cases are hard links to the cached arrays of five, so that the disk holds five while the training sees all. Each row
is a command of its own: `Trainer` with loader workers, measured in its validations half-way and at the end. Anonymous
memory is Pss_Anon of /proc/<pid>/smaps_rollup, in which a page that processes share counts for each in part; pages of
the cached files are not in it: they belong to the page cache, which all workers share and the kernel takes back.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
from torch import nn

from tversky_seg.data.case import Case
from tversky_seg.data.patches.augmentation import Augmentation
from tversky_seg.data.patches.batches import PatchBatches
from tversky_seg.data.patches.samplers import LesionSampler
from tversky_seg.data.preprocessing.pipeline import Preprocessing, prepare
from tversky_seg.data.preprocessing.prepared_case import PreparedCase
from tversky_seg.losses import TverskyLoss
from tversky_seg.models import UNet3D
from tversky_seg.training.trainer import Trainer
from tversky_seg.training.validation import Validation

N_REAL = 5


def linked_cases(folder: Path, *, n: int, side: int) -> list[PreparedCase]:
    """So many prepared cases with cache entries of their own, whose files are those of a few."""
    few = [
        prepare(make_case(folder, i, side=side), Preprocessing(("FLAIR",)), cache_dir=folder)
        for i in range(N_REAL)
    ]
    return [linked(few[i % N_REAL], folder / f"linked{i}") for i in range(n)]


def make_case(folder: Path, number: int, *, side: int) -> Case:
    """Bright cubes in noise, as NIfTI."""
    rng = np.random.default_rng(number)
    image, label = rng.normal(100, 5, (side,) * 3), np.zeros((side,) * 3, np.uint8)
    for corner in rng.integers(2, side - 8, (20, 3)):
        label[tuple(slice(start, start + 5) for start in corner)] = 1
    paths = [folder / f"{number}_{name}.nii.gz" for name in ("image", "label")]
    for path, voxels in zip(paths, ((image + 30 * label).astype(np.int16), label), strict=True):
        nib.save(nib.Nifti1Image(voxels, np.eye(4)), path)
    return Case(f"c{number}", f"s{number}", images={"FLAIR": paths[0]}, labels=(paths[1],))


def linked(case: PreparedCase, folder: Path) -> PreparedCase:
    folder.mkdir()
    assert case.folder is not None
    for file in case.folder.iterdir():
        os.link(file, folder / file.name)
    return replace(case, case_id=folder.name, subject_id=folder.name, folder=folder)


def anonymous_mib(pid: int) -> float:
    """Pss_Anon of a process."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return float(next(line for line in lines if line.startswith("Pss_Anon:")).split()[1]) / 1024


def workers() -> list[int]:
    return [int(pid) for pid in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()]


def measure(n: int, *, steps: int, side: int, n_workers: int) -> list[dict[str, float]]:
    """Anonymous memory of the trainer and of its largest worker, half-way and at the end."""
    found = []

    def validate(network: nn.Module) -> Validation:
        own = {
            "main": anonymous_mib(os.getpid()),
            "worker": max(map(anonymous_mib, workers()), default=0.0),
        }
        found.append(own)
        return Validation({"dice": 0.0})

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        cases = linked_cases(folder, n=n, side=side)
        batches = PatchBatches(cases, LesionSampler(patch_size=32), Augmentation(), batch_size=4)
        network = UNet3D(in_channels=1, out_channels=1, width=4, n_levels=2)
        settings = {
            "max_steps": steps + 8,
            "validate_every": steps // 2,
            "checkpoint_every": steps,
            "batch_size": 4,
        }
        trainer = Trainer(
            model=network,
            loss=TverskyLoss(),
            n_workers=n_workers,
            threads=1,
            device="cpu",
            **settings,
        )
        trainer.fit(batches, folder / "run", validate=validate)
    return found[:2]


def row(n: int, words: Sequence[str]) -> str:
    """Measured in a process of its own."""
    command = [sys.executable, __file__, "--one", str(n), *words]
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    half, end = json.loads(said.strip().splitlines()[-1])
    figures = (half["main"], end["main"], half["worker"], end["worker"])
    return f"| {n} | " + " | ".join(f"{figure:.0f}" for figure in figures) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", type=int, nargs="+", default=[10, 1000])
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--side", type=int, default=128, help="of a case's cube of voxels")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        found = measure(
            options.one, steps=options.steps, side=options.side, n_workers=options.workers
        )
        print(json.dumps(found))
        return
    words = [f"--{name}={getattr(options, name)}" for name in ("steps", "side", "workers")]
    print("| cases | trainer, half-way (MiB) | trainer, end | a worker, half-way | a worker, end |")
    print("|---|---|---|---|---|")
    for n in options.cases:
        print(row(n, words), flush=True)


if __name__ == "__main__":
    main()
