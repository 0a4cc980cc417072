"""Where Hydra ends: compose, check and build what the three verbs use, and turn every fault into one line."""

from __future__ import annotations

import hashlib
import inspect
import io
import logging
import os
import re
import sys
import textwrap
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from functools import cache
from pathlib import Path
from typing import Any, NoReturn

import hydra
import torch
import yaml
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.errors import (
    ConfigCompositionException,
    HydraException,
    InstantiationException,
    MissingConfigException,
    OverrideParseException,
)
from hydra.utils import get_object, instantiate
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException
from torch import nn
from torch.func import functional_call

from tversky_seg.config.checks import (
    ConfigError,
    check_arguments,
    check_type,
    nearest,
    nodes_with_target,
)
from tversky_seg.data.preprocessing.pipeline import Preprocessing
from tversky_seg.runtime.checkpoints import load_checkpoint
from tversky_seg.runtime.distributed import LostProcess, is_first, process_group
from tversky_seg.runtime.preemption import EXIT_PREEMPTED, Preempted, handle_signals
from tversky_seg.runtime.run_settings import differences, fingerprint, flatten, is_free

__all__ = ["ConfigError"]

CONFIG_DIR = Path(__file__).parents[3] / "configs"
ALLOWED_PACKAGES = ("tversky_seg", "torch.nn", "torch.optim", "monai.networks", "monai.losses")
KINDS: Mapping[str, type] = {
    "model": nn.Module,
    "loss": nn.Module,
    "optimizer": torch.optim.Optimizer,
}
NAMES = ("checkpoint", "input", "predictions", "manifest", "output_dir", "case_id", "data.manifest", "data.root",
         "data.cache_dir", "evaluation.pattern", "inference.goal", "trainer.init_from")  # fmt: skip
TYPES = {"seed": int, "trust": list, "classes": dict, "inference": dict, "threads": int | None, "combine": str,
         "uncertainty": str | None}  # fmt: skip
logger = logging.getLogger("tversky_seg")
logging.getLogger("hydra").addHandler(
    logging.NullHandler()
)  # what it says is said again, in one line


def command(name: str) -> Callable[[Callable[[DictConfig], int]], Callable[[], None]]:
    """Make a function of a composed config a command: `configs/<name>.yaml`, one-line errors, exit status.

    The config is checked first. The function returns its exit status (0 done, 1 some cases failed). Whatever it raises
    becomes one line on stderr and status 2; the traceback is shown only when the user sets HYDRA_FULL_ERROR=1.
    """

    def decorate(function: Callable[[DictConfig], int]) -> Callable[[], None]:
        def command() -> None:
            statuses, root = list[int](), os.getpid()

            def job(cfg: DictConfig) -> float | None:
                log_to_terminal()
                try:
                    check_config(cfg, config_name=name)
                    with process_group():
                        log_to_terminal()
                        statuses.append(function(cfg))
                except Exception as fault:  # of one job; the others of a sweep go on
                    if wants_traceback:
                        raise
                    if (
                        os.getpid() != root
                    ):  # a launcher's process: it carries the fault to the root
                        raise ConfigError(one_line(fault, config_name=name) + _which(cfg)) from None
                    statuses.append(_say(fault, config_name=name, which=_which(cfg)))
                return _objective(cfg)

            job.__module__, job.__qualname__ = function.__module__, function.__qualname__
            run = hydra.main(config_path=str(CONFIG_DIR), config_name=name, version_base="1.3")(job)
            with _exceptions_from_hydra() as wants_traceback:
                try:
                    sys.argv[1:] = _readable(sys.argv[1:])
                    with handle_signals(), _wrapped_help():
                        run()
                except KeyboardInterrupt:
                    sys.exit(130)
                except Preempted as stop:
                    if os.environ.get("RANK", "0") == "0":
                        print(
                            f"stopped: {stop}; run the same command again to go on", file=sys.stderr
                        )
                    sys.exit(EXIT_PREEMPTED)
                except Exception as fault:
                    if wants_traceback:
                        raise
                    sys.exit(_say(fault, config_name=name))
            sys.exit(_overall(statuses))

        return command

    return decorate


def _readable(words: Sequence[str]) -> list[str]:
    """The command line as Hydra can read it: `-m` first, and names in quotes, which its grammar would trip over.

    Raises:
        ConfigError: for an option that there is none of.
    """
    is_sweep = bool({"-m", "--multirun"} & {*words})
    words = ["--multirun"] * is_sweep + [word for word in words if word not in ("-m", "--multirun")]
    parser = get_args_parser()
    parser.error = _refuse_option  # type: ignore[method-assign]
    parser.parse_args(words)
    return [_quoted(word, is_sweep=is_sweep) for word in words]


