"""Time and memory of a training step, next to MONAI's DynUNet of the same widths.

    python benchmarks/training_step.py [--side 128] [--only bf16,peer] [--seconds 150]

Ours is `Trainer.train_step`: Tversky loss, clipping, AdamW. The peer's loop is that of MONAI's
acceleration guide: DiceCE loss, autocast to bf16, fused AdamW, cudnn.benchmark, no clipping, and
the loss is never read. Batches lie on the device: loading is not measured here.

On a GPU a time is the median gap between CUDA events after each step, while the host runs ahead as
far as it can; "host" is the time until the host has launched a step on an idle GPU. Memory is the
peak that tensors take in these steps (what a CUDA graph keeps inside is not seen), what torch takes
from the GPU for it, and the plan of `check_data` (step_bytes). A row that fails says so, and the
others are measured. After its row come the kernels of one row (--kernels) by their time.
"""

import argparse
import gc
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import date
from itertools import count
from statistics import median

import torch
from torch import nn

from tversky_seg.data.patches.batch import Batch
from tversky_seg.data_check.memory import GIB, step_bytes
from tversky_seg.losses import TverskyLoss
from tversky_seg.models import FCDenseNet3D, UNet3D
from tversky_seg.runtime.devices import pick_device
from tversky_seg.training.trainer import Trainer

Step = Callable[[], object]

N_CHANNELS = 3
N_WARM_UP_STEPS = 4
N_KERNELS = 25
COLUMNS = "step | ms | patches/s | host ms | peak GiB | reserved GiB | planned GiB | ready after s"
HEADER = f"| {COLUMNS} |\n|---|---|---|---|---|---|---|---|"

NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "UNet3D": lambda: UNet3D(in_channels=N_CHANNELS, out_channels=1),
    "UNet3D norm=batch": lambda: UNet3D(in_channels=N_CHANNELS, out_channels=1, norm="batch"),
    "UNet3D width=32": lambda: UNet3D(in_channels=N_CHANNELS, out_channels=1, width=32),
    "FCDenseNet3D": lambda: FCDenseNet3D(in_channels=N_CHANNELS, out_channels=1),
    "MONAI DynUNet": lambda: dynunet(),
}


@dataclass(frozen=True)
class Row:
    """One row of the table; sides and patches of None are those of the command line."""

    network: str = "UNet3D"
    precision: str = "bf16"
    compile: bool = False
    graph: bool = True
    channels_last: bool = False
    deterministic: bool = False
    n_patches: int = 2
    side: int | None = None

    @property
    def is_peer(self) -> bool:
        """Whether the step is that of MONAI's guide."""
        return self.network == "MONAI DynUNet"

    @property
    def shape(self) -> tuple[int, int, int, int, int]:
        """(B, C, X, Y, Z) of a batch."""
        assert self.side is not None
        return (self.n_patches, N_CHANNELS, self.side, self.side, self.side)

    def __str__(self) -> str:
        """Say what is measured, in the first column of the table."""
        words = [self.network, self.precision]
        words += ["compiled"] if self.compile else []
        words += ["channels_last_3d"] if self.channels_last else []
        words += [] if self.graph or self.compile or self.is_peer else ["without graph"]
        words += ["deterministic"] if self.deterministic else []
        return f"{' '.join(words)}, {self.n_patches} x {self.side}^3"


# By importance: a run that is cut off has the first ones. Ours and the peer's take turns.
ROWS = {
    "bf16": Row(),
    "peer": Row("MONAI DynUNet"),
    "bf16-compiled": Row(compile=True),
    "small": Row(n_patches=4, side=32),
    "dense": Row("FCDenseNet3D"),
    "peer-compiled": Row("MONAI DynUNet", compile=True),
    "eager": Row(graph=False),
    "peer-small": Row("MONAI DynUNet", n_patches=4, side=32),
    "small-eager": Row(n_patches=4, side=32, graph=False),
    "fp32": Row(precision="fp32"),
    "tf32": Row(precision="tf32"),
    "wide": Row("UNet3D width=32"),
    "batch": Row("UNet3D norm=batch"),
    "deterministic": Row(deterministic=True),
    "peer-last": Row("MONAI DynUNet", channels_last=True),
    "peer-compiled-last": Row("MONAI DynUNet", compile=True, channels_last=True),
}


def dynunet() -> nn.Module:
    """Make MONAI's nearest network: widths 16 to 128, instance norm."""
    from monai.networks.nets import DynUNet

    return DynUNet(
        spatial_dims=3,
        in_channels=N_CHANNELS,
        out_channels=1,
        kernel_size=[3, 3, 3, 3],
        strides=[1, 2, 2, 2],
        upsample_kernel_size=[2, 2, 2],
        filters=[16, 32, 64, 128],
        norm_name=("INSTANCE", {"affine": True}),
    )


