"""Memory and time of preprocessing.

    python benchmarks/preprocessing.py [--cases 4 40] [--side 192] [--spacing 1.5]

Writes a synthetic case (three modalities and a label, side^3 voxels) and prepares it under many
names, for each cohort size in a process of its own, as a worker does. Prints the seconds per case
and the growth of the peak resident memory, in float32 volumes of the case. The claim: at most 3
volumes, with 40 cases as with 4. Linux only.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import nibabel as nib
import numpy as np

from tversky_seg.data.case import Case
from tversky_seg.data.preprocessing.case_cache import prepare
from tversky_seg.data.preprocessing.parallel import prepare_all
from tversky_seg.data.preprocessing.pipeline import Preprocessing
from tversky_seg.runtime.workers import return_freed_memory

MODALITIES = ("FLAIR", "T1", "T2")
RESET_PEAK = "5"  # see proc(5), clear_refs


def main() -> None:
    """Print a row for each cohort size; with --measure, measure one of them in this process."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", nargs="+", type=int, default=[4, 40])
    parser.add_argument("--side", type=int, default=192, help="voxels along each axis")
    parser.add_argument("--spacing", type=float, help="mm to resample to; the files have 1 mm")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        (n_cases,) = arguments.cases
        figures = measure(arguments.measure, n_cases, spacing_mm=arguments.spacing)
        print(json.dumps(figures))
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_case(folder, side=arguments.side)
        print(f"{arguments.side}^3 voxels, {len(MODALITIES)} modalities")
        print("| cases | volumes beyond the start | MiB | s per case |")
        print("|---|---|---|---|")
        for n_cases in arguments.cases:
            print(table_row(folder, n_cases, side=arguments.side, spacing_mm=arguments.spacing))


def table_row(folder: Path, n_cases: int, *, side: int, spacing_mm: float | None) -> str:
    """Measure one cohort size in a process of its own."""
    command = [sys.executable, __file__, "--measure", str(folder), "--cases", str(n_cases)]
    if spacing_mm is not None:
        command += ["--spacing", str(spacing_mm)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    figures = json.loads(done.stdout)
    n_volumes = figures["bytes"] / (side**3 * 4)
    mib = figures["bytes"] / 2**20
    return f"| {n_cases} | {n_volumes:.2f} | {mib:.0f} | {figures['seconds'] / n_cases:.2f} |"


def write_case(folder: Path, *, side: int) -> None:
    """Write the modalities and the label of a case."""
    rng = np.random.default_rng(0)
    centre = (side - 1) / 2
    squares = (np.arange(side) - centre) ** 2
    radius = np.sqrt(squares[:, None, None] + squares[:, None] + squares)
    brain = radius < 0.46 * side
    for name in MODALITIES:
        image = np.where(brain, rng.normal(500, 80, brain.shape), 0).astype(np.int16)
        nib.save(nib.Nifti1Image(image, np.eye(4)), folder / f"{name}.nii.gz")
    label = np.zeros(brain.shape, np.uint8)
    for x, y, z in rng.integers(int(0.25 * side), int(0.7 * side), (40, 3)):
        label[x : x + 5, y : y + 4, z : z + 3] = 1
    nib.save(nib.Nifti1Image(label, np.eye(4)), folder / "label.nii.gz")


def case_in(folder: Path, case_id: str) -> Case:
    """Name the files of `write_case` as a case."""
    images = {name: folder / f"{name}.nii.gz" for name in MODALITIES}
    return Case(case_id, case_id, images=images, labels=(folder / "label.nii.gz",))


def measure(folder: Path, n_cases: int, *, spacing_mm: float | None) -> dict[str, float]:
    """Prepare the case `n_cases` times, and measure the growth of this process's peak memory."""
    return_freed_memory()  # as each worker of prepare_all does
    preprocessing = Preprocessing(MODALITIES)
    if spacing_mm is not None:
        preprocessing = Preprocessing(MODALITIES, spacing_mm=(spacing_mm,) * 3)
    cases = [case_in(folder, f"c{i}") for i in range(n_cases)]
    cache_dir = folder / f"cache_{n_cases}"
    # The first case of a process loads libraries: a tiny one, that is not measured.
    tiny = folder / "tiny"
    tiny.mkdir(exist_ok=True)
    write_case(tiny, side=16)
    prepare(case_in(tiny, "tiny"), preprocessing, cache_dir=cache_dir)
    Path("/proc/self/clear_refs").write_text(RESET_PEAK)
    before = memory_bytes("VmRSS")
    start = time.perf_counter()
    prepare_all(cases, preprocessing, cache_dir=cache_dir, n_workers=1)
    seconds = time.perf_counter() - start
    return {"bytes": memory_bytes("VmHWM") - before, "seconds": seconds}


def memory_bytes(kind: str) -> float:
    """Read the resident memory of this process, now (VmRSS) or at its peak (VmHWM)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(kind):
            return float(line.split()[1]) * 1024
    raise ValueError(f"{kind} is not in /proc/self/status")


if __name__ == "__main__":
    main()
