"""Call the three verbs in this process, as a shell would."""

import contextlib
import importlib
import importlib.util
import io
import logging
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from unittest import mock

import hydra
from omegaconf import DictConfig

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
    command, out, err, status = _command(verb), io.StringIO(), io.StringIO(), 0
    argv = mock.patch.object(sys, "argv", [f"{verb}.py", *map(str, words)])
    with argv, _logger_put_back(), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            command()
        except SystemExit as ended:
            status = ended.code if isinstance(ended.code, int) else 1
    return Outcome(status, out.getvalue(), err.getvalue())


def train(manifest: Path, output_dir: Path | None, *words: object) -> Outcome:
    """Train on a manifest for four steps; the cache lies beside the manifest."""
    where = [] if output_dir is None else [f"output_dir={output_dir}"]
    cache = f"data.cache_dir={manifest.parent / 'cache'}"
    flags = [
        word for word in words if str(word).startswith("-")
    ]  # Hydra takes them before the overrides or after
    settings = [word for word in words if word not in flags]
    return call(
        "train",
        *flags,
        "data=manifest",
        f"data.manifest={manifest}",
        cache,
        *where,
        *SMALL,
        *settings,
    )


def _command(verb: str) -> Callable[[], None]:
    if str(ROOT) not in sys.path:
        sys.path.append(str(ROOT))
    command: Callable[[], None] = getattr(importlib.import_module(verb), verb)
    return command


@contextlib.contextmanager
def _logger_put_back():  # type: ignore[no-untyped-def]
    """The library's logger as it was before a verb sent it to terminal and file."""
    handlers, level, propagate = list(logger.handlers), logger.level, logger.propagate
    try:
        yield
    finally:
        for handler in set(logger.handlers) - set(handlers):
            logger.removeHandler(handler)
            handler.close()
        logger.level, logger.propagate = level, propagate


def composed(*words: str, verb: str = "train") -> DictConfig:
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
