"""The loader beside MONAI's and TorchIO's: fetch and augment one patch, memory, and what they add to a training step.

    python benchmarks/loader.py --case FLAIR.nii.gz T1.nii.gz T2.nii.gz LABEL.nii.gz [--repeats 30] [--output FILE]

One patient, 3 channels, patches of 96^3, one thread, no workers, everything warm. All rows of a table take turns in one
process; times are those of the processor, which other processes do not lengthen: medians for the fetch (TorchIO: mean,
for its queue is filled now and then), else means. MONAI at its best: CacheDataset with copy_cache=False and cached
indices of the same voxels. Half the patches are drawn for a lesion in each tool. Fetched is a batch of one patch ready
to train on, contiguous, target float32; what MONAI's transform hands over before that is a view, not yet copied.
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
from monai import transforms as mt
from monai.data import CacheDataset
from omegaconf import OmegaConf

from tversky_seg.data.case import Case
from tversky_seg.data.patches.augmentation import Augmentation
from tversky_seg.data.patches.batches import Batch, PatchBatches
from tversky_seg.data.patches.samplers import ForegroundSampler, LesionSampler
from tversky_seg.data.patches.sampling import Aim
from tversky_seg.data.preprocessing.pipeline import Preprocessing, prepare
from tversky_seg.data.preprocessing.prepared_case import PreparedCase
from tversky_seg.losses import TverskyLoss
from tversky_seg.models import UNet3D

SIDE = 96
CHANNELS = ("FLAIR", "T1", "T2")
OFF = {
    f"{name}_probability": 0.0
    for name in ("flip", "rotation", "gamma", "contrast", "scale", "shift", "noise")
}
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
    """Milliseconds of the processor for each job, which take turns; job k is called with k, the first not timed."""
    times: dict[str, list[float]] = {name: [] for name in jobs}
    for turn in range(repeats + 1):
        for name, job in jobs.items():
            start = time.process_time()
            job(turn)
            if turn:
                times[name].append(1e3 * (time.process_time() - start))
    return times


def volume_of(case: PreparedCase) -> dict[str, torch.Tensor]:
    """The whole case as the peers hold it: float32 image and uint8 label."""
    image = torch.from_numpy(case.image * case.image_scale[:, None, None, None])
    return {"image": image, "label": torch.from_numpy(np.array(case.target))}


def as_batch(image: torch.Tensor, label: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """A batch of one patch as a network takes it."""
    return torch.stack([image]), torch.stack([label]).float()


def monai_patches(case: PreparedCase, *, is_batch: bool = True) -> Callable[[int], object]:
    volume = volume_of(case)
    foreground = case.lesion_voxels.astype(np.int64)
    volume |= {
        "foreground": foreground,
        "background": np.setdiff1d(case.foreground_voxels, foreground).astype(np.int64),
    }
    crop = mt.RandCropByPosNegLabeld(
        ["image", "label"],
        "label",
        (SIDE,) * 3,
        pos=1,
        neg=1,
        fg_indices_key="foreground",
        bg_indices_key="background",
    )
    dataset = CacheDataset([volume], mt.Compose([crop]), copy_cache=False, progress=False)
    if not is_batch:
        return lambda _: dataset[0]

    def fetch(_: int) -> object:
        patch = dataset[0][0]
        return as_batch(patch["image"].as_tensor(), patch["label"].as_tensor())

    return fetch


def torchio_patches(case: PreparedCase) -> Callable[[int], object]:
    volume = volume_of(case)
    subject = torchio.Subject(
        image=torchio.ScalarImage(tensor=volume["image"]),
        label=torchio.LabelMap(tensor=volume["label"]),
    )
    sampler = torchio.LabelSampler(SIDE, "label", {0: 0.5, 1: 0.5})
    queue = torchio.Queue(
        torchio.SubjectsDataset([subject]), 8, 8, sampler, num_workers=0, start_background=False
    )

    def fetch(_: int) -> object:
        patch = queue[0]
        return as_batch(patch["image"].data, patch["label"].data)

    return fetch


def our_patches(case: PreparedCase, augmentation: Augmentation | None) -> Callable[[int], object]:
    batches = PatchBatches(
        [case], ForegroundSampler(SIDE, lesion_probability=0.5), augmentation, batch_size=1
    )
    return lambda k: batches[k]


def matched_ours(p: Mapping[str, float]) -> Augmentation:
    named = {
        "tilt": "affine", "bias_field": "bias", "blur": "blur", "low_resolution": "low resolution", "gamma": "gamma",
        "noise": "noise", "flip": "flip",
    }  # fmt: skip
    probabilities = {f"{name}_probability": p.get(kind, 0.0) for name, kind in named.items()}
    return Augmentation(**{**OFF, **probabilities}, rotation_axes=(), gamma=0.4, noise_sd=0.15)


def matched_monai(p: Mapping[str, float]) -> list[Any]:
    def each_channel(make: Callable[[], Any]) -> Any:
        """Channels are changed independently, as in the other tools."""
        transforms = [make() for _ in CHANNELS]
        return mt.Lambdad(
            "image",
            lambda x: torch.stack([t(c[None])[0] for t, c in zip(transforms, x, strict=True)]),
        )

    angle = (np.radians(15),) * 3
    makers: dict[str, Callable[[], Any]] = {
        "bias": lambda: mt.RandBiasField(3, (-0.1, 0.1), prob=p["bias"]),
        "blur": lambda: mt.RandGaussianSmooth((0, 1), (0, 1), (0, 1), prob=p["blur"]),
        "low resolution": lambda: mt.RandSimulateLowResolution(
            p["low resolution"], zoom_range=(0.5, 1.0)
        ),
        "gamma": lambda: mt.RandAdjustContrast(p["gamma"], (0.67, 1.5)),
        "noise": lambda: mt.RandGaussianNoise(p["noise"], std=0.15),
    }
    steps: list[Any] = []
    if p.get("affine"):
        keys, mode = ["image", "label"], ("bilinear", "nearest")
        best = {"spatial_size": (SIDE,) * 3, "cache_grid": True}
        steps.append(
            mt.RandAffined(
                keys, prob=p["affine"], rotate_range=angle, mode=mode, padding_mode="zeros", **best
            )
        )
    if p.get("flip"):
        steps += [mt.RandFlipd(["image", "label"], p["flip"], axis) for axis in range(3)]
    return steps + [each_channel(make) for name, make in makers.items() if p.get(name)]


def matched_torchio(p: Mapping[str, float]) -> Callable[[torchio.Subject], Any]:
    makers: dict[str, Callable[[], Any]] = {
        "bias": lambda: torchio.RandomBiasField(0.1, 3, p=p["bias"]),
        "blur": lambda: torchio.RandomBlur((0, 1), p=p["blur"]),
        "low resolution": lambda: torchio.RandomAnisotropy(
            (0, 1, 2), (1, 2), p=p["low resolution"]
        ),
        "gamma": lambda: torchio.RandomGamma(0.4, p=p["gamma"]),
        "noise": lambda: torchio.RandomNoise(0, (0, 0.15), p=p["noise"]),
    }
    both: list[Any] = []
    if p.get("affine"):
        both.append(torchio.RandomAffine(0, 15, p=p["affine"], default_pad_value=0))
    if p.get("flip"):
        both.append(torchio.RandomFlip((0, 1, 2), flip_probability=p["flip"]))
    each = [make() for name, make in makers.items() if p.get(name)]

    def apply(subject: torchio.Subject) -> Any:
        for transform in both:
            subject = transform(subject)
        for transform in each:  # channels independently
            channels = [
                transform(torchio.ScalarImage(tensor=c[None])).data for c in subject["image"].data
            ]
            subject["image"].set_data(torch.cat(channels))
        return subject

    return apply


def fetch_lines(case: PreparedCase, files: list[Path], *, repeats: int) -> list[str]:
    jobs = {
        "tversky-seg": our_patches(case, None),
        f"MONAI {monai.__version__}": monai_patches(case),
        "MONAI, the view": monai_patches(case, is_batch=False),
        f"TorchIO {torchio.__version__}": torchio_patches(case),
    }
    found = in_turns(jobs, repeats=3 * repeats)
    times = {
        name: (mean if "TorchIO" in name else median)(values) for name, values in found.items()
    }  # a full queue
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


def resident_mib(files: list[Path], tool: str, folder: str) -> tuple[float, float]:
    """Resident and anonymous memory that one more case takes, in a process of its own."""
    code = "from benchmarks.loader import report_memory; import sys; report_memory(sys.argv[1], sys.argv[2], sys.argv[3:])"
    found = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, tool, folder, *map(str, files)],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[1],
    )
    resident, anonymous = json.loads(found.stdout.strip().splitlines()[-1])
    return resident, anonymous


def report_memory(tool: str, folder: str, files: list[str]) -> None:
    """Print what the last of three cases adds, after 24 patches of each."""
    make = {
        "ours": lambda case: our_patches(case, None),
        "monai": monai_patches,
        "torchio": torchio_patches,
    }[tool]
    settings, held, found = Preprocessing(modalities=CHANNELS), [], []
    one = as_case(list(map(Path, files)))
    for case in [
        prepare(one, settings, cache_dir=Path(folder) / str(i)) for i in range(3)
    ]:  # files of their own
        held.append(make(case))
        for k in range(24):
            held[-1](k)
        found.append(memory_mib())
    print(json.dumps(np.subtract(found[2], found[1]).tolist()))


def memory_mib() -> tuple[float, float]:
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    resident, anonymous = (int(status[name].split()[0]) / 1024 for name in ("VmRSS", "RssAnon"))
    return resident, anonymous


def augmentation_lines(case: PreparedCase, *, repeats: int) -> list[str]:
    """Each change alone where it happens every time, then all with their probabilities."""
    lines = [
        "| change of a 96^3 patch with 3 channels | ours ms | MONAI ms | TorchIO ms | fastest peer / ours |",
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
        "Ours reads the patch too, with the margin that a rotation needs; the peers' patch is at hand.",
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
    """Loading in the training process beside a step on a batch held in memory: one waits for the other."""
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
    return f"First batch (2 of 64^3) of 12 cases from a warm cache: {median(seconds[1:]):.1f} s after the start of Python."


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
        head = [
            "# Loader: time and memory",
            "",
            f"`python benchmarks/loader.py --case FLAIR.nii.gz T1.nii.gz T2.nii.gz LABEL.nii.gz --repeats {n}`, "
            f"{datetime.date.today()}, torch {torch.__version__}, "
            f"MONAI {monai.__version__}, TorchIO {torchio.__version__}, Python {platform.python_version()}, 1 thread.",
            "",
            *(__doc__ or "").split("\n\n", 2)[2].strip().split("\n"),
        ]
        sections: dict[str, Callable[[], list[str]]] = {
            "Fetch a patch": lambda: fetch_lines(case, files, repeats=n),
            "Change a patch": lambda: augmentation_lines(case, repeats=n),
            "A training step (default U-Net, batch of two 64^3 patches)": lambda: step_lines(
                case, repeats=n
            ),
            "Start": lambda: [start_line(files)],
        }
        page = shown(head)
        for title, measure in sections.items():
            page += shown(["", f"## {title}", "", *measure()])
    if arguments.output:
        arguments.output.write_text("\n".join(page) + "\n")


def shown(lines: list[str]) -> list[str]:
    print("\n".join(lines), flush=True)
    return lines


if __name__ == "__main__":
    main()
