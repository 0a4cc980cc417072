"""Kill a training at random moments, start it again each time, and compare its end with that of one left alone.

    python scripts/kill_resume.py --kills 20

Both train on a tiny synthetic cohort. The weights of both checkpoints must be equal, and metrics.csv, metrics.json,
cases.csv and lesions.csv byte for byte; status 1 says that something differs. A training that ends before all kills are
spent is compared, and another one takes the rest. Further arguments go to train.py.
"""

import argparse
import csv
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
import torch

ROOT = Path(__file__).parents[1]
RESULTS = (
    "metrics.csv",
    *(f"evaluation/{name}" for name in ("metrics.json", "cases.csv", "lesions.csv")),
)
SMALL = ("model.width=4", "model.n_levels=2", "model.dropout=0.2", "sampler.patch_size=16", "trainer.max_steps=60",
         "trainer.validate_every=10", "trainer.checkpoint_every=5", "trainer.log_every=4", "trainer.n_workers=0",
         "trainer.threads=1")  # fmt: skip


def make_cohort(folder: Path, *, n_cases: int) -> Path:
    """Bright cubes in noise, as NIfTI with a manifest."""
    rows = []
    for number in range(n_cases):
        rng = np.random.default_rng(number)
        image, label = rng.normal(100, 5, (28, 26, 24)), np.zeros((28, 26, 24), np.uint8)
        for corner in rng.integers(2, 18, (4, 3)):
            label[tuple(slice(start, start + 4) for start in corner)] = 1
        row = {"case_id": f"c{number}", "subject_id": f"s{number}"}
        for name, voxels in (("FLAIR", (image + 30 * label).astype(np.int16)), ("label", label)):
            row[name] = f"c{number}_{name}.nii.gz"
            nib.save(nib.Nifti1Image(voxels, np.diag([2.0, 2.0, 2.0, 1.0])), folder / row[name])
        rows.append(row)
    with (folder / "manifest.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return folder / "manifest.csv"


def command(manifest: Path, run: Path, further: Sequence[str]) -> list[str]:
    """The training."""
    data = [
        "data=manifest",
        f"data.manifest={manifest}",
        f"data.cache_dir={manifest.parent / 'cache'}",
    ]
    return [sys.executable, str(ROOT / "train.py"), *data, *SMALL, f"output_dir={run}", *further]


def where(run: Path) -> str:
    """What a run was doing when it was killed, as its files tell."""
    if (run / "evaluation").exists():
        return "evaluation"
    if (run / "predictions").exists():
        return "prediction"
    if list((run / "checkpoints").glob(".*.tmp")):
        return "checkpoint write"
    return "training" if (run / "metrics.csv").exists() else "start"


def kill_until_done(
    words: Sequence[str], run: Path, *, n_kills: int, seconds: float, rng: random.Random
) -> Counter[str]:
    """Start the command again and again; kill it after a random time while there are kills left."""
    killed = Counter[str]()
    while True:
        process = subprocess.Popen(
            words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        if killed.total() < n_kills:
            started = (
                time.monotonic()
            )  # starting takes seconds: wait for the work, then strike within it
            n_lines = lines(run)
            while (
                process.poll() is None and lines(run) == n_lines and time.monotonic() - started < 60
            ):
                time.sleep(0.01)
            time.sleep(rng.uniform(0, seconds))
            process.kill()
        _, said = process.communicate()
        if process.returncode == 0:
            return killed
        if process.returncode > 0:
            raise SystemExit(f"the run failed by itself, status {process.returncode}: {said}")
        killed[where(run)] += 1
        print(f"kill {killed.total()}: in {where(run)}", flush=True)


def lines(run: Path) -> int:
    """Length of the run's log: it grows when the work begins."""
    path = run / "train.log"
    return path.stat().st_size if path.exists() else 0


def differing(a: Path, b: Path) -> list[str]:
    """Which results of two runs are not the same bits."""
    found = [name for name in RESULTS if (a / name).read_bytes() != (b / name).read_bytes()]
    for name in ("last", "best"):
        one, other = (
            torch.load(run / "checkpoints" / f"{name}.pt", weights_only=True)["model"]
            for run in (a, b)
        )
        if one.keys() != other.keys() or not all(torch.equal(one[key], other[key]) for key in one):
            found.append(f"weights of {name}.pt")
    return found


def main() -> None:
    """Train once whole and once killed, and compare."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument(
        "--seconds", type=float, default=2.0, help="a kill comes at most so long after work began"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    options, further = parser.parse_known_args()
    with tempfile.TemporaryDirectory() as folder:
        manifest = make_cohort(Path(folder), n_cases=6)
        whole, places, found = Path(folder) / "whole", Counter[str](), list[str]()
        subprocess.run(command(manifest, whole, further), check=True, stdout=subprocess.DEVNULL)
        rng, n_runs = random.Random(options.seed), 0
        while places.total() < options.kills or not n_runs:
            n_runs, killed = n_runs + 1, Path(folder) / f"killed{n_runs}"
            left = options.kills - places.total()
            words = command(manifest, killed, further)
            places += kill_until_done(words, killed, n_kills=left, seconds=options.seconds, rng=rng)
            found += differing(whole, killed)
    where_killed = ", ".join(f"{n} in {place}" for place, n in places.items())
    end = f"differs: {', '.join(found)}" if found else "the same bits"
    print(f"{places.total()} kills of {n_runs} trainings ({where_killed}): {end}")
    sys.exit(1 if found else 0)


if __name__ == "__main__":
    main()
