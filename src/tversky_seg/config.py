"""Where Hydra ends: compose, check and build what the three verbs use, and turn every fault into one line."""

from __future__ import annotations

import difflib
import hashlib
import inspect
import json
import logging
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import hydra
import yaml
from hydra.core.hydra_config import HydraConfig
from hydra.errors import ConfigCompositionException, InstantiationException, MissingConfigException
from hydra.utils import get_object, instantiate
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException
from torch import nn

from tversky_seg.data.preprocessing import Preprocessing

CONFIG_DIR = Path(__file__).parents[2] / "configs"
ALLOWED_PACKAGES = ("tversky_seg", "torch.nn", "torch.optim", "monai.networks", "monai.losses")
FREE_KEYS = ("output_dir", "data.cache_dir", "trainer.device", "trainer.n_workers", "trainer.threads", "trust")
logger = logging.getLogger("tversky_seg")


def _sweep_directory(output_dir: str | None) -> str:
    return output_dir or "runs/sweep"


def _name_of_setting(overrides: str) -> str:
    """A directory's name for what a sweep's job sets: slashes replaced, hashed if long."""
    name = re.sub(r"[^\w.,=+-]+", "_", overrides) or "default"
    return name if len(name) <= 120 else f"{name[:100]}_{hashlib.sha256(overrides.encode()).hexdigest()[:8]}"


OmegaConf.register_new_resolver("tversky_seg_sweep_dir", _sweep_directory, replace=True)
OmegaConf.register_new_resolver("tversky_seg_setting", _name_of_setting, replace=True)


class ConfigError(ValueError):
    """A setting that cannot be used; the message is one line: `<key>: <what was found>; <what was expected>`."""


def verb(name: str) -> Callable[[Callable[[DictConfig], int]], Callable[[], None]]:
    """Make a function of a composed config a command: `configs/<name>.yaml`, one-line errors, exit status.

    The function returns its exit status (0 done, 1 some cases failed). Whatever it raises becomes one line on stderr
    and status 2; the traceback is shown only when the user sets HYDRA_FULL_ERROR=1.
    """

    def decorate(function: Callable[[DictConfig], int]) -> Callable[[], None]:
        def command() -> None:
            wants_traceback = os.environ.get("HYDRA_FULL_ERROR") == "1"
            os.environ["HYDRA_FULL_ERROR"] = "1"  # else Hydra prints several lines and exits with 1
            logging.getLogger("hydra").addHandler(logging.NullHandler())
            statuses: list[int] = []

            def job(cfg: DictConfig) -> None:
                try:
                    statuses.append(function(cfg))
                except Exception as fault:  # of one job; the others of a sweep go on
                    if wants_traceback:
                        raise
                    statuses.append(2)
                    print(f"error: {one_line(fault, config_name=name)}", file=sys.stderr)

            job.__module__, job.__qualname__ = function.__module__, function.__qualname__
            run = hydra.main(config_path=str(CONFIG_DIR), config_name=name, version_base="1.3")(job)
            try:
                run()
            except KeyboardInterrupt:
                sys.exit(130)
            except Exception as fault:
                if wants_traceback:
                    raise
                print(f"error: {one_line(fault, config_name=name)}", file=sys.stderr)
                sys.exit(2)
            sys.exit(_overall(statuses))

        return command

    return decorate


def _overall(statuses: list[int]) -> int:
    """The exit status of one job, or of a sweep: 1 when some of its jobs failed, 2 when all did."""
    failed = [status for status in statuses if status]
    return 1 if 0 < len(failed) < len(statuses) else max(statuses, default=0)


def check_config(cfg: DictConfig, *, config_name: str) -> None:
    """Refuse keys that no object takes, values that are missing, and targets outside the allowed packages.

    Raises:
        ConfigError: naming the key and, for a misspelt one, the nearest right key.
    """
    known = _known_top_level_keys(config_name)
    for key in map(str, cfg):
        if key not in known:
            raise ConfigError(f"{key}: no such key; {_nearest(key, known)}")
    settings = plain(cfg)
    for key, node in _nodes_with_target(settings):
        check_target(key, node["_target_"], trust=settings.get("trust") or ())
        _check_arguments(key, node)


def plain(cfg: DictConfig) -> dict[str, Any]:
    """The resolved config as dicts, lists and plain values."""
    try:
        settings = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    except MissingMandatoryValue as fault:
        key = getattr(fault, "full_key", None) or "a setting"
        raise ConfigError(f"{key}: no value given; set it on the command line as {key}=…") from fault
    assert isinstance(settings, dict)
    return {str(key): value for key, value in settings.items()}


