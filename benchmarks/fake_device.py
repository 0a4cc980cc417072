"""A device that does not exist: it shows on a CPU where a GPU would make the host wait.

    device = make_device()
    network.to(device)(image.to(device)).sum().item()
    print(SEEN.events)

Its tensors hold their values on the CPU, so programs run on it as they are and compute the right
numbers. torch takes them for those of another device: `.numpy()` fails, and factories and copies
name it. Every operation is looked at before it runs on the CPU. What this cannot show: times,
kernels of a real GPU, autocast, streams that run at the same time.
"""

import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

NAME = "fakegpu"
DEVICE = torch.device("cpu")  # until `make_device` has made it
PROJECT = "tversky_seg"

WAIT = "wait"
LATE_WAIT = "wait for an earlier step"
PAGEABLE = "pageable copy"
PINNED = "pinned copy"
MIXING = "mixing of devices"

aten = torch.ops.aten
# The host needs their result, or the size of it: it waits for all that was launched before.
WAITING = {
    aten._local_scalar_dense,
    aten.nonzero,
    aten.masked_select,
    aten.bincount,
    aten.histc,
    aten.equal,
    aten._unique2,
    aten.unique_dim,
    aten.unique_consecutive,
    aten.repeat_interleave,
}
INDEXING = {aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_}


@dataclass(frozen=True)
class Event:
    """Something that a GPU would do, apart from computing.

    Attributes:
        step: Training step in which it happens.
        kind: WAIT, LATE_WAIT, PAGEABLE, PINNED or MIXING. A pageable copy is a wait as well.
        operation: What torch was asked for.
        place: "file:line function" of the project.
        n_bytes: Bytes that are copied.
    """

    step: int
    kind: str
    operation: str
    place: str
    n_bytes: int = 0

    @property
    def is_wait(self) -> bool:
        """Whether the host waits until the device is idle."""
        return self.kind in (WAIT, PAGEABLE)


@dataclass
class Seen:
    """What was seen so far.

    Attributes:
        events: In order.
        step: Number of the training step; set by whoever runs steps.
        n_operations: Operations of each step that a GPU would compute: views are none.
    """

    events: list[Event] = field(default_factory=list)
    step: int = 0
    n_operations: Counter[int] = field(default_factory=Counter)

    def note(self, kind: str, operation: str, n_bytes: int = 0) -> None:
        """Add an event at the innermost line of the project that is running."""
        self.events.append(Event(self.step, kind, operation, place_in_project(), n_bytes))


SEEN = Seen()
# Page-locked memory by its address; kept alive, so that no other tensor gets the same address.
PAGE_LOCKED: dict[int, Tensor] = {}


