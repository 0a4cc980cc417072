"""Kill a training at random moments, resume it each time, and compare its results with a whole one.

    python scripts/kill_resume.py --kills 20
    python scripts/kill_resume.py --kills 20 --seed 1 trainer.n_workers=0

Both train on a tiny synthetic cohort, with everything that keeps state between steps: loader
processes, dropout, deep supervision, batches in two parts, and a moving average of the weights.
All tensors of both checkpoints must be equal, and metrics.csv, metrics.json, cases.csv and
lesions.csv byte for byte. Exit status 1: something differs.

A training that ends before all kills are spent is compared, and another one takes the remaining
kills. Any train.py settings may follow. Where the system can fork, the trainings are forks of a
process that has imported their libraries, so that a kill takes some three seconds.
"""

import argparse
import importlib
import multiprocessing
import os
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch

from tversky_seg.runtime.cli import OneLineParser
from tversky_seg.runtime.files import SCRATCH_PREFIX, write_csv

ROOT = Path(__file__).resolve().parents[1]

SETTINGS = (
    "model.width=4",
    "model.n_levels=3",
    "model.dropout=0.2",
    "model.deep_supervision=1",
    "sampler.patch_size=16",
    "trainer.max_steps=60",
    "trainer.validate_every=10",
    "trainer.checkpoint_every=5",
    "trainer.log_every=4",
    "trainer.ema_decay=0.9",
    "trainer.accumulate=2",
    "trainer.n_workers=2",
    "trainer.threads=1",
)

RESULT_FILES = (
    "metrics.csv",
    "evaluation/metrics.json",
    "evaluation/cases.csv",
    "evaluation/lesions.csv",
)

LIBRARIES = (
    "tversky_seg.commands.train",
    "matplotlib.backends.backend_agg",
    "matplotlib.figure",
    "torch.utils.tensorboard",
    "torch._dynamo",
)
"""Modules that a training imports, at the latest when it ends."""

LONGEST_START_S = 120
"""Seconds after which a training that logs nothing is killed all the same."""