def check_target(key: str, target: str, *, trust: Sequence[str] = (), kind: type | None = None) -> None:
    """Refuse a `_target_` that is not a class or function defined in an allowed package.

    The name's beginning is checked before anything is imported, and the module that defines the object afterwards,
    since an allowed module may import others (`torch.nn.modules.module.torch.hub.load`).
    """
    allowed = (*ALLOWED_PACKAGES, *trust)
    found = get_object(target) if _lies_in(target, allowed) else None
    is_code = inspect.isclass(found) or inspect.isfunction(found) or inspect.ismethod(found)
    is_kind = kind is None or (inspect.isclass(found) and issubclass(found, kind))
    if found is None or not is_code or not is_kind or not _lies_in(getattr(found, "__module__", ""), allowed):
        expected, what = ", ".join(allowed), f"{kind.__name__} class" if kind else "class or function"
        raise ConfigError(f"{key}._target_: {target} is no {what} of {expected}; trust=[package] adds a package")


def build(cfg: DictConfig, key: str, **parts: Any) -> Any:
    """Build what `cfg[key]` describes, with plain Python arguments and the `parts` that only the caller has.

    A node with `_partial_: true` gives a function when no parts are handed in; a null node gives None.

    Raises:
        ConfigError: naming the key and what its object says of the settings.
    """
    node = cfg[key]
    if node is None:
        return None
    try:
        make = instantiate(node, _convert_="all", _partial_=True)
        return make if node.get("_partial_") and not parts else make(**parts)
    except InstantiationException as fault:
        raise ConfigError(_with_key(key, _first_line(fault.__cause__ or fault))) from fault
    except (ValueError, TypeError) as fault:
        raise ConfigError(_with_key(key, _first_line(fault))) from fault


def build_network(settings: Mapping[str, Any], *, preprocessing: Preprocessing, trust: Sequence[str] = ()) -> nn.Module:
    """Build the network of a checkpoint, which may come from a stranger: only network classes are called.

    Args:
        settings: The checkpoint's config, plain values.
        preprocessing: Says how many channels go in and how many classes come out.
        trust: Further packages whose classes may be built, from the command line only.

    Raises:
        ConfigError: when the config names anything but classes of networks and their parts.
    """
    cfg = OmegaConf.create({"model": settings.get("model")})
    for key, node in _nodes_with_target(plain(cfg)):
        check_target(key, node["_target_"], trust=tuple(trust), kind=nn.Module)
    channels = {"in_channels": len(preprocessing.modalities), "out_channels": len(preprocessing.classes)}
    network: nn.Module = build(cfg, "model", **channels)
    return network


def open_run(cfg: DictConfig, *, default_name: str | None = None) -> Path:
    """Make or reopen the run directory that the settings ask for, and write config.yaml into it.

    Raises:
        ConfigError: when the directory holds a run with other settings (the keys are named) or cannot be written.
    """
    settings = plain(cfg)
    output_dir = run_directory(cfg, default_name=default_name)
    settings["output_dir"] = str(output_dir)
    saved = output_dir / "config.yaml"
    if saved.exists():
        _refuse_other_settings(yaml.safe_load(saved.read_text()), settings, output_dir)
    try:
        output_dir.mkdir(parents=True, exist_ok=True)
        scratch = saved.with_suffix(".tmp")
        scratch.write_text(yaml.safe_dump(settings, sort_keys=False))
        scratch.replace(saved)
    except OSError as fault:
        raise ConfigError(f"output_dir: {output_dir} cannot be written ({fault.strerror}); choose another") from fault
    _log_to(output_dir / "train.log")
    return output_dir


def run_directory(cfg: DictConfig, *, default_name: str | None = None) -> Path:
    """The directory of this run: Hydra's in a sweep, else `output_dir`, else a name made from the settings."""
    hydra_config = HydraConfig.get()
    if hydra_config.mode is not None and hydra_config.mode.name == "MULTIRUN":
        return Path(hydra_config.runtime.output_dir)
    if cfg.output_dir is not None:
        return Path(cfg.output_dir)
    choices = hydra_config.runtime.choices
    name = default_name or f"{choices['data']}_{choices['model']}_{choices['loss']}"
    return Path("runs") / f"{name}_{fingerprint(plain(cfg))}"


def fingerprint(settings: dict[str, Any]) -> str:
    """Eight hexadecimal digits of the settings that decide the numbers."""
    deciding = {key: value for key, value in flatten(settings) if not _is_free(key)}
    return hashlib.sha256(json.dumps(deciding, sort_keys=True).encode()).hexdigest()[:8]


