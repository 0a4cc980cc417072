"""Objects built from settings."""

from __future__ import annotations

import copy
import inspect
import re
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from tversky_seg.config.checks import ConfigError, check_arguments, nodes_with_target
from tversky_seg.config.config_files import choices
from tversky_seg.config.messages import first_line, reword
from tversky_seg.config.targets import check_target
from tversky_seg.config.yaml_size import check_values

if TYPE_CHECKING:
    from torch import nn


def build(cfg: DictConfig, key: str, **parts: Any) -> Any:
    """Build the object that `cfg[key]` describes, with plain Python arguments.

    A node with `_partial_: true` gives a function when no parts are handed in; a null node gives
    None.

    Args:
        cfg: Composed config.
        key: Group, such as `loss`.
        parts: Arguments that only the caller has, such as the network of a trainer.

    Raises:
        ConfigError: Names the key and repeats what its object says of the settings.
    """
    node = cfg[key]
    if node is None:
        return None
    if not OmegaConf.is_dict(node) or "_target_" not in node:
        raise ConfigError(f"{key}: {node}; expected one of {', '.join(choices(key))}")
    for name in parts:
        if name in node:
            raise ConfigError(
                f"{key}.{name}: {node[name]}; expected no such key, it follows from other settings"
            )
    # The names of its arguments help to say which of them an error is about.
    names = set(map(str, node))
    try:
        constructor = instantiate(node, _convert_="all", _partial_=True)
        names.update(inspect.signature(constructor).parameters)
        if node.get("_partial_") and not parts:
            return constructor
        return constructor(**parts)
    except InstantiationException as fault:
        # Hydra wraps what an object inside the node raises, and names the inner key in its text.
        inner_key = re.search(r"full_key: (\S+)", str(fault))
        where = inner_key[1] if inner_key else key
        inner_names = _keys_below(cfg, where)
        line = reword(first_line(fault.__cause__ or fault), where, names=inner_names)
        raise ConfigError(line) from fault
    except (ValueError, TypeError) as fault:
        raise ConfigError(reword(first_line(fault), key, names=names)) from fault


def _keys_below(cfg: DictConfig, key: str) -> set[str]:
    """List the names of the settings directly below a key."""
    node = OmegaConf.select(cfg, key)
    if not OmegaConf.is_dict(node):
        return set()
    return set(map(str, node))


def build_network(
    settings: Mapping[str, Any], *, in_channels: int, out_channels: int, trust: Sequence[str] = ()
) -> nn.Module:
    """Build the network of a checkpoint, which may come from a stranger: only networks are built.

    Args:
        settings: Config of the checkpoint, plain values.
        in_channels: Number of image channels (modalities).
        out_channels: Number of foreground classes.
        trust: Further packages whose classes may be built, from the command line only.

    Raises:
        ConfigError: The config names anything but classes of networks and their parts.
    """
    from torch import nn

    model = settings.get("model") or {}
    # The file may hold lists that refer to themselves, which OmegaConf would copy for ever.
    check_values(model, "model")
    for key, node in nodes_with_target({"model": model}):
        check_arguments(key, node, check_target(key, node, trust=trust, kind=nn.Module))
    cfg = OmegaConf.create({"model": model})
    network: nn.Module = build(cfg, "model", in_channels=in_channels, out_channels=out_channels)
    return network


def check_network(network: nn.Module, *shapes: Sequence[int], n_classes: int) -> None:
    """Refuse a network that cannot take the patches of the settings, before any data are read.

    Only shapes are computed, on torch's meta device: it costs neither memory nor time. A network
    that looks at values is let through; its first step will tell.

    Args:
        network: (B, C, X, Y, Z) -> logits (B, K, X, Y, Z).
        shapes: (B, C, X, Y, Z) of a training batch, and others.
        n_classes: K, the number of foreground classes.

    Raises:
        ConfigError: Repeats what the network says of such a batch.
    """
    import torch

    twin = _without_memory(network)
    for shape in shapes:
        batch = torch.empty(*shape, device="meta")
        try:
            with torch.no_grad(), warnings.catch_warnings(action="ignore"):
                logits = twin(batch)
        except (ValueError, RuntimeError, TypeError) as fault:
            # It needs values (`if image.max() > 1`), which the meta device does not have.
            if "meta" in str(fault):
                return
            raise ConfigError(
                f"model: {first_line(fault)} (for a batch of {tuple(shape)})"
            ) from fault
        if isinstance(logits, tuple):
            logits = logits[0]  # with deep supervision: full resolution first
        if logits.shape != (shape[0], n_classes, *shape[2:]):
            raise ConfigError(
                f"model: makes {tuple(logits.shape)} of {tuple(shape)}; "
                f"expected {n_classes} channels of the same sides"
            )


def _without_memory(network: nn.Module) -> nn.Module:
    """Copy a network onto torch's meta device, where tensors have a shape and no values."""
    from torch import nn

    # deepcopy takes what is in its memo as copied already, so no weight is copied in memory, and
    # a layer that the network holds twice is one layer in the copy too.
    memo: dict[int, Any] = {}
    for parameter in network.parameters():
        memo[id(parameter)] = nn.Parameter(parameter.to("meta"), parameter.requires_grad)
    for buffer in network.buffers():
        memo[id(buffer)] = buffer.to("meta")
    return copy.deepcopy(network, memo)