def _quoted(word: str, *, is_sweep: bool) -> str:
    key, _, name = word.partition("=")
    brackets = (
        "" if key == "evaluation.pattern" else "{["
    )  # {case_id}_mask.nii.gz is a name, no mapping
    means_more = name in ("", "null", "???") or name[0] in "'\"" + brackets or "${" in name
    means_more = means_more or (is_sweep and "," in name)
    if key not in NAMES or means_more:
        return word
    escaped = name.replace("'", r"\'")
    return f"{key}='{escaped}'"


@contextmanager
def _wrapped_help() -> Iterator[None]:
    """Where help is asked for, break the lines that list many choices."""
    if not {"--help", "-h"} & {*sys.argv}:
        yield
        return
    page = io.StringIO()
    try:
        with redirect_stdout(page):
            yield
    finally:  # Hydra ends by SystemExit after some pages, and returns after others
        for line in page.getvalue().splitlines():
            print(
                "\n".join(textwrap.wrap(line, 116, subsequent_indent="    "))
                if len(line) > 116
                else line
            )


def _refuse_option(message: str) -> NoReturn:
    raise ConfigError(f"command line: {message}; --help shows what can be set")


@contextmanager
def _exceptions_from_hydra() -> Iterator[bool]:
    """Have Hydra raise what it otherwise prints in several lines; gives whether the user asked for a traceback."""
    before = os.environ.get("HYDRA_FULL_ERROR")
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        yield before == "1"
    finally:
        os.environ.pop("HYDRA_FULL_ERROR")
        os.environ.update({} if before is None else {"HYDRA_FULL_ERROR": before})


def _which(cfg: DictConfig) -> str:
    """Of a sweep's jobs, the directory of this one."""
    return f" (in {run_directory(cfg)})" if _is_sweep() else ""


def _is_sweep() -> bool:
    mode = HydraConfig.get().mode
    return mode is not None and mode.name == "MULTIRUN"


def _say(fault: Exception, *, config_name: str, which: str = "") -> int:
    is_said_by_first = (
        isinstance(fault, ConfigError | HydraException) and os.environ.get("RANK", "0") != "0"
    )
    if not is_said_by_first:
        print(f"error: {one_line(fault, config_name=config_name)}{which}", file=sys.stderr)
    return 2


def _objective(cfg: DictConfig) -> float | None:
    """What a search maximises over the jobs of a sweep: the best value of trainer.monitor on validation."""
    if not _is_sweep():
        return None
    best = run_directory(cfg) / "checkpoints" / "best.pt"
    return float(load_checkpoint(best)["best"]) if best.exists() else None


def _overall(statuses: list[int]) -> int:
    """The exit status of one job, or of a sweep: 1 when some of its jobs failed, 2 when all did."""
    failed = [status for status in statuses if status]
    return 1 if 0 < len(failed) < len(statuses) else max(statuses, default=0)


def check_config(cfg: DictConfig, *, config_name: str) -> None:
    """Refuse keys that no object takes, values of another type, missing values, and targets that are not allowed.

    Raises:
        ConfigError: naming the key and, for a misspelt one, the nearest right key.
    """
    groups, content = _top_level(config_name)
    known = {*groups, *content} - {"experiment"}
    for key in map(str, cfg):
        if key not in known:
            raise ConfigError(f"{key}: no such key; {nearest(key, known)}")
    settings = plain(cfg)
    if settings.get("trust") and not any(
        word.startswith("trust=") for word in HydraConfig.get().overrides.task
    ):
        raise ConfigError(
            f"trust: {settings['trust']} in a file; expected it on the command line, as trust=[package]"
        )
    for key in TYPES.keys() & settings.keys():
        check_type(key, settings[key], TYPES[key])
    for key, node in nodes_with_target(settings):
        check_arguments(key, node, check_target(key, node, trust=settings.get("trust") or ()))


def plain(cfg: DictConfig) -> dict[str, Any]:
    """The resolved config as dicts, lists and plain values."""
    try:
        settings = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    except MissingMandatoryValue as fault:
        key = getattr(fault, "full_key", None) or "a setting"
        raise ConfigError(
            f"{key}: no value given; set it on the command line as {key}=…"
        ) from fault
    assert isinstance(settings, dict)
    return {str(key): value for key, value in settings.items()}


