"""Where a training step on a GPU makes the host wait, found out on a machine without one.

    python benchmarks/device_waits.py [--loss tversky] [--lesion_term none] [--weighting none]
        [--augmentation default] [--model unet3d] [--ema 0.999] [--precision fp32] [--predict]
    python benchmarks/device_waits.py --every OUTPUT.json

`Trainer.fit` trains for a few steps on synthetic cases, on a device that does not exist
(fake_device.py). Printed are waits of the host, copies and mixtures of devices, by file and line,
for a step in the middle: neither the first, which builds things, nor one that is logged or saved.
Every change that the augmentation knows is made in every patch. The last line is
`waits a step: N`; 0 lets the host run ahead of the GPU. A pageable copy waits, too. With --predict,
two volumes are predicted as well, by few and by many windows: the difference is what a window
waits. --every writes the events of each kind of training and of a prediction, for the tests.
"""

import argparse
import json
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any
from unittest import mock

import fake_device
import numpy as np
import torch
from fake_cuda import on_fake_device, stand_in_for_cuda
from fake_device import Event

N_STEPS = 5
# The first one builds what later ones reuse, the last two load nothing more, and all is saved.
STEADY_STEPS = range(2, 4)
SMALL_NETWORK = ("model.width=4", "model.n_levels=2")
# Of the tests: what a training can be made of.
TRAININGS = {
    "default": (),
    "workers": ("trainer.n_workers=2",),
    "no augmentation": ("augmentation=none",),
    "light augmentation": ("augmentation=light",),
    "strong augmentation": ("augmentation=strong",),
    "growth augmentation": ("augmentation=growth",),
    "turns alone": ("augmentation=hashemi2018",),
    "weights": ("weighting=inverse", "trainer.ema_decay=0.99", "trainer.accumulate=2"),
    "blob loss": ("loss=blob",),
    "cells": ("lesion_term=cc",),
    "largest probability": ("lesion_term=mil",),
    "blob term": ("lesion_term=blob",),
}
WINDOW = 16
# With half overlap: 2 windows and 3 windows along each axis.
N_WINDOWS = {24: 8, 32: 27}


@contextmanager
def fake_trainer_device() -> Iterator[None]:
    """Make trainers choose the fake device."""
    device = fake_device.DEVICE
    with (
        on_fake_device(),
        mock.patch("tversky_seg.training.trainer.pick_device", return_value=device),
        # Such as that of the profiler, which does not know the device.
        warnings.catch_warnings(action="ignore"),
    ):
        yield


def events_of_training(settings: Sequence[str]) -> list[Event]:
    """Train for a few steps, and return what happened in those in the middle.

    Args:
        settings: Words of `python train.py`, such as "loss=blob".
    """
    from tversky_seg import config
    from tversky_seg.data.patches.batches import PatchBatches
    from tversky_seg.data.preprocessing.lesion_cells import with_cells
    from tversky_seg.training.trainer import Trainer

    cfg = compose(settings)
    changes = cfg.augmentation
    for key, value in changes.items():
        # Channels are dropped now and then: never all of them.
        if key.endswith("_probability") and value and not key.startswith("dropout"):
            changes[key] = 1.0
    weighting = config.build(cfg, "weighting")
    lesion_term = config.build(cfg, "lesion_term")
    cases = [synthetic_case(seed) for seed in range(2)]
    batches = PatchBatches(
        with_cells(cases, max_distance_mm=5.0),
        config.build(cfg, "sampler"),
        config.build(cfg, "augmentation"),
        batch_size=2,
        with_components=weighting is not None or lesion_term is not None,
        with_cells=getattr(lesion_term, "max_distance_mm", None) is not None,
    )
    train_step = Trainer.train_step

    def numbered_step(trainer: Trainer, step: int, *arguments: Any) -> Any:
        fake_device.SEEN.step = step
        return train_step(trainer, step, *arguments)

    with fake_trainer_device(), mock.patch.object(Trainer, "train_step", numbered_step):
        trainer = config.build(
            cfg,
            "trainer",
            model=config.build(cfg, "model", in_channels=3, out_channels=1),
            loss=config.build(cfg, "loss"),
            lesion_term=lesion_term,
            weighting=weighting,
            optimizer=config.build(cfg, "optimizer"),
            schedule=config.build(cfg, "schedule"),
        )
        with tempfile.TemporaryDirectory() as folder:
            trainer.fit(batches, Path(folder))
    return [event for event in fake_device.SEEN.events if event.step in STEADY_STEPS]


def events_of_prediction(side: int) -> list[Event]:
    """Predict a volume on the fake device, two windows at once, and return what happened."""
    from tversky_seg.inference.sliding_window import predict_volume
    from tversky_seg.models import UNet3D

    network = UNet3D(in_channels=3, out_channels=1, width=4, n_levels=2)
    volume = np.random.default_rng(0).integers(-3000, 3000, (3, side, side, side), dtype=np.int16)
    with on_fake_device() as seen:
        network.to(fake_device.DEVICE)
        seen.events.clear()
        predict_volume(
            network,
            volume,
            patch_size=WINDOW,
            batch_size=2,
            image_scale=np.full(3, 1e-3),
            device=fake_device.DEVICE,
        )
    return list(seen.events)


def events_of_known_waits() -> list[Event]:
    """Do what has to be seen: one wait, copy or mixture after the other."""
    with on_fake_device() as seen:
        host = torch.arange(8.0)
        values = host.to(fake_device.DEVICE)
        values.sum().item()
        values[values > 3]
        values.to("cpu")
        torch.tensor([1.0, 2.0], device=fake_device.DEVICE)
        values + host
        host.pin_memory().to(fake_device.DEVICE, non_blocking=True)
    return list(seen.events)


