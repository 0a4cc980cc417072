"""Memory and time of preprocessing: `python benchmarks/preprocessing.py [--cases 4 40] [--side 192] [--spacing 1.5]`.

Writes a synthetic case (three modalities and a label, side^3 voxels), prepares it under many names in a process of its
own for each cohort size, as a worker does, and prints the peak of its resident memory beyond what it held before, in
float32 volumes of the case, and the seconds a case. The claim: at most 3 volumes, with 40 cases as with 4. Linux only.
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
from tversky_seg.data.preprocessing.parallel import prepare_all
from tversky_seg.data.preprocessing.pipeline import Preprocessing, prepare
from tversky_seg.runtime.workers import return_freed_memory

MODALITIES = ("FLAIR", "T1", "T2")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", nargs="+", type=int, default=[4, 40])
    parser.add_argument("--side", type=int, default=192, help="voxels along each axis")
    parser.add_argument(
        "--spacing", type=float, default=None, help="mm to resample to; the files have 1 mm"
    )
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    words = parser.parse_args()
    if words.measure:
        print(json.dumps(measure(Path(words.measure), words.cases[0], words)))
        return
    with tempfile.TemporaryDirectory() as folder:
        write_case(Path(folder), side=words.side)
        print(f"{words.side}^3 voxels, {len(MODALITIES)} modalities")
        print("| cases | volumes beyond the start | MiB | s per case |")
        print("|---|---|---|---|")
        for n in words.cases:
            own = [sys.executable, __file__, "--measure", folder, "--cases", str(n)]
            own += ["--side", str(words.side)] + (
                ["--spacing", str(words.spacing)] if words.spacing else []
            )
            found = json.loads(
                subprocess.run(own, check=True, capture_output=True, text=True).stdout
            )
            volume = words.side**3 * 4
            print(
                f"| {n} | {found['bytes'] / volume:.2f} | {found['bytes'] / 2**20:.0f} | {found['seconds'] / n:.2f} |"
            )


def write_case(folder: Path, *, side: int) -> dict[str, Path]:
    """One case in files."""
    rng = np.random.default_rng(0)
    centre = (side - 1) / 2
    squares = (np.arange(side) - centre) ** 2
    radius = np.sqrt(squares[:, None, None] + squares[:, None] + squares)
    brain = radius < 0.46 * side
    files = {}
    for name in MODALITIES:
        image = np.where(brain, rng.normal(500, 80, brain.shape), 0).astype(np.int16)
        nib.save(nib.Nifti1Image(image, np.eye(4)), folder / f"{name}.nii.gz")
        files[name] = folder / f"{name}.nii.gz"
    label = np.zeros(brain.shape, np.uint8)
    for x, y, z in rng.integers(int(0.25 * side), int(0.7 * side), (40, 3)):
        label[x : x + 5, y : y + 4, z : z + 3] = 1
    nib.save(nib.Nifti1Image(label, np.eye(4)), folder / "label.nii.gz")
    return files


def measure(folder: Path, n: int, words: argparse.Namespace) -> dict[str, float]:
    """Prepare n cases; the growth of peak memory of this process."""
    return_freed_memory()  # as each worker of prepare_all does
    case_of = {f"c{i}": {m: folder / f"{m}.nii.gz" for m in MODALITIES} for i in range(n)}
    cases = [
        Case(name, name, images, (folder / "label.nii.gz",)) for name, images in case_of.items()
    ]
    spacing = None if words.spacing is None else (words.spacing,) * 3
    settings = Preprocessing(MODALITIES, spacing_mm=spacing)
    cache = folder / f"cache_{n}"
    small = folder / "small"
    small.mkdir(exist_ok=True)
    tiny = write_case(small, side=16)  # the first case loads libraries
    prepare(Case("tiny", "tiny", tiny, (small / "label.nii.gz",)), settings, cache_dir=cache)
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    before, start = memory("VmRSS"), time.perf_counter()
    prepare_all(cases, settings, cache_dir=cache, n_workers=1)
    return {"bytes": memory("VmHWM") - before, "seconds": time.perf_counter() - start}


def memory(kind: str) -> float:
    """Bytes that this process holds (VmRSS) or held at most (VmHWM)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(float(line.split()[1]) * 1024 for line in lines if line.startswith(kind))


if __name__ == "__main__":
    main()
