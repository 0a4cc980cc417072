"""Time and memory of the loader, next to MONAI's and TorchIO's, and its share of a training step.

    python benchmarks/loader.py --case FLAIR.nii.gz T1.nii.gz T2.nii.gz LABEL.nii.gz
        [--repeats 30] [--output FILE]

One patient, 3 channels, patches of 96^3, one thread, no workers, everything warm. All rows of a
table take turns in one process. Times are processor time, which other processes do not lengthen:
medians for the fetch (TorchIO: mean, for its queue is filled now and then), otherwise means. MONAI
at its best: CacheDataset with copy_cache=False and cached indices of the same voxels. Half the
patches are drawn for a lesion in each tool. Fetched is a batch of one patch ready to train on:
contiguous, with a float32 target. What MONAI's transform returns before that is a view, not yet
copied.
"""

import argparse
import datetime
import json
import platform
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import mean, median
from typing import Any

import monai
import numpy as np
import torch
import torchio
from loader_peers import (
    CHANNELS,
    SIDE,
    matched_monai,
    matched_torchio,
    monai_patches,
    torchio_patches,
    volume_of,
)
from monai import transforms as mt
from omegaconf import OmegaConf

from tversky_seg.data.case import Case
from tversky_seg.data.patches.augmentation import Augmentation
from tversky_seg.data.patches.batch import Batch
from tversky_seg.data.patches.batches import PatchBatches
from tversky_seg.data.patches.samplers import ForegroundSampler, LesionSampler
from tversky_seg.data.patches.sampling import Aim
from tversky_seg.data.preprocessing.case_cache import prepare
from tversky_seg.data.preprocessing.pipeline import Preprocessing
from tversky_seg.data.preprocessing.prepared_case import PreparedCase
from tversky_seg.losses import TverskyLoss
from tversky_seg.models import UNet3D

# matched: the same kinds of change, with the same probability, of the same strength
PROBABILITY = {
    "affine": 0.3,
    "bias": 0.1,
    "blur": 0.2,
    "low resolution": 0.2,
    "gamma": 0.3,
    "noise": 0.2,
    "flip": 0.5,
}


def as_case(files: list[Path], case_id: str = "patient") -> Case:
    return Case(
        case_id, case_id, images=dict(zip(CHANNELS, files, strict=False)), labels=(files[3],)
    )


def in_turns(
    jobs: Mapping[str, Callable[[int], object]], *, repeats: int
) -> dict[str, list[float]]:
    """Measure the processor time of jobs that take turns, in ms; the first turn is not timed.

    Args:
        jobs: Functions of the number of the turn, by name.
        repeats: Timed turns.
    """
    times: dict[str, list[float]] = {name: [] for name in jobs}
    for turn in range(repeats + 1):
        for name, job in jobs.items():
            start = time.process_time()
            job(turn)
            if turn:
                times[name].append(1e3 * (time.process_time() - start))
    return times


def our_patches(case: PreparedCase, augmentation: Augmentation | None) -> Callable[[int], object]:
    batches = PatchBatches(
        [case], ForegroundSampler(SIDE, lesion_probability=0.5), augmentation, batch_size=1
    )
    return lambda k: batches[k]


def matched_ours(p: Mapping[str, float]) -> Augmentation:
    return Augmentation(
        flip_probability=p.get("flip", 0.0),
        rotation_axes=(),
        tilt_probability=p.get("affine", 0.0),
        bias_field_probability=p.get("bias", 0.0),
        blur_probability=p.get("blur", 0.0),
        low_resolution_probability=p.get("low resolution", 0.0),
        gamma=0.4,
        gamma_probability=p.get("gamma", 0.0),
        contrast_probability=0.0,
        scale_probability=0.0,
        shift_probability=0.0,
        noise_sd=0.15,
        noise_probability=p.get("noise", 0.0),
    )


def fetch_lines(case: PreparedCase, files: list[Path], *, repeats: int) -> list[str]:
    jobs = {
        "tversky-seg": our_patches(case, None),
        f"MONAI {monai.__version__}": monai_patches(case),
        "MONAI, the view": monai_patches(case, is_batch=False),
        f"TorchIO {torchio.__version__}": torchio_patches(case),
    }
    times = {}
    for name, values in in_turns(jobs, repeats=3 * repeats).items():
        # TorchIO fills its queue now and then: the median would not show that
        average = mean if "TorchIO" in name else median
        times[name] = average(values)
    with tempfile.TemporaryDirectory() as folder:
        memory = [resident_mib(files, tool, folder) for tool in ("ours", "monai", "torchio")]
    memory.insert(2, memory[1])
    ours, *_ = times.values()
    lines = [
        "| loader | ms a patch | of ours | MiB resident a case | anonymous |",
        "|---|---|---|---|---|",
    ]
    for (name, value), (resident, anonymous) in zip(times.items(), memory, strict=True):
        lines.append(
            f"| {name} | {value:.2f} | {value / ours:.1f} | {resident:.0f} | {anonymous:.0f} |"
        )
    return lines


