"""What a training will cost, and which patch and batch fit: disk, memory, patches until every lesion was drawn."""

import math
import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn
from torch.func import functional_call

from tversky_seg.data.patches.paper_samplers import Shirokikh2020Sampler
from tversky_seg.data.patches.samplers import (
    ForegroundSampler,
    LesionSampler,
    SizeTemperedSampler,
)
from tversky_seg.data.preprocessing.prepared_case import PreparedCase

GIB = 2**30
KEEP_FREE = 0.2  # of the memory at hand
COPIES_IN_LOADER = 4  # of a patch while it is read and augmented
PREFETCHED = 2  # batches that a loader worker holds ready
LARGEST_BATCH = 8
LONGEST = {"cuda": 128, "cpu": 64}  # voxels along the finest axis; more costs a CPU minutes a step
MULTIPLE = 16  # of which patch sides are: the strides of the networks


def lesion_shares(sampler: Any, cases: Sequence[PreparedCase]) -> NDArray[np.float64] | None:
    """Probability that one patch is drawn for each lesion, case by case: exact, by the rule of the sampler.

    None where the sampler aims at no lesion (uniform, grid), or refuses patches by what they hold (hashemi2018).
    Lesions that lie in a patch drawn for another are not counted, so these are the least chances that lesions have.

    Args:
        sampler: As trained with.
        cases: The training cases; of their arrays only `lesion_offsets` is looked at.
    """
    sizes = [
        np.diff(case.lesion_offsets).astype(np.float64) for case in cases if any(case.n_lesions)
    ]
    n_lesions = sum(map(len, sizes))
    if not sizes:
        return np.zeros(0)
    match sampler:
        case LesionSampler():
            shares = [np.full(len(of_case), 1 / len(of_case) / len(sizes)) for of_case in sizes]
        case SizeTemperedSampler():
            tempered = [of_case**sampler.power for of_case in sizes]
            shares = [chances / chances.sum() / len(sizes) for chances in tempered]
        case ForegroundSampler():
            shares = [of_case / of_case.sum() / len(cases) for of_case in sizes]
        case Shirokikh2020Sampler():
            shares = [np.full(n_lesions, 1 / n_lesions)]
        case _:
            return None
    return np.concatenate(shares) * float(sampler.lesion_probability)


def expected_draws(shares: ArrayLike) -> float:
    """Mean number of draws until each item was drawn once: the coupon collector's problem with unequal shares.

    E = integral over t from 0 to infinity of 1 - prod_i (1 - exp(-p_i t)) (Flajolet, Gardy and Thimonier 1992,
    doi 10.1016/0166-218X(92)90177-C, eq. 14a). Infinite where an item is never drawn; 0 without items.

    Args:
        shares: (n,) probability of each item in one draw; they may add up to less than 1.
    """
    p, counts = np.unique(np.asarray(shares, dtype=np.float64), return_counts=True)
    if not p.size or p[0] <= 0:
        return math.inf if p.size else 0.0
    t = np.concatenate([[0.0], np.geomspace(1e-6 / p[-1], 50 / p[0], 20_000)])
    return float(np.trapezoid(1 - _all_seen(p, counts, t), t))


def draws_for_all(shares: ArrayLike, *, probability: float = 0.95) -> float:
    """Draws after which all items were drawn with this probability (each on its own Poisson clock)."""
    p, counts = np.unique(np.asarray(shares, dtype=np.float64), return_counts=True)
    if not p.size or p[0] <= 0:
        return math.inf if p.size else 0.0
    t = np.geomspace(1e-3 / p[-1], 50 / p[0], 20_000)
    return float(t[np.searchsorted(_all_seen(p, counts, t), probability)])


def _all_seen(
    p: NDArray[np.float64], counts: NDArray[np.int64], t: NDArray[np.float64]
) -> NDArray[np.float64]:
    with np.errstate(divide="ignore"):
        logs = sum(n * np.log1p(-np.exp(-share * t)) for share, n in zip(p, counts, strict=True))
    return np.exp(np.asarray(logs, dtype=np.float64))