def check_target(
    key: str, node: Mapping[str, Any], *, trust: Sequence[str] = (), kind: type | None = None
) -> Callable[..., Any]:
    """The class or function that a node names by `_target_`, if it may be built.

    It must be defined in an allowed package: the name's beginning is checked before anything is imported, and the
    module that defines the object afterwards, since an allowed module may import others
    (`torch.nn.modules.module.torch.hub.load`). It must be a class of the kind that the group holds; a function only
    where it is handed on uncalled (`_partial_: true`).

    Raises:
        ConfigError: naming the target and what was expected.
    """
    target, allowed = str(node["_target_"]), (*ALLOWED_PACKAGES, *trust)
    kind = kind or KINDS.get(re.split(r"[.\[]", key)[0])
    found = _found(target) if _lies_in(target, allowed) else None
    is_defined_there = _lies_in(getattr(found, "__module__", None) or "", allowed)
    if inspect.isclass(found) and is_defined_there and issubclass(found, kind or object):
        return found
    if (
        (inspect.isfunction(found) or inspect.ismethod(found))
        and is_defined_there
        and not kind
        and node.get("_partial_")
    ):
        return found
    what = f"{kind.__name__} class" if kind else "class"
    raise ConfigError(
        f"{key}._target_: {target}; expected a {what} defined in one of {', '.join(allowed)} (trust=[package] adds one)"
    )


def build(cfg: DictConfig, key: str, **parts: Any) -> Any:
    """Build what `cfg[key]` describes, with plain Python arguments and the `parts` that only the caller has.

    A node with `_partial_: true` gives a function when no parts are handed in; a null node gives None.

    Raises:
        ConfigError: naming the key and what its object says of the settings.
    """
    node = cfg[key]
    if node is None:
        return None
    if not OmegaConf.is_dict(node) or "_target_" not in node:
        raise ConfigError(f"{key}: {node}; expected one of {', '.join(_choices(key))}")
    taken = [name for name in parts if name in node]
    if taken:
        raise ConfigError(
            f"{key}.{taken[0]}: {node[taken[0]]}; expected no such key, it follows from other settings"
        )
    try:
        make = instantiate(node, _convert_="all", _partial_=True)
        return make if node.get("_partial_") and not parts else make(**parts)
    except InstantiationException as fault:  # of a part within
        part = re.search(r"full_key: (\S+)", str(fault))
        where = part[1] if part else key
        raise ConfigError(_reworded(_first_line(fault.__cause__ or fault), where)) from fault
    except (ValueError, TypeError) as fault:
        raise ConfigError(_reworded(_first_line(fault), key)) from fault


def build_network(
    settings: Mapping[str, Any], *, preprocessing: Preprocessing, trust: Sequence[str] = ()
) -> nn.Module:
    """Build the network of a checkpoint, which may come from a stranger: only network classes are called.

    Args:
        settings: The checkpoint's config, plain values.
        preprocessing: Says how many channels go in and how many classes come out.
        trust: Further packages whose classes may be built, from the command line only.

    Raises:
        ConfigError: when the config names anything but classes of networks and their parts.
    """
    cfg = OmegaConf.create({"model": settings.get("model") or {}})
    for key, node in nodes_with_target(plain(cfg)):
        check_arguments(key, node, check_target(key, node, trust=tuple(trust), kind=nn.Module))
    channels = {
        "in_channels": len(preprocessing.modalities),
        "out_channels": len(preprocessing.classes),
    }
    network: nn.Module = build(cfg, "model", **channels)
    return network


def check_network(network: nn.Module, *shapes: Sequence[int], n_classes: int) -> None:
    """Refuse a network that cannot take the patches that were asked for, before any data are read.

    Only shapes are computed, on torch's meta device: it costs neither memory nor time. A network that looks at values
    is let through; its first step will tell.

    Args:
        network: (B, C, X, Y, Z) -> logits (B, K, X, Y, Z).
        shapes: (B, C, X, Y, Z) of a training batch, and others.
        n_classes: K.

    Raises:
        ConfigError: with what the network says of such a batch.
    """
    state = {name: tensor.to("meta") for name, tensor in network.state_dict().items()}
    for shape in shapes:
        try:
            with torch.no_grad(), warnings.catch_warnings(action="ignore"):
                logits = functional_call(
                    network, state, torch.empty(*shape, device="meta"), tie_weights=False
                )
        except (ValueError, RuntimeError, TypeError) as fault:
            if "meta" in str(fault):
                return
            raise ConfigError(
                f"model: {_first_line(fault)} (for a batch of {tuple(shape)})"
            ) from fault
        logits = (
            logits[0] if isinstance(logits, tuple) else logits
        )  # with deep supervision: full resolution first
        if logits.shape != (shape[0], n_classes, *shape[2:]):
            raise ConfigError(
                f"model: makes {tuple(logits.shape)} of {tuple(shape)}; expected {n_classes} channels of the same sides"
            )