REPORT_MEMORY = """
import sys
from loader import report_memory
report_memory(sys.argv[1], sys.argv[2], sys.argv[3:])
"""


def resident_mib(files: list[Path], tool: str, folder: str) -> tuple[float, float]:
    """Resident and anonymous memory that one more case takes, in a process of its own."""
    finished = subprocess.run(
        [
            sys.executable,
            "-W",
            "ignore",
            "-c",
            REPORT_MEMORY,
            tool,
            folder,
            *(str(file.resolve()) for file in files),
        ],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parent,
    )
    resident, anonymous = json.loads(finished.stdout.strip().splitlines()[-1])
    return resident, anonymous


def report_memory(tool: str, folder: str, files: list[str]) -> None:
    """Print what the last of three cases adds, after 24 patches of each."""
    make = {
        "ours": lambda case: our_patches(case, None),
        "monai": monai_patches,
        "torchio": torchio_patches,
    }[tool]
    settings = Preprocessing(modalities=CHANNELS)
    one = as_case(list(map(Path, files)))
    # a cache for each, so that no two share the pages of a file
    cases = [prepare(one, settings, cache_dir=Path(folder) / str(number)) for number in range(3)]
    fetches = []  # kept, with all that they hold
    measured = []
    for case in cases:
        fetch = make(case)
        for k in range(24):
            fetch(k)
        fetches.append(fetch)
        measured.append(memory_mib())
    print(json.dumps(np.subtract(measured[2], measured[1]).tolist()))


def memory_mib() -> tuple[float, float]:
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    resident, anonymous = (int(status[name].split()[0]) / 1024 for name in ("VmRSS", "RssAnon"))
    return resident, anonymous