def flatten(settings: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Each plain value with its dotted key."""
    if isinstance(settings, dict) and settings:
        for key, value in settings.items():
            yield from flatten(value, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, settings


def log_to_terminal() -> None:
    """Send the library's messages to the terminal, as plain lines."""
    if not logger.handlers:
        logger.addHandler(logging.StreamHandler())
        logger.handlers[0].setFormatter(logging.Formatter("%(message)s"))
    logger.setLevel(logging.INFO)
    logger.propagate = False


def one_line(fault: BaseException, *, config_name: str) -> str:
    """What the user did wrong, in one line."""
    if isinstance(fault, MissingConfigException):
        return _missing_choice(fault)
    if isinstance(fault, ConfigCompositionException) and isinstance(fault.__cause__, OmegaConfBaseException):
        key = fault.__cause__.full_key or str(fault.__cause__.key)
        return f"{key}: no such key; {_nearest(key, _composable_keys(config_name))}"
    if isinstance(fault, (ValueError, OSError, hydra.errors.HydraException, OmegaConfBaseException)):
        return _first_line(fault)
    return f"{type(fault).__name__}: {_first_line(fault)}; HYDRA_FULL_ERROR=1 shows where"


def _log_to(path: Path) -> None:
    log_to_terminal()
    for handler in [h for h in logger.handlers if isinstance(h, logging.FileHandler)]:
        logger.removeHandler(handler)
        handler.close()
    handler = logging.FileHandler(path)
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    logger.addHandler(handler)


def _with_key(key: str, message: str) -> str:
    return message if message.startswith(f"{key}.") else f"{key}: {message}"


def _first_line(fault: BaseException) -> str:
    lines = [line.strip() for line in str(fault).splitlines() if line.strip()]
    return lines[0] if lines else type(fault).__name__


def _refuse_other_settings(before: dict[str, Any], now: dict[str, Any], output_dir: Path) -> None:
    old, new = dict(flatten(before)), dict(flatten(now))
    changed = [key for key in sorted({*old, *new}) if old.get(key) != new.get(key) and not _is_free(key)]
    if changed:
        shown = ", ".join(f"{key} was {old.get(key)}, now {new.get(key)}" for key in changed[:3])
        more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
        raise ConfigError(f"output_dir: {output_dir} holds a run with other settings ({shown}{more}); choose another")


def _is_free(key: str) -> bool:
    return any(key == free or key.startswith(free + ".") for free in FREE_KEYS)


def _lies_in(name: str, packages: tuple[str, ...]) -> bool:
    return any(name == package or name.startswith(package + ".") for package in packages)


def _nodes_with_target(node: Any, prefix: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    if isinstance(node, dict):
        if "_target_" in node:
            yield prefix, node
        for key, value in node.items():
            yield from _nodes_with_target(value, f"{prefix}.{key}" if prefix else str(key))
    elif isinstance(node, list):
        for position, value in enumerate(node):
            yield from _nodes_with_target(value, f"{prefix}[{position}]")


def _check_arguments(key: str, node: dict[str, Any]) -> None:
    parameters = inspect.signature(get_object(node["_target_"])).parameters
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        return
    for name in node:
        if not name.startswith("_") and name not in parameters:
            known = [f"{key}.{parameter}" for parameter in parameters]
            raise ConfigError(f"{key}.{name}: no such key; {_nearest(f'{key}.{name}', known)}")


def _known_top_level_keys(config_name: str) -> set[str]:
    content = yaml.safe_load((CONFIG_DIR / f"{config_name}.yaml").read_text())
    groups = {group.split()[-1] for entry in content["defaults"] if isinstance(entry, dict) for group in entry}
    return {key for key in {*content, *groups} if "/" not in key} - {"defaults", "hydra", "experiment"}


def _composable_keys(config_name: str) -> list[str]:
    groups = [word for word in sys.argv[1:] if (CONFIG_DIR / word.split("=")[0].lstrip("+~")).is_dir()]
    with hydra.initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        cfg = hydra.compose(config_name, overrides=[word for word in groups if "." not in word.split("=")[0]])
    return [key for key, _ in flatten(OmegaConf.to_container(cfg))]


def _nearest(key: str, known: Any) -> str:
    candidates = {re.sub(r"\._target_$", "", name) for name in known}
    matches = difflib.get_close_matches(key, candidates, n=1, cutoff=0.5)
    return f"did you mean {matches[0]}?" if matches else f"known are {', '.join(sorted(candidates)[:12])}"


def _missing_choice(fault: MissingConfigException) -> str:
    missing = (fault.missing_cfg_file or "").split("/")
    group, choice = "/".join(missing[:-1]), missing[-1]
    options = sorted(path.stem for path in (CONFIG_DIR / group).glob("*.yaml")) if group else []
    if not options:
        return _first_line(fault)
    return f"{group}: no choice named {choice}; choose one of {', '.join(options)}"
