"""Kill a training at random moments, resume it each time, and compare it with one left alone.

    python scripts/kill_resume.py --kills 20

Both train on a tiny synthetic cohort. The weights of both checkpoints must be equal, and
metrics.csv, metrics.json, cases.csv and lesions.csv byte for byte; otherwise the exit status is 1.
A training that ends before all kills are spent is compared, and another one takes the remaining
kills. Further arguments go to train.py.
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
    "evaluation/metrics.json",
    "evaluation/cases.csv",
    "evaluation/lesions.csv",
)
SMALL = (
    "model.width=4",
    "model.n_levels=2",
    "model.dropout=0.2",
    "sampler.patch_size=16",
    "trainer.max_steps=60",
    "trainer.validate_every=10",
    "trainer.checkpoint_every=5",
    "trainer.log_every=4",
    "trainer.n_workers=0",
    "trainer.threads=1",
)
SHAPE = (28, 26, 24)
N_CASES = 6
SECONDS_TO_START = 60.0


def make_cohort(folder: Path) -> Path:
    """Write bright cubes in noise as NIfTI files, and return their manifest."""
    rows = []
    for number in range(N_CASES):
        rng = np.random.default_rng(number)
        image = rng.normal(100, 5, SHAPE)
        label = np.zeros(SHAPE, np.uint8)
        for x, y, z in rng.integers(2, 18, (4, 3)):
            label[x : x + 4, y : y + 4, z : z + 4] = 1
        row = {"case_id": f"c{number}", "subject_id": f"s{number}"}
        row["FLAIR"] = f"c{number}_FLAIR.nii.gz"
        row["label"] = f"c{number}_label.nii.gz"
        save_volume(folder / row["FLAIR"], (image + 30 * label).astype(np.int16))
        save_volume(folder / row["label"], label)
        rows.append(row)
    manifest = folder / "manifest.csv"
    with manifest.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return manifest


def save_volume(path: Path, voxels: np.ndarray) -> None:
    """Write a volume of 2 mm voxels."""
    nib.save(nib.Nifti1Image(voxels, np.diag([2.0, 2.0, 2.0, 1.0])), path)


def train_command(manifest: Path, run: Path, further: Sequence[str]) -> list[str]:
    """Return the command line of the training."""
    return [
        sys.executable,
        str(ROOT / "train.py"),
        "data=manifest",
        f"data.manifest={manifest}",
        f"data.cache_dir={manifest.parent / 'cache'}",
        *SMALL,
        f"output_dir={run}",
        *further,
    ]


def train_with_kills(
    command: Sequence[str], run: Path, *, n_kills: int, seconds: float, rng: random.Random
) -> Counter[str]:
    """Start the command until it ends by itself; kill it at random while there are kills left.

    Returns:
        How many kills came in which stage.
    """
    kills = Counter[str]()
    while True:
        process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        if kills.total() < n_kills:
            wait_for_work(process, run)
            time.sleep(rng.uniform(0, seconds))
            process.kill()
        _, stderr = process.communicate()
        if process.returncode == 0:
            return kills
        if process.returncode > 0:
            raise SystemExit(f"the run failed by itself, status {process.returncode}: {stderr}")
        stage = stage_of(run)
        kills[stage] += 1
        print(f"kill {kills.total()}: in {stage}", flush=True)


def wait_for_work(process: subprocess.Popen[str], run: Path) -> None:
    """Return when the log grows: importing takes seconds, in which a kill would test nothing."""
    start = time.monotonic()
    size = log_size(run)
    while process.poll() is None and log_size(run) == size:
        if time.monotonic() - start > SECONDS_TO_START:
            return
        time.sleep(0.01)


def log_size(run: Path) -> int:
    """Return the bytes of the run's log; 0 before there is one."""
    path = run / "train.log"
    return path.stat().st_size if path.exists() else 0


def stage_of(run: Path) -> str:
    """Tell from the files of a run what it was doing when it was killed."""
    if (run / "evaluation").exists():
        return "evaluation"
    if (run / "predictions").exists():
        return "prediction"
    if list((run / "checkpoints").glob(".scratch-*")):
        return "checkpoint write"
    if (run / "metrics.csv").exists():
        return "training"
    return "start"


def differing_results(one: Path, other: Path) -> list[str]:
    """List the results of two runs that are not the same bits."""
    differing = []
    for name in RESULTS:
        if (one / name).read_bytes() != (other / name).read_bytes():
            differing.append(name)
    for name in ("last.pt", "best.pt"):
        if not have_equal_weights(one / "checkpoints" / name, other / "checkpoints" / name):
            differing.append(f"weights of {name}")
    return differing


def have_equal_weights(one: Path, other: Path) -> bool:
    """Compare the weights of two checkpoints bit for bit."""
    weights = torch.load(one, weights_only=True)["model"]
    other_weights = torch.load(other, weights_only=True)["model"]
    if weights.keys() != other_weights.keys():
        return False
    return all(torch.equal(weights[name], other_weights[name]) for name in weights)


def main() -> None:
    """Train once left alone and at least once killed, and compare."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=20, help="number of kills")
    parser.add_argument(
        "--seconds", type=float, default=2.0, help="longest time from the start of work to a kill"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the moments of the kills")
    options, further = parser.parse_known_args()
    rng = random.Random(options.seed)
    kills = Counter[str]()
    n_runs = 0
    differing: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        manifest = make_cohort(Path(folder))
        whole = Path(folder) / "whole"
        command = train_command(manifest, whole, further)
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        while kills.total() < options.kills or n_runs == 0:
            n_runs += 1
            run = Path(folder) / f"killed{n_runs}"
            kills += train_with_kills(
                train_command(manifest, run, further),
                run,
                n_kills=options.kills - kills.total(),
                seconds=options.seconds,
                rng=rng,
            )
            differing += differing_results(whole, run)
    stages = ", ".join(f"{n} in {stage}" for stage, n in kills.items())
    verdict = f"differs: {', '.join(differing)}" if differing else "the same bits"
    print(f"{kills.total()} kills of {n_runs} trainings ({stages}): {verdict}")
    sys.exit(1 if differing else 0)


if __name__ == "__main__":
    main()
