"""Call the three verbs in this process, as a shell would."""

import contextlib
import importlib.util
import io
import logging
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from unittest import mock

import hydra
from omegaconf import DictConfig

from tversky_seg.cli import command

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "configs"
logger = logging.getLogger("tversky_seg")

SMALL = (  # a training of seconds
    "model.width=4",
    "model.n_levels=2",
    "sampler.patch_size=16",
    "trainer.max_steps=4",
    "trainer.validate_every=2",
    "trainer.checkpoint_every=2",
    "trainer.n_workers=0",
)


@dataclass(frozen=True)
class Outcome:
    """What a command left: its exit status and what it printed."""

    status: int
    stdout: str
    stderr: str

    @property
    def error(self) -> str:
        """The one line on stderr; anything else there fails the test."""
        assert self.status == 2, (self.status, self.stdout, self.stderr)
        assert self.stderr.startswith("error: "), self.stderr
        assert self.stderr.count("\n") == 1, self.stderr
        assert self.stderr.endswith("\n"), self.stderr
        return self.stderr.removeprefix("error: ").strip()


def call(verb: str, *words: object) -> Outcome:
    """Run `python <verb>.py <words>` without a new process."""
    argv = [f"{verb}.py", *map(str, words)]
    stdout = io.StringIO()
    stderr = io.StringIO()
    status = 0
    with (
        mock.patch.object(sys, "argv", argv),
        _logger_put_back(),
        contextlib.redirect_stdout(stdout),
        contextlib.redirect_stderr(stderr),
    ):
        try:
            _command(verb)()
        except SystemExit as ended:
            # sys.exit(None) is success, sys.exit("text") is not.
            status = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    return Outcome(status, stdout.getvalue(), stderr.getvalue())


def train(manifest: Path, output_dir: Path | None, *words: object) -> Outcome:
    """Train on a manifest for four steps; the cache lies beside the manifest."""
    data = [
        "data=manifest",
        f"data.manifest={manifest}",
        f"data.cache_dir={manifest.parent / 'cache'}",
    ]
    if output_dir is not None:
        data.append(f"output_dir={output_dir}")
    return call("train", *data, *SMALL, *words)


def _command(verb: str) -> Callable[[], None]:
    return command("check" if verb == "check_data" else verb)


@contextlib.contextmanager
def _logger_put_back() -> Iterator[None]:
    """The library's logger as it was before a verb sent it to terminal and file."""
    handlers = list(logger.handlers)
    level = logger.level
    propagate = logger.propagate
    try:
        yield
    finally:
        for handler in set(logger.handlers) - set(handlers):
            logger.removeHandler(handler)
            handler.close()
        logger.level = level
        logger.propagate = propagate


def choices(group: str) -> list[str]:
    """List the choices of a group in configs/."""
    return sorted(path.stem for path in (CONFIGS / group).glob("[!_]*.yaml"))


def composed(*words: str, verb: str = "train") -> DictConfig:
    """Compose the config of a command as Hydra does."""
    with hydra.initialize_config_dir(str(CONFIGS), version_base="1.3"):
        return hydra.compose(verb, overrides=list(words))


def script(name: str) -> ModuleType:
    """Load scripts/<name>.py as a module."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module
