"""torch.compile in a training: when it pays, and a trial that may fail."""

from __future__ import annotations

import importlib.util
import logging
import os
import shutil
import warnings

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from tversky_seg.models.group_norm import GroupNorm
from tversky_seg.runtime.devices import autocast, image_to_device
from tversky_seg.runtime.distributed import BATCH_NORMS, world_size
from tversky_seg.runtime.one_line import message_lines
from tversky_seg.training.saved_buffers import SavedBuffers

logger = logging.getLogger("tversky_seg")

STEPS_WORTH_COMPILING = 3000
"""To compile takes about a minute."""

C_COMPILERS = ("gcc", "clang", "cc")


def check_compile(setting: bool | str) -> None:
    """Check a setting of `Trainer.compile`.

    Raises:
        ValueError: It is neither a boolean nor "auto".
    """
    if not isinstance(setting, bool) and setting != "auto":
        raise ValueError(f"compile must be auto, true or false, got {setting}")


def should_compile(
    setting: bool | str,
    network: nn.Module,
    device: torch.device,
    *,
    n_steps: int,
    is_deterministic: bool,
) -> bool:
    """Decide whether a training compiles its network.

    Args:
        setting: True, False or "auto": on CUDA, where Triton and a C compiler are found, for
            `STEPS_WORTH_COMPILING` steps or more. Not with our group norm, whose kernels leave
            nothing to fuse: the default U-Net then took 25.1 ms a step at 128^3 on an H100,
            instead of 20.6. Not in a deterministic training, whose bits would depend on how many
            steps are left when it resumes; and not for batch norm over several processes, whose
            exchange of statistics torch.compile does not handle well.
        network: Network to train.
        device: Device to train on.
        n_steps: Steps that remain.
        is_deterministic: Whether deterministic algorithms are asked for.
    """
    if isinstance(setting, bool):
        return setting
    if device.type != "cuda" or is_deterministic or n_steps < STEPS_WORTH_COMPILING:
        return False
    avoided: tuple[type[nn.Module], ...] = (GroupNorm,)
    if world_size() > 1:
        avoided += BATCH_NORMS
    is_avoided = any(isinstance(module, avoided) for module in network.modules())
    return can_compile() and not is_avoided


def can_compile() -> bool:
    """Tell whether Triton is installed, and a C compiler with which it makes its launchers."""
    has_compiler = "CC" in os.environ or any(shutil.which(name) for name in C_COMPILERS)
    return has_compiler and importlib.util.find_spec("triton") is not None


def is_compilable(
    network: nn.Module, image: Tensor, device: torch.device, *, precision: str
) -> bool:
    """Run a compiled network forward and backward once, and say why if that fails.

    Weights, gradients and buffers stay as they are.

    Args:
        network: Network from torch.compile, which compiles in its first pass; or DDP around it.
        image: Patches as in a step, (B, C, X, Y, Z).
        device: Device of the network.
        precision: Precision of a step.
    """
    logger.info("compiling the network, which takes about a minute")
    if isinstance(network, DistributedDataParallel):
        network = network.module
    buffers = SavedBuffers(network)
    try:
        # Compilers advise TF32 and other settings.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with autocast(device, precision):
                logits = network(image_to_device(image, device))
            # With deep supervision there are several.
            outputs = [logits] if isinstance(logits, Tensor) else logits
            total = torch.stack([output.float().mean() for output in outputs]).sum()
            total.backward()  # type: ignore[no-untyped-call]
    # Compilers raise anything; if the network itself is at fault, the first step will say so.
    except Exception as error:
        first_line = message_lines(error)[0]
        logger.warning(
            "the network cannot be compiled and is trained without: %s: %s",
            type(error).__name__,
            first_line,
        )
        return False
    finally:
        network.zero_grad()
        buffers.put_back()
    return True
