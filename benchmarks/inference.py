"""Whole-volume prediction next to MONAI's sliding_window_inference, on a real case.

The network is the default U-Net; the two are timed in turn.

    python benchmarks/inference.py --root <open_ms_data>
    python benchmarks/inference.py --device cuda           a case of noise: see inference_gpu.py

Two volumes: that of the file (MONAI predicts all of it; ours crops to the brain and comes back on
the file's grid), and the brain-cropped one (both predict it). 50 % overlap; MONAI blends by its
gaussian and takes the window batch that is fastest for it. "beyond the network" is the time that
ours takes besides the network's own.

Both start from the same weights, as torch builds them. `predict_volume` lays them out as the CPU
runs them fastest (channels_last_3d), which is part of its work; with --same-layout MONAI is given
weights in the same layout.
"""

import argparse
import copy
import itertools
import resource
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from inference_gpu import compare_on_gpu
from monai.data.utils import compute_importance_map
from monai.inferers import sliding_window_inference

from tversky_seg.data.case import Case
from tversky_seg.data.preprocessing.pipeline import Preprocessing, preprocess
from tversky_seg.data.preprocessing.prepared_case import PreparedCase
from tversky_seg.inference.predict import predict_case
from tversky_seg.inference.sliding_window import SlidingWindow, predict_volume
from tversky_seg.models import UNet3D
from tversky_seg.runtime.devices import pick_device, to_device

MODALITIES = ("FLAIR", "T1", "T2")
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
clock = "wall"


class Timed(torch.nn.Module):
    """A network that adds up the time spent in it."""

    def __init__(self, network: torch.nn.Module) -> None:
        super().__init__()
        self.network, self.seconds, self.n_windows = network, 0.0, 0

    def forward(self, windows: torch.Tensor) -> torch.Tensor:
        """Logits of the network within."""
        start = CLOCKS[clock]()
        logits = self.network(windows)
        self.seconds += CLOCKS[clock]() - start
        self.n_windows += len(windows)
        return logits


def load(root: Path, patient: str) -> PreparedCase:
    folder = root / "cross_sectional" / "MNI" / patient
    images = {name: next(folder.glob(f"{name}[._]*nii.gz")) for name in MODALITIES}
    return preprocess(
        Case(case_id=patient, subject_id=patient, images=images),
        Preprocessing(modalities=MODALITIES),
    )


def on_full_grid(prepared: PreparedCase, image: torch.Tensor) -> torch.Tensor:
    """Put the cropped image back into the volume of the file, on the network's axes."""
    full = torch.zeros(len(image), *prepared.geometry.full_shape)
    box = [
        slice(a, a + n)
        for a, n in zip(prepared.geometry.crop_start, prepared.geometry.shape, strict=True)
    ]
    full[:, *box] = image
    return full


@torch.inference_mode()
def monai(
    network: torch.nn.Module, image: torch.Tensor, side: int, sw_batch_size: int
) -> torch.Tensor:
    network.eval()

    def probability(windows: torch.Tensor) -> torch.Tensor:
        return network(windows).sigmoid()

    return sliding_window_inference(
        image[None], side, sw_batch_size, probability, overlap=0.5, mode="gaussian"
    )[0]


def seconds(call: Callable[[], Any]) -> float:
    start = CLOCKS[clock]()
    call()
    return CLOCKS[clock]() - start


def fastest_batch(predict: Callable[[int], Any], sizes: tuple[int, ...] = (1, 2, 4)) -> int:
    """Choose the window batch that takes least time."""
    return min(sizes, key=lambda size: seconds(lambda: predict(size)))