class FakeTensor(torch.Tensor):
    """A tensor of the fake device; `host` holds its values."""

    host: Tensor

    @staticmethod
    def __new__(cls, host: Tensor) -> "FakeTensor":
        """Wrap values on the CPU."""
        tensor = torch.Tensor._make_wrapper_subclass(
            cls,
            host.size(),
            strides=host.stride(),
            storage_offset=host.storage_offset(),
            dtype=host.dtype,
            device=DEVICE,
        )
        tensor.host = host
        return tensor

    def __repr__(self, **_: Any) -> str:
        return f"FakeTensor({tuple(self.shape)}, {self.dtype})"

    @classmethod
    def __torch_dispatch__(
        cls, operation: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        return run_on_host(operation, args, kwargs or {})

    # Methods of torch that never reach `__torch_dispatch__`.

    def tolist(self) -> Any:
        """Read all values."""
        SEEN.note(WAIT, "tolist")
        return self.host.tolist()

    def new_tensor(self, data: Any, dtype: torch.dtype | None = None, **_: Any) -> Tensor:
        """Copy values to the device."""
        return torch.tensor(data, dtype=dtype or self.dtype).to(DEVICE)

    def record_stream(self, stream: Any) -> None:
        """Do nothing: memory is freed by Python."""


def run_on_host(operation: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Note what a GPU would do for an operation, and compute it on the CPU."""
    tensors = [leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    packet = operation.overloadpacket
    # A copy to another device is an operation of that device.
    target = kwargs.get("device")
    leaves_device = target is not None and torch.device(target).type != NAME
    if packet is aten.copy_ or packet is aten._to_copy:
        note_copy(packet, args, kwargs, leaves_device=leaves_device)
    elif packet in INDEXING:
        note_indexing(packet, args[1])
    elif packet in WAITING:
        SEEN.note(WAIT, str(packet))
    else:
        note_mixing(packet, tensors)
    if not operation.is_view:
        SEEN.n_operations[SEEN.step] += 1

    wrappers = {id(tensor.host): tensor for tensor in tensors if isinstance(tensor, FakeTensor)}
    host_args, host_kwargs = pytree.tree_map_only(FakeTensor, host_of, (args, kwargs))
    if target is not None:
        host_kwargs["device"] = torch.device("cpu")
    result = operation(*host_args, **host_kwargs)
    if leaves_device:
        return result
    if packet is aten.copy_ and not isinstance(args[0], FakeTensor):
        return args[0]

    def wrap(tensor: Tensor) -> Tensor:
        # An operation in place returns its argument.
        wrapper = wrappers.get(id(tensor))
        return FakeTensor(tensor) if wrapper is None else wrapper

    return pytree.tree_map_only(Tensor, wrap, result)


def host_of(tensor: FakeTensor) -> Tensor:
    """Return the values of a tensor."""
    return tensor.host


def note_copy(packet: Any, args: Any, kwargs: dict[str, Any], *, leaves_device: bool) -> None:
    """Note a copy between devices; one inside the device is none of these."""
    if packet is aten._to_copy:
        if leaves_device:
            # torch itself takes page-locked memory for a copy that need not be waited for.
            kind = PINNED if kwargs.get("non_blocking") else PAGEABLE
            SEEN.note(kind, "copy to the host", args[0].nbytes)
        return
    to, source = args[:2]
    is_to_device = isinstance(to, FakeTensor)
    if is_to_device and isinstance(source, FakeTensor):
        return
    host = source if is_to_device else to
    direction = "copy to the device" if is_to_device else "copy to the host"
    if not is_pinned(host):
        SEEN.note(PAGEABLE, direction, source.nbytes)
        return
    SEEN.note(PINNED, direction, source.nbytes)
    is_blocking = not (args[2] if len(args) > 2 else kwargs.get("non_blocking", False))
    if is_blocking:
        SEEN.note(WAIT, f"{direction}, blocking")


def note_indexing(packet: Any, indices: Sequence[Tensor | None]) -> None:
    """Note indices whose number the host has to know, and those that lie on the host."""
    for index in indices:
        if index is None:
            continue
        if not isinstance(index, FakeTensor):
            SEEN.note(PAGEABLE, f"{packet} by an index on the host", index.nbytes)
        elif index.dtype in (torch.bool, torch.uint8):
            SEEN.note(WAIT, f"{packet} by a mask")


def note_mixing(packet: Any, tensors: Sequence[Tensor]) -> None:
    """Note tensors of the host among those of the device, which CUDA refuses.

    A single number on the host is allowed: it is handed over with the kernel.
    """
    shapes = []
    for tensor in tensors:
        if not isinstance(tensor, FakeTensor) and tensor.ndim > 0:
            shapes.append(tuple(tensor.shape))
    if shapes:
        SEEN.note(MIXING, f"{packet} with {shapes} on the host")


def place_in_project() -> str:
    """Name the innermost line of the project on the stack."""
    frame = sys._getframe(1)
    while frame is not None:
        module = frame.f_globals.get("__name__", "")
        if module.split(".")[0] == PROJECT:
            file = Path(frame.f_code.co_filename).name
            package = "/".join(module.split(".")[1:-1])
            return f"{package}/{file}:{frame.f_lineno} {frame.f_code.co_name}"
        frame = frame.f_back
    return "torch (backward pass or optimizer)"


def is_pinned(tensor: Tensor) -> bool:
    """Tell whether a tensor of the host lies in page-locked memory."""
    return tensor.untyped_storage().data_ptr() in PAGE_LOCKED


def pin(tensor: Tensor, *_: Any) -> Tensor:
    """Copy a tensor to page-locked memory, as `Tensor.pin_memory` does."""
    if is_pinned(tensor):
        return tensor
    copied = tensor.clone()
    PAGE_LOCKED[copied.untyped_storage().data_ptr()] = copied
    return copied


BACKEND = SimpleNamespace(
    is_available=lambda: True,
    is_initialized=lambda: True,
    _is_in_bad_fork=lambda: False,
    device_count=lambda: 1,
    current_device=lambda: 0,
    manual_seed_all=lambda seed: None,
    get_amp_supported_dtype=lambda: [torch.float16, torch.bfloat16],
    get_rng_state=lambda device=None: torch.get_rng_state(),
    set_rng_state=lambda state, device=None: torch.set_rng_state(state),
)
"""What torch asks the module of a device for."""


def make_device() -> torch.device:
    """Make the device known to torch, once for each process.

    Raises:
        ImportError: torch is older than 2.9, which has no devices in Python.
    """
    global DEVICE
    if DEVICE.type == NAME:
        return DEVICE
    from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

    _setup_privateuseone_for_python_backend(NAME, backend_module=BACKEND)
    DEVICE = torch.device(NAME, 0)
    library = torch.library.Library("aten", "IMPL")
    library.impl("empty.memory_format", empty, "PrivateUse1")
    library.impl("empty_strided", empty_strided, "PrivateUse1")
    library.impl("_copy_from", copy_from, "PrivateUse1")
    # Autocast changes nothing: everything is computed in the type of its input.
    every_operation = torch.library.Library("_", "IMPL")
    every_operation.fallback(torch.library.fallthrough_kernel, "AutocastPrivateUse1")
    KEPT.extend((library, every_operation))
    # As tensors of CUDA: clipping and optimizers take all weights in one operation.
    torch.utils._foreach_utils._foreach_supported_types.append(FakeTensor)
    return DEVICE


KEPT: list[Any] = []
"""Libraries, whose operations last as long as they do."""


def empty(size: Sequence[int], **kwargs: Any) -> Tensor:
    """Make a tensor of the device; all of torch's factories begin with this."""
    kwargs.update(device="cpu", pin_memory=False)
    return FakeTensor(torch.empty(size, **kwargs))


def empty_strided(size: Sequence[int], stride: Sequence[int], **kwargs: Any) -> Tensor:
    """Make a tensor of the device with given strides."""
    kwargs.update(device="cpu", pin_memory=False)
    return FakeTensor(torch.empty_strided(size, stride, **kwargs))


def copy_from(source: Tensor, to: Tensor, non_blocking: bool = False) -> Tensor:
    """Copy between devices, where torch does so by itself, as `torch.tensor` does."""
    return run_on_host(aten.copy_.default, (to, source, non_blocking), {})
