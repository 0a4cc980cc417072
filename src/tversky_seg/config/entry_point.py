"""Commands: a function of a composed config, called from a command line."""

from __future__ import annotations

import importlib
import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import hydra
from hydra.errors import HydraException
from omegaconf import DictConfig

from tversky_seg.config import hydra_loading
from tversky_seg.config.checks import ConfigError
from tversky_seg.config.command_line import read_command_line
from tversky_seg.config.composed_config import check_config, expand_home
from tversky_seg.config.config_files import CONFIG_DIR
from tversky_seg.config.help_page import help_page
from tversky_seg.config.log import close_log_file, is_first_process, log_to_terminal, logger
from tversky_seg.config.messages import one_line
from tversky_seg.config.run_directory import forget_failed_start, has_run, run_directory
from tversky_seg.config.sweep import best_value, describe_job, is_sweep
from tversky_seg.config.terminal import quiet_libraries
from tversky_seg.runtime.one_line import printable_line
from tversky_seg.runtime.preemption import EXIT_INTERRUPTED, Preempted, handle_signals
from tversky_seg.runtime.program import as_called
from tversky_seg.runtime.sturdy_output import sturdy_output

DONE = 0
SOME_FAILED = 1
FAILED = 2
"""Exit statuses; EXIT_PREEMPTED is 75."""

hydra_loading.install()

# What Hydra logs is said again, in one line.
logging.getLogger("hydra").addHandler(logging.NullHandler())


@dataclass
class Command:
    """A command: one-line errors and an exit status around a function of a composed config.

    Attributes:
        name: Name of its file in configs/, without the suffix.
        function: Work of one job, "module:function", imported when the settings have been checked.
            It takes the composed config and returns DONE or SOME_FAILED. Whatever it raises becomes
            one line on stderr and status 2; the traceback is shown only when the user sets
            HYDRA_FULL_ERROR=1.
        statuses: Exit status of each job that has ended: one, or those of a sweep.
        n_jobs: Number of jobs; None where a search decides.
        root_process: Process that reports.
        wants_traceback: Whether the user set HYDRA_FULL_ERROR=1.
    """

    name: str
    function: str
    statuses: list[int] = field(default_factory=list)
    n_jobs: int | None = 1
    root_process: int = 0
    wants_traceback: bool = False

    def __call__(self) -> None:
        """Run the jobs of the command line, and exit with the status of them all."""
        self.statuses = []
        # A launcher may run jobs in processes of its own, which get a copy of this object.
        self.root_process = os.getpid()
        self.wants_traceback = os.environ.get("HYDRA_FULL_ERROR") == "1"
        with sturdy_output(), quiet_libraries():
            status = self._run_all()
        sys.exit(status)

    def _run_all(self) -> int:
        """Hand the command line to Hydra, and name every way out."""
        try:
            line = read_command_line(sys.argv[1:], config_name=self.name)
            if line.wants_help:
                print(help_page(self.name, line.topic), end="")
                return DONE
            self.n_jobs = line.n_jobs
            # hydra.main reads sys.argv itself.
            sys.argv[1:] = line.words_for_hydra
            with _exceptions_from_hydra(), handle_signals():
                self._hydra_main()()
        except KeyboardInterrupt:
            return EXIT_INTERRUPTED
        except Preempted as stop:
            if is_first_process():
                print(f"stopped: {stop}; run the same command again to resume", file=sys.stderr)
            return stop.exit_status
        except Exception as fault:
            if self.wants_traceback:
                raise
            return self._report(fault)
        return self._overall_status()

    def _hydra_main(self) -> Callable[[], None]:
        """Give Hydra the function of one job, under the name of the function that it serves."""

        def job(cfg: DictConfig) -> float | None:
            return self._run_job(cfg)

        # Hydra derives the job's name from these, and a launcher pickles the job by them.
        job.__module__, _, job.__qualname__ = self.function.partition(":")
        decorate = hydra.main(
            config_path=str(CONFIG_DIR), config_name=self.name, version_base="1.3"
        )
        main: Callable[[], None] = decorate(job)
        return main

    def _run_job(self, cfg: DictConfig) -> float | None:
        """Run one job. A fault of it is reported, so that the other jobs of a sweep still run.

        Returns:
            In a sweep, the value that a search maximises.
        """
        # In a launcher's process nothing is set up yet.
        log_to_terminal()
        close_log_file()
        is_new_run = False
        try:
            if is_sweep():
                logger.info(describe_job(self.n_jobs))
            check_config(cfg, config_name=self.name)
            expand_home(cfg)
            is_new_run = self.name == "train" and not has_run(cfg)
            # Torch takes seconds to import, which a misspelt word need not wait for.
            from tversky_seg.runtime.distributed import process_group

            with process_group():
                self.statuses.append(self._function()(cfg))
        except Exception as fault:
            if is_new_run:
                forget_failed_start(cfg)
            if self.wants_traceback:
                raise
            where = f" (in {run_directory(cfg)})" if is_sweep() else ""
            if os.getpid() != self.root_process:
                # The launcher carries the fault to the root process, which reports it.
                raise ConfigError(one_line(fault, config_name=self.name) + where) from None
            self.statuses.append(self._report(fault, where=where))
        return best_value(run_directory(cfg)) if is_sweep() else None

    def _function(self) -> Callable[[DictConfig], int]:
        """Import the function of a job."""
        module, _, name = self.function.partition(":")
        function: Callable[[DictConfig], int] = getattr(importlib.import_module(module), name)
        return function

    def _report(self, fault: Exception, *, where: str = "") -> int:
        """Print one line on stderr; of several processes that meet the same fault, the first."""
        is_met_by_all = isinstance(fault, ConfigError | HydraException)
        if is_first_process() or not is_met_by_all:
            line = printable_line(one_line(fault, config_name=self.name) + where)
            print(f"error: {as_called(line)}", file=sys.stderr)
        return FAILED

    def _overall_status(self) -> int:
        """Summarise a sweep: SOME_FAILED when some of its jobs failed, FAILED when all did."""
        n_failed = len(self.statuses) - self.statuses.count(DONE)
        if 0 < n_failed < len(self.statuses):
            return SOME_FAILED
        return max(self.statuses, default=DONE)


@contextmanager
def _exceptions_from_hydra() -> Iterator[None]:
    """Have Hydra raise what it otherwise prints in several lines."""
    before = os.environ.get("HYDRA_FULL_ERROR")
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ["HYDRA_FULL_ERROR"]
        else:
            os.environ["HYDRA_FULL_ERROR"] = before