def augmentation_lines(case: PreparedCase, *, repeats: int) -> list[str]:
    """Each change alone where it happens every time, then all with their probabilities."""
    lines = [
        "| change of a 96^3 patch with 3 channels | ours ms | MONAI ms | TorchIO ms "
        "| fastest peer / ours |",
        "|---|---|---|---|---|",
    ]
    rows = {f"{name}, always": ({name: 1.0}, max(2, repeats // 10)) for name in PROBABILITY}
    shares = ", ".join(f"{name} {share}" for name, share in PROBABILITY.items())
    rows[f"all, with probabilities {shares}"] = (PROBABILITY, repeats)
    volume = volume_of(case)
    corner = tuple(
        slice(max(0, (n - SIDE) // 2), max(0, (n - SIDE) // 2) + SIDE) for n in case.geometry.shape
    )
    patch = {name: values[(slice(None), *corner)].contiguous() for name, values in volume.items()}
    start = tuple(side.start for side in corner)
    for name, (probability, n) in rows.items():
        ours, third = matched_ours(probability), matched_torchio(probability)
        theirs = mt.Compose(matched_monai(probability))
        jobs = {
            "ours": lambda k, ours=ours: PatchBatches([case], Fixed(start), ours, batch_size=1)[k],
            "monai": lambda _, theirs=theirs: theirs({k: v.clone() for k, v in patch.items()}),
            "torchio": lambda _, third=third: third(
                torchio.Subject(
                    image=torchio.ScalarImage(tensor=patch["image"].clone()),
                    label=torchio.LabelMap(tensor=patch["label"].clone()),
                )
            ),
        }
        times = {job: mean(values) for job, values in in_turns(jobs, repeats=n).items()}
        cells = [f"{times[tool]:.1f}" for tool in ("ours", "monai", "torchio")]
        ratio = min(times["monai"], times["torchio"]) / times["ours"]
        lines.append(f"| {name} | {' | '.join(cells)} | **{ratio:.1f}** |")
    return [
        *lines,
        "",
        "Ours reads the patch too, with the margin that a rotation needs; the peers' patch is in "
        "memory.",
    ]


class Fixed:
    """Every patch at one place, so that all tools change the same."""

    patch_size = SIDE

    def __init__(self, start: tuple[int, ...]):
        self.start = start

    def aim(self, cases: Any, rng: Any, *, patch_number: int = 0) -> Aim:
        """Aim at the one place in the one case."""
        return Aim(0, voxel=self.start, start=self.start)


def step_lines(case: PreparedCase, *, repeats: int) -> list[str]:
    """Measure loading in the training process against a step on a batch held in memory."""
    torch.manual_seed(0)
    model = UNet3D(in_channels=3, out_channels=1)
    loss, optimizer = TverskyLoss(), torch.optim.AdamW(model.parameters())

    def step(batch: Batch) -> None:
        optimizer.zero_grad()
        loss(model(batch.image), batch.target).backward()
        optimizer.step()

    sampler = LesionSampler(patch_size=64)
    held = PatchBatches([case], sampler, None)[0]
    bare = median(in_turns({"bare": lambda _: step(held)}, repeats=max(3, repeats // 5))["bare"])
    jobs = {}
    for name in ("none", "light", "default", "strong"):
        batches = PatchBatches([case], sampler, augmentation_of(name))
        jobs[name] = lambda k, batches=batches: batches[k]
    times = in_turns(jobs, repeats=2 * repeats)
    lines = ["| augmentation | ms to load a batch | of the bare step, with it |", "|---|---|---|"]
    lines += [
        f"| {name} | {mean(values):.0f} | {1 + mean(values) / bare:.3f} |"
        for name, values in times.items()
    ]
    return [*lines, "", f"The bare step (forward, backward, optimizer): {bare:.0f} ms."]


def augmentation_of(name: str) -> Augmentation:
    settings = OmegaConf.to_container(
        OmegaConf.load(Path(__file__).parents[1] / f"configs/augmentation/{name}.yaml")
    )
    return Augmentation(**{key: value for key, value in settings.items() if key != "_target_"})


FIRST_BATCH = """
import sys
from pathlib import Path
from tversky_seg.data.patches.augmentation import Augmentation
from tversky_seg.data.case import Case
from tversky_seg.data.patches.batches import PatchBatches
from tversky_seg.data.preprocessing.parallel import prepare_all
from tversky_seg.data.preprocessing.pipeline import Preprocessing
from tversky_seg.data.patches.samplers import LesionSampler
if __name__ == "__main__":
    folder, *images, label = map(Path, sys.argv[1:])
    named = dict(zip(("FLAIR", "T1", "T2"), images))
    cases = [Case(f"c{i}", f"c{i}", images=named, labels=(label,)) for i in range(12)]
    prepared = prepare_all(cases, Preprocessing(modalities=tuple(named)), cache_dir=folder)
    PatchBatches(prepared, LesionSampler(), Augmentation())[0]
"""


def start_line(files: list[Path]) -> str:
    """Seconds from the start of Python to the first batch of 12 cases in a warm cache."""
    with tempfile.TemporaryDirectory() as folder:
        seconds = []
        for _ in range(3):
            start = time.perf_counter()
            command = [sys.executable, "-c", FIRST_BATCH, folder, *map(str, files)]
            subprocess.run(command, check=True, cwd=Path(__file__).parents[1], capture_output=True)
            seconds.append(time.perf_counter() - start)
    return (
        f"First batch (2 of 64^3) of 12 cases from a warm cache: {median(seconds[1:]):.1f} s "
        "after the start of Python."
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--case", type=Path, nargs=4, required=True, help="three images and a label of one patient"
    )
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--output", type=Path, help="also write the page there")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        settings = Preprocessing(modalities=CHANNELS)
        case = prepare(as_case(arguments.case), settings, cache_dir=Path(folder))
        n, files = arguments.repeats, arguments.case
        n = arguments.repeats
        files = arguments.case
        page = Page()
        page.add(head_lines(n))
        page.add(["", "## Fetch a patch", "", *fetch_lines(case, files, repeats=n)])
        page.add(["", "## Change a patch", "", *augmentation_lines(case, repeats=n)])
        title = "## A training step (default U-Net, batch of two 64^3 patches)"
        page.add(["", title, "", *step_lines(case, repeats=n)])
        page.add(["", "## Start", "", start_line(files)])
    if arguments.output:
        arguments.output.write_text("\n".join(page.lines) + "\n", encoding="utf-8")


def head_lines(n_repeats: int) -> list[str]:
    """Say how the page was made, and with which versions."""
    files = "FLAIR.nii.gz T1.nii.gz T2.nii.gz LABEL.nii.gz"
    explanation = (__doc__ or "").split("\n\n", 2)[2].strip()
    return [
        "# Loader: time and memory",
        "",
        f"`python benchmarks/loader.py --case {files} --repeats {n_repeats}`, "
        f"{datetime.date.today()}, torch {torch.__version__}, MONAI {monai.__version__}, "
        f"TorchIO {torchio.__version__}, Python {platform.python_version()}, 1 thread.",
        "",
        *explanation.split("\n"),
    ]


class Page:
    """Lines that are printed as they come."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def add(self, lines: list[str]) -> None:
        """Add lines and print them."""
        print("\n".join(lines), flush=True)
        self.lines += lines


if __name__ == "__main__":
    main()
