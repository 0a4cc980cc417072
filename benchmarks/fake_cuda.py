"""The project takes the fake device for a CUDA device.

    stand_in_for_cuda()
    from tversky_seg.training.trainer import Trainer
    with on_fake_device() as seen:
        ...

Where the project asks for `device.type == "cuda"`, the fake device will do; and streams, events
and page-locked memory, which torch has with CUDA alone, are stood in for. Tensors still say that
they are not of CUDA (`is_cuda`), so that no kernel written for it is called.
"""

import ast
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from types import CodeType
from typing import Any
from unittest import mock

import torch
from fake_device import (
    LATE_WAIT,
    NAME,
    PAGE_LOCKED,
    PROJECT,
    SEEN,
    WAIT,
    Seen,
    is_pinned,
    make_device,
    pin,
)
from torch import Tensor

FREE_BYTES = 64 * 2**30


def stand_in_for_cuda() -> torch.device:
    """Make the fake device, and have the project take it for one of CUDA; before its import."""
    assert PROJECT not in sys.modules, "the project is imported already"
    sys.meta_path.insert(0, FinderOfTheProject)
    return make_device()


class CudaBranches(SourceFileLoader):
    """Loads a module of the project so that `device.type == "cuda"` holds for the fake device."""

    def get_code(self, fullname: str) -> CodeType | None:
        """Compile the source, with the comparisons changed."""
        source = self.get_data(self.path)
        if b'"cuda"' not in source:
            return super().get_code(fullname)
        tree = CompareWithFake().visit(ast.parse(source))
        return compile(ast.fix_missing_locations(tree), self.path, "exec")


class CompareWithFake(ast.NodeTransformer):
    """Changes `x.type == "cuda"` to `x.type in ("cuda", "fakegpu")`, and `!=` to `not in`."""

    def visit_Compare(self, node: ast.Compare) -> ast.Compare:
        """Change one comparison."""
        is_of_type = isinstance(node.left, ast.Attribute) and node.left.attr == "type"
        other = node.comparators[0]
        if is_of_type and isinstance(other, ast.Constant) and other.value == "cuda":
            is_equal = isinstance(node.ops[0], ast.Eq)
            node.ops = [ast.In() if is_equal else ast.NotIn()]
            node.comparators = [ast.Constant(("cuda", NAME))]
        return node


class FinderOfTheProject(PathFinder):
    """Finds the modules of the project, and has them loaded by `CudaBranches`."""

    @classmethod
    def find_spec(cls, fullname: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        """Find a module of the project; leave all others to the next finder."""
        if fullname.split(".")[0] != PROJECT:
            return None
        spec = super().find_spec(fullname, path, target)
        if spec is not None and spec.origin is not None:
            spec.loader = CudaBranches(fullname, spec.origin)
        return spec


class FakeStream:
    """A stream, or the current one: everything on it is done at once."""

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def synchronize(self) -> None:
        """Wait for everything."""
        SEEN.note(WAIT, "Stream.synchronize")

    def wait_stream(self, stream: Any) -> None:
        """Order the device's work; the host does not wait."""

    def wait_event(self, event: Any) -> None:
        """Order the device's work; the host does not wait."""

    def record_event(self, event: "FakeEvent | None" = None) -> "FakeEvent":
        """Mark this moment."""
        event = event or FakeEvent()
        event.record()
        return event

    def query(self) -> bool:
        """Say that everything is done."""
        return True


class FakeEvent:
    """A mark in a stream. To wait for one of an earlier step leaves the device its work."""

    def __init__(self, *_: Any, **__: Any) -> None:
        self.step = -1

    def record(self, *_: Any) -> None:
        """Mark this moment."""
        self.step = SEEN.step

    def wait(self, *_: Any) -> None:
        """Order the device's work; the host does not wait."""

    def query(self) -> bool:
        """Say that everything is done."""
        return True

    def synchronize(self) -> None:
        """Wait for the mark."""
        kind = LATE_WAIT if 0 <= self.step < SEEN.step else WAIT
        SEEN.note(kind, "Event.synchronize")

    def elapsed_time(self, _: "FakeEvent") -> float:
        """Give milliseconds to another mark."""
        return 1.0


class FakeRuntime:
    """The calls of CUDA itself that page-lock memory of ours."""

    @staticmethod
    def cudaHostRegister(address: int, n_bytes: int, _: int) -> int:
        """Lock memory that exists; 0: no error."""
        PAGE_LOCKED[address] = torch.empty(0)
        return 0

    @staticmethod
    def cudaHostUnregister(address: int) -> int:
        """Unlock it."""
        del PAGE_LOCKED[address]
        return 0


def pinning(factory: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Give a factory of torch, such as `torch.empty`, its `pin_memory` back."""

    def make(*args: Any, pin_memory: bool = False, **kwargs: Any) -> Tensor:
        tensor = factory(*args, **kwargs)
        return pin(tensor) if pin_memory else tensor

    return make


@contextmanager
def on_fake_device() -> Iterator[Seen]:
    """Stand in for torch.cuda, and note what happens on the device."""
    SEEN.events.clear()
    SEEN.step = 0
    SEEN.n_operations.clear()
    stand_ins: list[tuple[Any, str, Any]] = [
        (torch.Tensor, "pin_memory", pin),
        (torch.Tensor, "is_pinned", is_pinned),
        (torch.cuda, "Stream", FakeStream),
        (torch.cuda, "Event", FakeEvent),
        (torch.cuda, "current_stream", FakeStream),
        (torch.cuda, "default_stream", FakeStream),
        (torch.cuda, "cudart", FakeRuntime),
        (torch.cuda, "stream", lambda _: ExitStack()),
        (torch.cuda, "device", lambda _: ExitStack()),
        (torch.cuda, "mem_get_info", lambda *_: (FREE_BYTES, FREE_BYTES)),
        (torch.cuda, "memory_stats", lambda *_: {}),
        (torch.cuda, "get_device_capability", lambda *_: (9, 0)),
        (torch.cuda, "synchronize", lambda *_: SEEN.note(WAIT, "cuda.synchronize")),
    ]
    for name in ("empty", "zeros", "ones", "full", "empty_like", "tensor"):
        stand_ins.append((torch, name, pinning(getattr(torch, name))))
    with ExitStack() as stack:
        for owner, name, stand_in in stand_ins:
            stack.enter_context(mock.patch.object(owner, name, stand_in))
        yield SEEN
    PAGE_LOCKED.clear()