def compose(settings: Sequence[str]) -> Any:
    """Compose the configuration of a short training."""
    from hydra import compose, initialize_config_dir

    from tversky_seg.config.config_files import CONFIG_DIR

    short = [f"trainer.max_steps={N_STEPS}", "trainer.log_every=100", "trainer.device=cuda"]
    # A CUDA graph replays what an eager step does.
    short += ["trainer.n_workers=0", "trainer.precision=fp32", "trainer.cuda_graph=false"]
    with initialize_config_dir(str(CONFIG_DIR), version_base=None):
        return compose("train", overrides=[*short, *settings])


def synthetic_case(seed: int) -> Any:
    """Make a case in memory: noise, small lesions, a brain that is everything."""
    from tversky_seg.data.grids import Geometry
    from tversky_seg.data.preprocessing.labels import list_lesions
    from tversky_seg.data.preprocessing.prepared_case import PreparedCase

    shape = (40, 36, 32)
    rng = np.random.default_rng(seed)
    image = rng.integers(-3000, 3000, (3, *shape), dtype=np.int16)
    target = np.zeros((1, *shape), bool)
    target[0, 5:8, 5:8, 5:8] = True
    target[0, 30, 30, 20] = True
    lesions, n_lesions = list_lesions(target)
    return PreparedCase(
        case_id=f"case{seed}",
        subject_id=f"case{seed}",
        geometry=Geometry(shape, np.eye(4), shape, np.eye(4), (0, 0, 0), shape),
        image_scale=np.full(3, 1e-3, np.float32),
        n_lesions=n_lesions,
        arrays={
            "image": image,
            "foreground_voxels": np.arange(image[0].size, dtype=np.int32),
            **lesions,
        },
    )


def print_table(events: Sequence[Event], *, per: int) -> None:
    """Print what happened, the most frequent first.

    Args:
        events: Of `per` steps.
        per: Number to divide by.
    """
    print("| kind | operation | where | times | bytes |")
    print("|---|---|---|---|---|")
    n_bytes: Counter[tuple[str, str, str]] = Counter()
    times: Counter[tuple[str, str, str]] = Counter()
    for event in events:
        key = (event.kind, event.operation, event.place)
        times[key] += 1
        n_bytes[key] += event.n_bytes
    # Waits before copies that do not wait.
    order = sorted(times, key=lambda key: (key[0] == fake_device.PINNED, -times[key]))
    for key in order:
        print(f"| {' | '.join(key)} | {times[key] / per:.3g} | {n_bytes[key] / per:,.0f} |")
    print()


def n_waits(events: Sequence[Event]) -> int:
    """Count the waits of the host."""
    return sum(event.is_wait for event in events)


def settings_of(options: argparse.Namespace) -> list[str]:
    """Turn the options into words of `python train.py`."""
    settings = [f"sampler.patch_size={options.side}", f"trainer.precision={options.precision}"]
    for group in ("loss", "lesion_term", "weighting", "augmentation", "model"):
        settings.append(f"{group}={getattr(options, group)}")
    if options.ema is not None:
        settings.append(f"trainer.ema_decay={options.ema}")
    return settings


def write_every(path: Path) -> None:
    """Write the events of each training and of both predictions as JSON."""
    events = {"known waits": events_of_known_waits()}
    for name, settings in TRAININGS.items():
        small = ("augmentation=default", "sampler.patch_size=16", *SMALL_NETWORK)
        # Later words win, but a group may be named once.
        groups = {word.split("=")[0]: word for word in (*small, *settings)}
        events[name] = events_of_training(list(groups.values()))
    for side, n_windows in N_WINDOWS.items():
        events[f"{n_windows} windows"] = events_of_prediction(side)
    plain = {name: [asdict(event) for event in found] for name, found in events.items()}
    path.write_text(json.dumps(plain), encoding="utf-8")


def read_options() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for group, choice in (
        ("loss", "tversky"),
        ("lesion_term", "none"),
        ("weighting", "none"),
        ("augmentation", "default"),
        ("model", "unet3d"),
    ):
        parser.add_argument(f"--{group}", default=choice, help=f"as in configs/{group} ({choice})")
    parser.add_argument("--ema", type=float, help="decay of a moving average of the weights")
    parser.add_argument("--precision", default="fp32", help="fp32, tf32, bf16 or fp16 (fp32)")
    parser.add_argument("--side", type=int, default=32, help="side of a patch in voxels (32)")
    parser.add_argument("--predict", action="store_true", help="predict two volumes as well")
    parser.add_argument("--every", type=Path, metavar="OUTPUT.json", help="write all, as JSON")
    return parser.parse_args()


def main() -> None:
    """Show where a step waits, and a prediction if it is asked for."""
    options = read_options()
    stand_in_for_cuda()
    if options.every:
        write_every(options.every)
        return
    if options.predict:
        waits = []
        for side, n_windows in N_WINDOWS.items():
            events = events_of_prediction(side)
            waits.append(n_waits(events))
            print(f"Prediction by {n_windows} windows:\n")
            print_table(events, per=1)
        few, many = N_WINDOWS.values()
        a_window = (waits[1] - waits[0]) / (many - few)
        print(f"waits a case: {waits[0]}, of them for each window: {a_window:.3g}\n")
    n_steps = len(STEADY_STEPS)
    events = events_of_training(settings_of(options))
    print("A training step:\n")
    print_table(events, per=n_steps)
    n_operations = sum(fake_device.SEEN.n_operations[step] for step in STEADY_STEPS)
    print(f"operations a step, where kernels do not join them: {n_operations / n_steps:.0f}")
    print(f"waits a step: {n_waits(events) / n_steps:.3g}")


if __name__ == "__main__":
    main()