def open_run(cfg: DictConfig) -> Path:
    """Make the run directory that the settings ask for with its config.yaml, or reopen the one that is there.

    Raises:
        ConfigError: when the directory holds a run with other settings (the keys are named) or cannot be written.
    """
    output_dir = run_directory(cfg)
    settings = plain(cfg) | {"output_dir": str(output_dir)}
    saved = output_dir / "config.yaml"
    try:
        if saved.exists():
            _refuse_other_settings(saved, settings)
        else:
            output_dir.mkdir(parents=True, exist_ok=True)
            scratch = saved.with_suffix(".tmp")
            scratch.write_text(yaml.safe_dump(settings, sort_keys=False))
            scratch.replace(saved)
        if is_first():
            _log_to(output_dir / "train.log")
    except OSError as fault:
        raise ConfigError(
            f"output_dir: {output_dir} cannot be written ({fault.strerror}); choose another"
        ) from fault
    return output_dir


def run_directory(cfg: DictConfig) -> Path:
    """The directory of this run: Hydra's in a sweep, else `output_dir`, else a name made from the settings."""
    hydra_config = HydraConfig.get()
    if _is_sweep():
        return Path(hydra_config.runtime.output_dir)
    if cfg.output_dir is not None:
        return Path(str(cfg.output_dir)).expanduser()
    choices = hydra_config.runtime.choices
    return (
        Path("runs")
        / f"{choices['data']}_{choices['model']}_{choices['loss']}_{fingerprint(plain(cfg))}"
    )


class _Terminal(logging.Handler):
    """Plain lines on standard output, which stands above a progress bar; standard error is kept for the last word."""

    def emit(self, record: logging.LogRecord) -> None:
        print(self.format(record), flush=True)


def log_to_terminal() -> None:
    """Send the library's messages to the terminal, as plain lines."""
    if not logger.handlers:
        logger.addHandler(_Terminal())
    logger.setLevel(logging.INFO if is_first() else logging.ERROR)
    logger.propagate = False


def _log_to(path: Path) -> None:
    log_to_terminal()
    for old in [handler for handler in logger.handlers if isinstance(handler, logging.FileHandler)]:
        logger.removeHandler(old)
        old.close()
    handler = logging.FileHandler(path)
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    logger.addHandler(handler)


def one_line(fault: BaseException, *, config_name: str) -> str:
    """What the user did wrong, in one line: `<file or key>: <what was found>; <what was expected or to do>`."""
    if isinstance(fault, MissingConfigException):
        return _missing_choice(fault)
    if isinstance(fault, OverrideParseException):
        return f"{fault.override}: cannot be read; expected key=value (quote what has spaces, brackets or =)"
    if isinstance(fault, ConfigCompositionException) and isinstance(
        fault.__cause__, OmegaConfBaseException
    ):
        key, known = fault.__cause__.full_key or str(fault.__cause__.key), _keys(config_name)
        if key not in known:
            return f"{key}: no such key; {nearest(key, known)}"
        return f"{key}: not set by the chosen {key.split('.')[0]}; choose one that sets it, or write +{key}=…"
    if isinstance(fault, OmegaConfBaseException):
        return f"{fault.full_key or 'settings'}: {_first_line(fault)}; --cfg job shows the settings"
    if isinstance(fault, HydraException):
        return f"settings: {_first_line(fault)}; --help shows what can be set"
    if isinstance(fault, yaml.MarkedYAMLError) and fault.problem_mark:
        return f"{fault.problem_mark.name}: {fault.problem} in line {fault.problem_mark.line + 1}; expected YAML"
    if isinstance(fault, torch.OutOfMemoryError | MemoryError):
        return "trainer.batch_size: out of memory; lower it, sampler.patch_size, inference.patch_size or model.width"
    if isinstance(fault, OSError) and fault.strerror:
        return f"{fault.filename or 'files'}: {fault.strerror}; make it readable or make room, and run the command again"
    if isinstance(fault, ValueError | FloatingPointError | LostProcess):
        return _reworded(_first_line(fault))
    return f"{type(fault).__name__}: {_first_line(fault)}; HYDRA_FULL_ERROR=1 shows where"