def step_bytes(network: nn.Module, shape: Sequence[int], *, precision: str = "fp32") -> int:
    """Memory that one optimiser step takes beside program and libraries: an estimate, made without computing anything.

    What autograd keeps for the backward pass is counted exactly on torch's meta device; to it come weights, gradients
    and Adam's two moments, and room for the gradients on their way and for a convolution's workspace (three of the
    largest tensors kept).

    Args:
        network: (B, C, X, Y, Z) -> logits.
        shape: (B, C, X, Y, Z) of a batch.
        precision: "fp32", or "bf16" or "fp16", in which activations take half.
    """
    state = {name: tensor.detach().to("meta") for name, tensor in network.state_dict().items()}
    parameters = {name for name, _ in network.named_parameters()}
    for name in parameters & state.keys():
        state[name].requires_grad_()
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage()._cdata] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        logits = functional_call(
            network, state, torch.empty(*shape, device="meta"), tie_weights=False
        )
    own = {tensor.untyped_storage()._cdata for tensor in state.values()}
    sizes = [
        tensor.untyped_storage().nbytes() for storage, tensor in kept.items() if storage not in own
    ]
    activations = sum(sizes) + 3 * max(sizes, default=0) + 4 * logits.untyped_storage().nbytes()
    weights = sum(state[name].untyped_storage().nbytes() for name in parameters & state.keys())
    return int(activations * (1.0 if precision == "fp32" else 0.5) + 4 * weights)


def loader_bytes(shape: Sequence[int], *, n_classes: int) -> int:
    """Memory of a loader worker beside program and libraries: batches held ready, and a patch in the making.

    Args:
        shape: (B, C, X, Y, Z) of a batch.
        n_classes: K.
    """
    patch = math.prod(shape[2:]) * 4 * (shape[1] + 2 * n_classes)
    return patch * (PREFETCHED * shape[0] + shape[0] + COPIES_IN_LOADER)