def compare(
    prepared: PreparedCase, side: int, *, repeats: int, whole_file: bool, same_layout: bool
) -> dict[str, Any]:
    network = Timed(UNet3D(in_channels=len(MODALITIES), out_channels=1).eval())
    theirs = copy.deepcopy(network)
    if same_layout:
        theirs = to_device(theirs, torch.device("cpu"))
    cropped = torch.from_numpy(
        np.multiply(prepared.image, prepared.image_scale[:, None, None, None], dtype=np.float32)
    )
    image = on_full_grid(prepared, cropped) if whole_file else cropped
    sample = cropped[:, : 2 * side, :side, : side // 2 * 3].contiguous()
    theirs_batch = fastest_batch(lambda size: monai(theirs, sample, side, size))
    ours_batch = fastest_batch(
        lambda size: predict_volume(network, sample, patch_size=side, batch_size=size)
    )

    def ours() -> Any:
        if whole_file:
            return predict_case(
                network, prepared, windows=SlidingWindow(side, batch_size=ours_batch)
            )
        return predict_volume(
            network, image, patch_size=side, batch_size=ours_batch, foreground=prepared.foreground
        )

    times: dict[str, list[float]] = {"ours": [], "network": [], "monai": []}
    for _ in range(repeats):
        network.seconds, network.n_windows, theirs.n_windows = 0.0, 0, 0
        times["ours"].append(seconds(ours))
        times["network"].append(network.seconds)
        times["monai"].append(seconds(lambda: monai(theirs, image, side, theirs_batch)))
    best = {name: min(values) for name, values in times.items()}
    to_monai = [ours / monai for ours, monai in zip(times["ours"], times["monai"], strict=True)]
    beyond = [ours / alone - 1 for ours, alone in zip(times["ours"], times["network"], strict=True)]
    return {
        "volume": "as the file" if whole_file else "brain-cropped",
        "window": side,
        "windows ours/MONAI": f"{network.n_windows}/{theirs.n_windows}",
        "batch ours/MONAI": f"{ours_batch}/{theirs_batch}",
        "ours s": f"{best['ours']:.2f}",
        "MONAI s": f"{best['monai']:.2f}",
        "ours/MONAI": f"{median(to_monai):.3f}",
        "beyond the network": f"{median(beyond):.1%}",
    }


def largest_difference(prepared: PreparedCase, side: int) -> float:
    """Compare with MONAI's probability, with MONAI's window weights, on the brain-cropped volume.

    Both networks are laid out alike: convolutions of another layout round differently, by 1e-4 in
    an untrained network.
    """
    network = to_device(
        UNet3D(in_channels=len(MODALITIES), out_channels=1).eval(), torch.device("cpu")
    )
    image = torch.from_numpy(
        np.multiply(prepared.image, prepared.image_scale[:, None, None, None], dtype=np.float32)
    )
    weights = compute_importance_map((side,) * 3, mode="gaussian", sigma_scale=0.125)
    theirs = monai(network, image, side, 1)
    return float(
        (predict_volume(network, image, patch_size=side, window=weights) - theirs).abs().max()
    )


def memory_beside_the_network() -> float:
    """Measure the peak memory of a prediction by a network without any; call it first.

    Returns:
        Memory as a multiple of the output volume.
    """
    image = torch.zeros(1, 400, 400, 400)

    class Nothing(torch.nn.Module):
        def forward(self, windows: torch.Tensor) -> torch.Tensor:
            return windows

    predict_volume(Nothing(), image[:, :64, :64, :64], patch_size=32)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    predict_volume(Nothing(), image, patch_size=32)
    return (
        (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 / (image.numel() * 4)
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--root",
        type=Path,
        help="the open_ms_data folder, for the CPU",
    )
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--seconds", type=float, default=35, help="on CUDA: no row begins later")
    parser.add_argument("--kernels", type=int, default=12, help="on CUDA: how many to list")
    parser.add_argument("--patient", default="patient19")
    parser.add_argument("--sides", type=int, nargs="+", default=[64, 96])
    parser.add_argument(
        "--volumes", nargs="+", choices=["file", "cropped"], default=["file", "cropped"]
    )
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument(
        "--clock", choices=CLOCKS, default="wall", help="cpu: on a busy machine, with --threads 1"
    )
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument(
        "--same-layout", action="store_true", help="lay out MONAI's weights as ours are"
    )
    arguments = parser.parse_args()
    if arguments.device == "cuda":
        compare_on_gpu(
            pick_device("cuda"),
            repeats=arguments.repeats,
            seconds=arguments.seconds,
            n_kernels=arguments.kernels,
        )
        return
    if arguments.root is None or not arguments.root.is_dir():
        print(f"skipped: no data at {arguments.root}; name the open_ms_data folder by --root")
        return
    global clock
    clock = arguments.clock
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    print(f"memory beside the network: {memory_beside_the_network():.2f} x the output volume")
    prepared = load(arguments.root, arguments.patient)
    full, crop = (
        "x".join(map(str, shape))
        for shape in (prepared.geometry.full_shape, prepared.geometry.shape)
    )
    setting = f"torch {torch.__version__}, {arguments.threads} threads, {clock} clock"
    print(f"{setting}, {arguments.patient}: {full}, brain-cropped {crop}")
    for volume, side in itertools.product(arguments.volumes, arguments.sides):
        asked = {"repeats": arguments.repeats, "same_layout": arguments.same_layout}
        row = compare(prepared, side, whole_file=volume == "file", **asked)
        print(", ".join(f"{name} {value}" for name, value in row.items()), flush=True)
    for side in arguments.sides:
        difference = largest_difference(prepared, side)
        print(f"largest difference to MONAI with its weights, window {side}: {difference:.1e}")


if __name__ == "__main__":
    main()