def make_step(row: Row, device: torch.device) -> Step:
    """Build the network of a row and return one step of its training."""
    torch.manual_seed(0)
    network = NETWORKS[row.network]()
    batch = make_batch(row, device)
    if row.is_peer:
        return peer_step(row, network, batch)
    return our_step(row, network, batch)


def our_step(row: Row, network: nn.Module, batch: Batch) -> Step:
    """Return the step of `Trainer`, as `fit` would prepare it."""
    trainer = Trainer(
        model=network,
        loss=TverskyLoss(),
        precision=row.precision,
        device=batch.image.device.type,
        compile=row.compile,
        cuda_graph="auto" if row.graph else False,
        deterministic=row.deterministic,
    )
    trainer.network = trainer._prepare_network()
    trainer.use_graph(batch)
    step_numbers = count(1)
    return lambda: trainer.train_step(next(step_numbers), batch)


def peer_step(row: Row, network: nn.Module, batch: Batch) -> Step:
    """Return the step of MONAI's acceleration guide."""
    from monai.losses import DiceCELoss

    device = batch.image.device
    image = batch.image
    network = network.to(device)
    if row.channels_last:
        network.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
        image = image.contiguous(memory_format=torch.channels_last_3d)
    torch.backends.cudnn.benchmark = True
    optimizer = torch.optim.AdamW(network.parameters(), fused=True)
    loss = DiceCELoss(sigmoid=True)
    forward = torch.compile(network) if row.compile else network
    is_bf16 = row.precision == "bf16"

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=is_bf16):
            value = loss(forward(image), batch.target)
        value.backward()
        optimizer.step()

    return step


def make_batch(row: Row, device: torch.device) -> Batch:
    """Draw patches with 1 % of lesion voxels, on the device."""
    torch.manual_seed(0)
    image = torch.randn(*row.shape, device=device)
    target = (torch.rand_like(image[:, :1]) > 0.99).float()
    return Batch(
        image=image,
        target=target,
        components=None,
        case_ids=["synthetic"] * row.n_patches,
        starts=[[0, 0, 0]] * row.n_patches,
    )


@contextmanager
def flags_put_back() -> Iterator[None]:
    """Undo what a row sets for the whole process; TF32 is set anew by each trainer."""
    cudnn = torch.backends.cudnn
    kept = (cudnn.benchmark, cudnn.deterministic)
    try:
        yield
    finally:
        cudnn.benchmark, cudnn.deterministic = kept
        torch.use_deterministic_algorithms(False)


def step_ms(step: Step, *, n_steps: int, is_cuda: bool) -> float:
    """Measure the median time of a step in milliseconds, without waiting between steps."""
    if not is_cuda:
        return median(host_ms(step, n_steps=n_steps, is_cuda=False))
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(n_steps + 1)]
    marks[0].record()
    for mark in marks[1:]:
        step()
        mark.record()
    torch.cuda.synchronize()
    gaps = [marks[i].elapsed_time(marks[i + 1]) for i in range(n_steps)]
    return median(gaps)


def host_ms(step: Step, *, n_steps: int, is_cuda: bool) -> list[float]:
    """Measure how long the host is busy with each step that finds the device idle."""
    times = []
    for _ in range(n_steps):
        if is_cuda:
            torch.cuda.synchronize()
        start = time.perf_counter()
        step()
        times.append(1e3 * (time.perf_counter() - start))
    return times


def measure(row: Row, *, n_steps: int, device: torch.device) -> str:
    """Measure one row and format it."""
    is_cuda = device.type == "cuda"
    start = time.perf_counter()
    step = make_step(row, device)
    for _ in range(N_WARM_UP_STEPS):
        step()
    memory = ["-", "-"]
    if is_cuda:
        # Without what cuDNN's trials took.
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        step()
    ready_s = time.perf_counter() - start
    step_time = step_ms(step, n_steps=n_steps, is_cuda=is_cuda)
    if is_cuda:
        peaks = (torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved())
        memory = [f"{peak / GIB:.2f}" for peak in peaks]
    host_time = median(host_ms(step, n_steps=min(n_steps, 5), is_cuda=is_cuda))
    patches_per_s = 1e3 * row.n_patches / step_time
    cells = [f"{step_time:.2f}", f"{patches_per_s:.1f}", f"{host_time:.2f}"]
    cells += [*memory, planned_gib(row), f"{ready_s:.0f}"]
    return f"| {row} | {' | '.join(cells)} |"


def planned_gib(row: Row) -> str:
    """Say how much memory `check_data` plans for a step of ours."""
    if row.is_peer:
        return "-"
    network = NETWORKS[row.network]()
    planned = step_bytes(network, row.shape, precision=row.precision, device="cuda")
    return f"{planned / GIB:.2f}"