def memory_at_hand(device: torch.device) -> int:
    """Free bytes on a device: of the GPU, or of this machine or the container that this process runs in."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free)
    return min(_free_of_machine(), _free_of_container())


def _free_of_machine() -> int:
    with suppress(OSError, ValueError, IndexError):
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    with suppress(OSError, ValueError, AttributeError):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    return 8 * GIB


def _free_of_container() -> int:
    """What the control group (v2) leaves, with the file cache that it would give up."""
    group = Path("/sys/fs/cgroup")
    with suppress(OSError, ValueError, KeyError):
        limit = int((group / "memory.max").read_text())
        facts = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        used = (
            int((group / "memory.current").read_text())
            - int(facts["inactive_file"])
            - int(facts["active_file"])
        )
        return max(limit - used, 0)
    return 2**63


@dataclass(frozen=True)
class Plan:
    """Settings that suit a cohort and a machine.

    Attributes:
        spacing_mm: Voxel size to work at, along R, A, S.
        patch_size: Sides of a patch in voxels.
        batch_size: Patches in a batch.
        n_workers: Loader processes.
        step_bytes: Memory of a step with these.
        memory_bytes: What is free on the device.
        device: "cuda" or "cpu".
        reasons: One sentence for each choice.
    """

    spacing_mm: tuple[float, float, float]
    patch_size: tuple[int, int, int]
    batch_size: int
    n_workers: int
    step_bytes: int
    memory_bytes: int
    device: str
    reasons: tuple[str, ...]

    @property
    def words(self) -> dict[str, str]:
        """As settings of the command line."""
        return {
            "data.spacing_mm": _listed(self.spacing_mm),
            "sampler.patch_size": _listed(self.patch_size),
            "trainer.batch_size": str(self.batch_size),
            "trainer.n_workers": str(self.n_workers),
        }


def make_plan(
    network: nn.Module,
    *,
    spacing_mm: tuple[float, float, float],
    shape: Sequence[int],
    n_channels: int,
    device: torch.device,
    precision: str = "fp32",
    memory_bytes: int | None = None,
    n_cores: int = 1,
) -> Plan:
    """Choose patch, batch and loaders: a patch that is cubic in mm and as large as memory lets two of them be.

    Sides are multiples of 16 and no longer than the volumes need; 128 voxels along the finest axis on a GPU, 64 on a
    CPU, where a step with larger patches takes minutes. While two patches do not fit in four fifths of the free memory
    the longest side shrinks; then the batch grows to 8 at most (2 on a CPU).

    Args:
        network: To train.
        spacing_mm: Voxel size to work at.
        shape: Voxels that the network sees of most cases.
        n_channels: Modalities.
        device: To train on.
        precision: Of the forward pass.
        memory_bytes: To plan with; None: what is free.
        n_cores: For loaders.
    """
    free = memory_at_hand(device) if memory_bytes is None else memory_bytes
    room = int(free * (1 - KEEP_FREE))
    sides = _sides(spacing_mm, shape, longest=LONGEST[device.type])
    wanted = sides
    while (need := _need(network, 2, n_channels, sides, precision)) > room and max(
        sides
    ) > MULTIPLE:
        sides = _smaller(sides, spacing_mm)
    batch_size = 1 if need > room else 2
    largest = LARGEST_BATCH if device.type == "cuda" else 2
    while (
        batch_size < largest
        and _need(network, 2 * batch_size, n_channels, sides, precision) <= room
    ):
        batch_size *= 2
    return Plan(
        spacing_mm=spacing_mm,
        patch_size=sides,
        batch_size=batch_size,
        n_workers=min(max(n_cores - 1, 0), 2 if device.type == "cpu" else 8),
        step_bytes=_need(network, batch_size, n_channels, sides, precision),
        memory_bytes=free,
        device=device.type,
        reasons=tuple(_reasons(sides, wanted, batch_size, spacing_mm, shape, device.type)),
    )


def _sides(
    spacing_mm: Sequence[float], shape: Sequence[int], *, longest: int
) -> tuple[int, int, int]:
    """As many mm each way, but no more than the volumes need; multiples of 4 along an axis of thick slices."""
    sides = []
    for size, n in zip(spacing_mm, shape, strict=True):
        wanted = longest * min(spacing_mm) / size
        multiple = MULTIPLE if min(wanted, n) >= MULTIPLE else 4
        sides.append(min(max(round(wanted / multiple), 1), math.ceil(n / multiple)) * multiple)
    return sides[0], sides[1], sides[2]


def _smaller(sides: tuple[int, int, int], spacing_mm: Sequence[float]) -> tuple[int, int, int]:
    """The side that is longest in mm, of those above 16 voxels, one multiple shorter."""
    axis = max((i for i in range(3) if sides[i] > MULTIPLE), key=lambda i: sides[i] * spacing_mm[i])
    shorter = [n - MULTIPLE * (i == axis) for i, n in enumerate(sides)]
    return shorter[0], shorter[1], shorter[2]


def _need(
    network: nn.Module, batch: int, n_channels: int, sides: Sequence[int], precision: str
) -> int:
    return step_bytes(network, (batch, n_channels, *sides), precision=precision)


def _reasons(
    sides: Sequence[int], wanted: Sequence[int], batch_size: int, spacing_mm: Sequence[float], shape: Sequence[int],
    device: str,
) -> Iterator[str]:  # fmt: skip
    yield f"voxels of {times(spacing_mm)} mm: the median of the cases as they are prepared"
    extent = times([round(n * size) for n, size in zip(sides, spacing_mm, strict=True)])
    limit = "two larger ones do not fit in memory" if tuple(sides) != tuple(wanted) else (
        "the volumes are no larger" if any(side >= n for side, n in zip(sides, shape, strict=True))
        else "larger ones take long on a CPU" if device == "cpu" else "lesions seldom need more surroundings"
    )  # fmt: skip
    yield f"patches of {times(sides)} voxels, {extent} mm: {limit}"
    yield f"{batch_size} patches in a batch: " + (
        "one patch of the smallest size is all that fits" if batch_size == 1 else
        "steps stay short on a CPU" if device == "cpu" else "what fits, at most 8"
    )  # fmt: skip


def times(numbers: Sequence[float]) -> str:
    """Numbers as "182 x 218 x 182"."""
    return " x ".join(f"{number:.4g}" for number in numbers)


def _listed(numbers: Sequence[float]) -> str:
    return "[" + ",".join(f"{number:g}" for number in numbers) + "]"