def main() -> int:
    """Train once without and once with kills; return the exit status."""
    parser = OneLineParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=20, help="number of kills (20)")
    parser.add_argument(
        "--seconds",
        type=float,
        default=2.0,
        help="longest time from the start of the work to a kill (2)",
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the moments of the kills (0)")
    parser.add_argument("settings", nargs="*", help="any train.py settings")
    options = parser.parse_intermixed_args()

    rng = random.Random(options.seed)
    moments = Counter[str]()
    differences: list[str] = []
    n_trainings = 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        manifest = make_cohort(folder, n_cases=6)
        whole = folder / "whole"
        import_libraries()
        words = train_words(manifest, whole, options.settings)
        for _ in kill_and_resume(words, whole, n_kills=0, longest_wait_s=0, rng=rng):
            pass
        # Without any kill, one training is compared all the same.
        while n_trainings == 0 or moments.total() < options.kills:
            n_trainings += 1
            run = folder / f"killed{n_trainings}"
            for moment in kill_and_resume(
                train_words(manifest, run, options.settings),
                run,
                n_kills=options.kills - moments.total(),
                longest_wait_s=options.seconds,
                rng=rng,
            ):
                moments[moment] += 1
                print(f"kill {moments.total()}: during {moment}", flush=True)
            differences += compare_runs(whole, run)

    counts = ", ".join(f"{n} during {moment}" for moment, n in moments.items())
    verdict = "equal bits"
    if differences:
        verdict = f"different: {', '.join(differences)}"
    print(f"{moments.total()} kills of {n_trainings} trainings ({counts}): {verdict}")
    return 1 if differences else 0


def train_words(manifest: Path, run: Path, settings: Sequence[str]) -> list[str]:
    """Write the command line of a training, without the name of the command."""
    return [
        "data=manifest",
        f"data.manifest={manifest}",
        f"data.cache_dir={manifest.parent / 'cache'}",
        *SETTINGS,
        f"output_dir={run}",
        *settings,
    ]


# The cohort


def make_cohort(folder: Path, *, n_cases: int) -> Path:
    """Write cases of bright cubes in noise as NIfTI; return their manifest."""
    rows = [write_case(folder, number) for number in range(n_cases)]
    manifest = folder / "manifest.csv"
    write_csv(manifest, ("case_id", "subject_id", "FLAIR", "label"), rows)
    return manifest


def write_case(folder: Path, number: int) -> tuple[str, str, str, str]:
    """Write image and label of a case; return its row of the manifest."""
    rng = np.random.default_rng(number)
    shape = (28, 26, 24)
    image = rng.normal(100, 5, shape)
    label = np.zeros(shape, np.uint8)
    for x, y, z in rng.integers(2, 18, (4, 3)):
        label[x : x + 4, y : y + 4, z : z + 4] = 1
    image += 30 * label
    affine = np.diag([2.0, 2.0, 2.0, 1.0])
    image_name = f"c{number}_FLAIR.nii.gz"
    label_name = f"c{number}_label.nii.gz"
    nib.save(nib.Nifti1Image(image.astype(np.int16), affine), folder / image_name)
    nib.save(nib.Nifti1Image(label, affine), folder / label_name)
    return f"c{number}", f"s{number}", image_name, label_name


# The kills


def import_libraries() -> None:
    """Import what the trainings need, once for all of them."""
    sys.path.insert(0, str(ROOT))
    # Threads of this process would not exist in its forks.
    torch.set_num_threads(1)
    for name in LIBRARIES:
        importlib.import_module(name)


def start_training(words: Sequence[str], errors: Path) -> multiprocessing.process.BaseProcess:
    """Start train.py in a process of its own."""
    can_fork = "fork" in multiprocessing.get_all_start_methods()
    context = multiprocessing.get_context("fork" if can_fork else "spawn")
    process = context.Process(target=run_training, args=(words, errors))
    process.start()
    return process


def run_training(words: Sequence[str], errors: Path) -> None:
    """Run train.py, which ends this process; its stderr goes to a file, its stdout to nowhere."""
    # A file, not a pipe: loader processes outlive a killed training by seconds and would keep the
    # pipe open, and a resumed training has to cope with them.
    with errors.open("w") as stderr, Path(os.devnull).open("w") as stdout:
        os.dup2(stderr.fileno(), 2)
        os.dup2(stdout.fileno(), 1)
    sys.path.insert(0, str(ROOT))
    sys.argv = ["train.py", *words]
    importlib.import_module("train").train()


def kill_and_resume(
    words: Sequence[str],
    run: Path,
    *,
    n_kills: int,
    longest_wait_s: float,
    rng: random.Random,
) -> Iterator[str]:
    """Start a training until it ends by itself, and kill it at most `n_kills` times.

    Yields:
        What the training was doing at each kill.
    """
    errors = run.parent / f"{run.name}.stderr"
    while True:
        process = start_training(words, errors)
        if n_kills > 0:
            # SIGKILL: the training can do nothing about it, as in a power cut.
            wait_for_work(process, run)
            time.sleep(rng.uniform(0, longest_wait_s))
            process.kill()
        process.join()
        status = process.exitcode
        if status == 0:
            return
        if status is None or status > 0:
            text = errors.read_text(encoding="utf-8")
            raise SystemExit(f"the training failed by itself with status {status}: {text}")
        n_kills -= 1
        yield stage_of(run)


def wait_for_work(process: multiprocessing.process.BaseProcess, run: Path) -> None:
    """Wait until a training logs: its start takes time, in which a kill tests little."""
    log = run / "train.log"
    size = size_of(log)
    deadline = time.monotonic() + LONGEST_START_S
    while process.is_alive() and size_of(log) == size and time.monotonic() < deadline:
        time.sleep(0.01)


def size_of(file: Path) -> int:
    """Return the size of a file in bytes; 0 if there is none."""
    return file.stat().st_size if file.exists() else 0


def stage_of(run: Path) -> str:
    """Tell from the files of a run what it was doing when it was killed."""
    if (run / "evaluation").exists():
        return "evaluation"
    if (run / "predictions").exists():
        return "prediction"
    if list((run / "checkpoints").glob(f"{SCRATCH_PREFIX}*")):
        return "the writing of a checkpoint"
    if (run / "metrics.csv").exists():
        return "training"
    return "the start"


# The comparison


def compare_runs(a: Path, b: Path) -> list[str]:
    """List the results of two runs that do not have the same bits."""
    differences = []
    for name in RESULT_FILES:
        if (a / name).read_bytes() != (b / name).read_bytes():
            differences.append(name)
    for name in ("last.pt", "best.pt"):
        tensors_a = tensors_of(torch.load(a / "checkpoints" / name, weights_only=True))
        tensors_b = tensors_of(torch.load(b / "checkpoints" / name, weights_only=True))
        for key in sorted(tensors_a.keys() | tensors_b.keys()):
            is_in_both = key in tensors_a and key in tensors_b
            if not is_in_both or not torch.equal(tensors_a[key], tensors_b[key]):
                differences.append(f"{key} of {name}")
    return differences


def tensors_of(content: Any, key: str = "") -> dict[str, torch.Tensor]:
    """List all tensors of a checkpoint by their keys, as "optimizer.state.0.exp_avg"."""
    if isinstance(content, torch.Tensor):
        return {key: content}
    children = {}
    if isinstance(content, dict):
        children = content
    elif isinstance(content, list):
        children = dict(enumerate(content))
    tensors = {}
    for name, child in children.items():
        tensors |= tensors_of(child, f"{key}.{name}".lstrip("."))
    return tensors


if __name__ == "__main__":
    sys.exit(main())