def print_kernels(row: Row, device: torch.device) -> None:
    """Print the kernels of one step by the time that they take."""
    from torch.autograd import DeviceType
    from torch.profiler import ProfilerActivity, profile

    n_steps = 3
    step = make_step(row, device)
    for _ in range(N_WARM_UP_STEPS):
        step()
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        for _ in range(n_steps):
            step()
        torch.cuda.synchronize()
    averages = profiler.key_averages()
    kernels = []
    for event in averages:
        # A named range, such as that of the optimizer, covers kernels that are listed themselves.
        if event.device_type == DeviceType.CUDA and not event.is_user_annotation:
            kernels.append(event)
    kernels.sort(key=lambda event: event.self_device_time_total, reverse=True)
    total_ms = sum(event.self_device_time_total for event in kernels) / n_steps / 1e3
    n_launches = sum(event.count for event in kernels) / n_steps
    print(f"\nKernels of {row}: {total_ms:.2f} ms in {n_launches:.0f} launches a step\n")
    print("| kernel | ms a step | launches a step |")
    print("|---|---|---|")
    for event in kernels[:N_KERNELS]:
        ms = event.self_device_time_total / n_steps / 1e3
        name = event.key[:100].replace("|", "/")
        print(f"| `{name}` | {ms:.3f} | {event.count / n_steps:.0f} |")
    print(flush=True)


def chosen_rows(options: argparse.Namespace) -> dict[str, Row]:
    """Return the rows that are asked for, with the sides and patches of the command line."""
    names = list(ROWS)
    if options.only:
        names = options.only.split(",")
    elif not torch.cuda.is_available():
        # To compile takes minutes on a CPU.
        names = [name for name in names if not ROWS[name].compile]
    unknown = [name for name in names if name not in ROWS]
    if unknown:
        raise SystemExit(f"error: --only takes {', '.join(ROWS)}, got {', '.join(unknown)}")
    rows = {}
    for name in names:
        row = ROWS[name]
        side = min(row.side or options.side, options.side)
        rows[name] = replace(row, side=side)
    return rows


def describe_machine(device: torch.device) -> str:
    """Say what the figures were measured on: card, versions, commit, date."""
    name = "CPU"
    if device.type == "cuda":
        name = f"{torch.cuda.get_device_name(device)}, cuDNN {torch.backends.cudnn.version()}"
    command = ["git", "rev-parse", "--short", "HEAD"]
    git = subprocess.run(command, capture_output=True, text=True, check=False)
    commit = os.environ.get("COMMIT", git.stdout.strip() or "unknown")
    return f"{name}, torch {torch.__version__}, commit {commit}, {date.today()}"


def one_line(error: Exception) -> str:
    """Say what went wrong, for a cell of the table."""
    text = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {text[0][:150]}".replace("|", "/")


def read_options() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--side", type=int, default=32, help="side of a patch in voxels (32)")
    parser.add_argument("--steps", type=int, default=15, help="steps to take the median of (15)")
    parser.add_argument("--only", default="", help=f"rows: {','.join(ROWS)}")
    parser.add_argument("--kernels", default="bf16", help="row whose kernels to list, or none")
    parser.add_argument("--seconds", type=float, default=1e9, help="start no row after this time")
    return parser.parse_args()


def main() -> None:
    """Measure every row that is asked for, and list the kernels of one."""
    start = time.perf_counter()
    options = read_options()
    rows = chosen_rows(options)
    device = pick_device("auto")
    print(f"{describe_machine(device)}\n")
    print(HEADER)
    for name, row in rows.items():
        if time.perf_counter() - start > options.seconds:
            print(f"| {row} | left out: time is over | | | | | | |", flush=True)
            continue
        try_measure(row, n_steps=options.steps, device=device)
        # Right after its row: the kernels matter more than the rows further down.
        if name == options.kernels and device.type == "cuda":
            try_print_kernels(row, device)
            print(HEADER)


def try_measure(row: Row, *, n_steps: int, device: torch.device) -> None:
    """Print the line of a row, or what went wrong: the others are measured all the same."""
    try:
        with flags_put_back():
            print(measure(row, n_steps=n_steps, device=device), flush=True)
    except Exception as error:
        print(f"| {row} | {one_line(error)} | | | | | | |", flush=True)
    forget_networks(device)


def try_print_kernels(row: Row, device: torch.device) -> None:
    """Print the kernels of a row, or what went wrong."""
    try:
        with flags_put_back():
            print_kernels(row, device)
    except Exception as error:
        print(f"\nNo kernels of {row}: {one_line(error)}\n")
    forget_networks(device)


def forget_networks(device: torch.device) -> None:
    """Free what a row has left, for the next one."""
    torch.compiler.reset()
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