def _first_line(fault: BaseException) -> str:
    lines = [line.strip() for line in str(fault).splitlines() if line.strip()]
    return lines[0] if lines else type(fault).__name__


def _reworded(message: str, key: str = "") -> str:
    """An object's word on its arguments as a line about a key: `a must be b, got c` -> `key.a: got c; a must be b`."""
    expected, got, found = message.rpartition(", got ")
    if not got:
        return (
            message
            if not key or message.startswith(key)
            else f"{key}: {message}; --help shows what can be set"
        )
    words = [key] * bool(key) + re.findall(r"^[a-z_]\w*", expected)
    where = ".".join(words) or "settings"
    return f"{where}: got {found}; {expected}"


def _refuse_other_settings(saved: Path, settings: dict[str, Any]) -> None:
    try:
        before = yaml.safe_load(saved.read_text())
    except (yaml.YAMLError, UnicodeDecodeError):
        before = None
    if not isinstance(before, dict):
        raise ConfigError(f"{saved}: holds no settings; restore it or choose another output_dir")
    changed = differences(before, settings)
    if changed:
        more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
        shown = ", ".join(changed[:3]) + more
        raise ConfigError(
            f"output_dir: {saved.parent} holds a run with other settings ({shown}); choose another"
        )


def _found(target: str) -> Any:
    """The object of that name, or None."""
    try:
        return get_object(target)
    except (ImportError, AttributeError, ValueError):
        return None


def _lies_in(name: str, packages: tuple[str, ...]) -> bool:
    return any(name == package or name.startswith(package + ".") for package in packages)


def _top_level(config_name: str) -> tuple[set[str], dict[str, Any]]:
    """The groups of a verb, and what else stands in its file."""
    content = yaml.safe_load((CONFIG_DIR / f"{config_name}.yaml").read_text())
    words = [word for entry in content.pop("defaults") if isinstance(entry, dict) for word in entry]
    content.pop("hydra")
    return {word for word in words if not word.startswith("override ")}, content


@cache
def _keys(config_name: str) -> set[str]:
    """All keys that a verb knows: those of its file, of the groups' files, and of our signatures that these name."""
    groups, content = _top_level(config_name)
    keys = {*groups, *content, *(key for key, _ in flatten(content))}
    for file in [file for group in groups for file in (CONFIG_DIR / group).glob("*.yaml")]:
        text = file.read_text()
        settings = yaml.safe_load(text) or {}
        settings.pop("defaults", None)
        settings = (
            settings if text.startswith("# @package _global_") else {file.parent.name: settings}
        )
        keys |= {key for key, _ in flatten(settings)}
        for key, node in nodes_with_target(settings):
            found = (
                _found(node["_target_"])
                if _lies_in(node["_target_"], ("tversky_seg", "torch"))
                else None
            )
            keys |= (
                {f"{key}.{name}" for name in inspect.signature(found).parameters}
                if found
                else set()
            )
    return keys


def _choices(group: str) -> list[str]:
    return sorted(path.stem for path in (CONFIG_DIR / group).glob("*.yaml"))


def _missing_choice(fault: MissingConfigException) -> str:
    group, _, choice = (fault.missing_cfg_file or "").rpartition("/")
    choices = _choices(group) if group else []
    if not choices:
        return f"{group or 'settings'}: no choice named {choice}; there is none in {CONFIG_DIR / group}"
    hint = nearest(choice, choices)
    return (
        f"{group}: no choice named {choice!r}; {hint}"
        + f" ({', '.join(choices)})" * hint.startswith("did")
    )


def _name_of_sweep(output_dir: str | None) -> str:
    return str(output_dir or "runs/sweep")


def _name_of_setting(overrides: Sequence[str]) -> str:
    """A directory's name for what a sweep's job sets: slashes replaced, paths last, hashed if long."""
    deciding = [
        word.replace("'", "") for word in overrides if not is_free(word.lstrip("+~").split("=")[0])
    ]
    words = ",".join(sorted(deciding, key=lambda word: ("/" in word, word)))
    name = re.sub(r"[^\w.,=+-]+", "_", words) or "default"
    return (
        name
        if len(name) <= 200
        else f"{name[:190]}_{hashlib.sha256(words.encode()).hexdigest()[:8]}"
    )


OmegaConf.register_new_resolver("tversky_seg_sweep_dir", _name_of_sweep, replace=True)
OmegaConf.register_new_resolver("tversky_seg_setting", _name_of_setting, replace=True)
