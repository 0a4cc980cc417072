"""A limit on the memory of new tensors, for networks that a stranger's file describes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

# What modules make their weights and buffers with.
FACTORIES = frozenset(
    (
        torch.empty,
        torch.zeros,
        torch.ones,
        torch.full,
        torch.eye,
        torch.rand,
        torch.randn,
        torch.arange,
        torch.linspace,
    )
)


class TooLarge(RuntimeError):
    """New tensors would exceed the limit."""


class AllocationLimit(TorchFunctionMode):
    """Context in which new tensors may take a number of bytes in all.

    The limit holds for the functions that make tensors of a given shape, as those of modules that
    build their weights, and is checked before any memory is taken.

        with AllocationLimit(4 * n_bytes_of_weights):
            network = build_network(...)
    """

    def __init__(self, n_bytes: int) -> None:
        super().__init__()
        self.limit = n_bytes
        self.n_bytes = 0

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func in FACTORIES:
            self.n_bytes += _n_bytes_of_result(func, args, kwargs)
            if self.n_bytes > self.limit:
                raise TooLarge(f"new tensors of {self.n_bytes} bytes exceed {self.limit} bytes")
        return func(*args, **kwargs)


def _n_bytes_of_result(
    func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]
) -> int:
    """Ask for the result on the meta device: a shape without memory, of which nothing is drawn."""
    options = {name: value for name, value in kwargs.items() if name != "generator"}
    options["device"] = "meta"
    try:
        n_bytes: int = func(*args, **options).nbytes
    except RuntimeError as error:
        if "overflow" in str(error):
            raise TooLarge(f"new tensors exceed all memory ({error})") from error
        raise
    return n_bytes
