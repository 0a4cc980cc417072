"""One call of `Trainer.fit`: its checkpoints and records, and how far the training has come."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from tversky_seg.data.patches.batch import Batch
from tversky_seg.inference.operating_point import DEFAULT_PEAK
from tversky_seg.runtime.checkpoints import CheckpointError, load_newest, save_checkpoint
from tversky_seg.runtime.distributed import any_process, is_first, wait_for_all
from tversky_seg.runtime.environment import record_computation
from tversky_seg.runtime.files import remove_scratch_files
from tversky_seg.runtime.locks import SECONDS_UNTIL_ABANDONED, Locked, lock_file
from tversky_seg.runtime.preemption import Preempted, allow_signals, reason_to_stop
from tversky_seg.runtime.progress import Reporter
from tversky_seg.runtime.recorder import Recorder, SilentRecorder, Stopwatch, open_recorder
from tversky_seg.training.step import no_finite_gradient, patch_names
from tversky_seg.training.step_result import StepResult
from tversky_seg.training.training_state import TrainingState
from tversky_seg.training.validation import Validation

if TYPE_CHECKING:
    from tversky_seg.training.trainer import Trainer

logger = logging.getLogger("tversky_seg")

SECONDS_TO_WAIT = SECONDS_UNTIL_ABANDONED + 20.0
"""Time to wait for the lock of a run directory.

A job that was killed leaves its lock behind, which counts as abandoned after a while. A scheduler
starts the job again at once, so it has to wait for longer than that.
"""


@dataclass(frozen=True)
class UnreadStep:
    """A step whose result the host has not read yet."""

    step: int
    result: StepResult
    learning_rate: float
    patches: list[str]


class TrainingRun:
    """Logs, validates, saves and stops when the settings of a trainer say so.

    Args:
        trainer: Settings, network and optimizer.
        output_dir: Run directory.
        validate: Function that validates a network, or None.
        keep: Plain values to keep in each checkpoint.
    """

    def __init__(
        self,
        trainer: Trainer,
        output_dir: Path,
        *,
        validate: Callable[[nn.Module], Validation] | None,
        keep: Mapping[str, Any],
    ) -> None:
        self.trainer = trainer
        self.output_dir = output_dir
        self.validate = validate
        self.keep = keep
        # last.pt is to resume from, previous.pt for the case that last.pt gets damaged, and best.pt
        # to predict with.
        self.last = output_dir / "checkpoints" / "last.pt"
        self.previous = output_dir / "checkpoints" / "previous.pt"
        self.best = output_dir / "checkpoints" / "best.pt"
        self.state = TrainingState()
        self._unread: UnreadStep | None = None
        self.stopwatch = Stopwatch()
        self.recorder: Recorder | SilentRecorder = SilentRecorder()
        self.progress = Reporter("train", total=trainer.max_steps)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Refuse a second training in the same directory, as of a job that was submitted twice.

        Raises:
            CheckpointError: Another process still trains there after the wait.
        """
        if not is_first():
            yield
            return
        self.output_dir.mkdir(parents=True, exist_ok=True)
        with ExitStack() as stack:
            try:
                lock = lock_file(self.output_dir / ".training.lock", wait_s=SECONDS_TO_WAIT)
                stack.enter_context(lock)
            except Locked as error:
                raise CheckpointError(
                    f"{self.output_dir}: {error.owner or 'another process'} is training there; "
                    "wait until it has ended, or choose another output_dir"
                ) from error
            remove_scratch_files(self.last.parent)
            yield

    def resume(self) -> None:
        """Return to the newest readable checkpoint; stay at the start without one."""
        checkpoint = load_newest(self.last, self.previous)
        if checkpoint is None:
            return
        self.trainer.load_state(checkpoint)
        self.state = TrainingState.from_checkpoint(checkpoint)
        if not self.is_complete():
            logger.info("resuming at step %d of %d", self.state.step, self.trainer.max_steps)

    def is_complete(self) -> bool:
        """Tell whether nothing is left to do: all steps, validations and best.pt are there."""
        return self.is_over() and self.best.exists() and not self._was_validation_interrupted()

    def is_over(self) -> bool:
        """Tell whether the last step is done, or patience is exhausted."""
        if self.state.step == self.trainer.max_steps:
            return True
        # Counted in validations, so that it does not depend on validate_every.
        patience = self.trainer.patience
        return patience is not None and self.state.n_without_gain >= patience

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Open metrics.csv, timings.csv, TensorBoard and trackers, and show progress."""
        if self.validate is None:
            logger.info(
                "no validation cases: using the last checkpoint, threshold 0.5 and temperature 1, "
                "lesions that never reach probability %g are removed (with all folds trained, "
                "`tversky-seg operating-point` chooses these on their held-out predictions)",
                DEFAULT_PEAK,
            )
        recorder = open_recorder(
            self.output_dir, from_step=self.state.step, trackers=self.trainer.trackers or ()
        )
        progress = Reporter("train", total=self.trainer.max_steps, done=self.state.step)
        with closing(recorder) as self.recorder, progress as self.progress:
            yield

    def record_computation(self) -> None:
        """Add to environment.json how steps are computed, where settings leave that open."""
        if not is_first():
            return
        trainer = self.trainer
        is_cuda = trainer.torch_device.type == "cuda"
        computation = {
            "precision": trainer.precision,
            "tf32": is_cuda and trainer.precision == "tf32",
            "compile": trainer.is_compiled,
            "cuda_graph": trainer.is_graphed,
            "fused_optimizer": bool(trainer.torch_optimizer.defaults.get("fused")),
            "cudnn_benchmark": is_cuda and torch.backends.cudnn.benchmark,
            "deterministic": trainer.deterministic or not is_cuda,
        }
        record_computation(self.output_dir / "environment.json", computation)

    def repeat_interrupted_validation(self) -> None:
        """Validate now if the run was stopped between a step and the validation due after it."""
        if self._was_validation_interrupted():
            self._validate()
            self.save_last()

    def count_step(self, step: int, result: StepResult, batch: Batch) -> None:
        """Count a step that was taken.

        A GPU may still compute it. Its result is then read while the GPU computes the next step, or
        at once before a validation and a checkpoint.

        Raises:
            FloatingPointError: As `read_result`.
        """
        self.read_result()
        self.state.step = step
        learning_rate = self.trainer.torch_optimizer.param_groups[0]["lr"]
        self._unread = UnreadStep(step, result, learning_rate, patch_names(batch))
        if not result.is_late or self._is_everything_due():
            self.read_result()

    def read_result(self) -> None:
        """Read the result of the last step, unless that is done, and write a row if one is due.

        Raises:
            FloatingPointError: This step and those before it were skipped, `max_skipped` in a row.
        """
        if self._unread is None:
            return
        unread = self._unread
        self._unread = None
        state = self.state
        # A skipped step shows in the row of metrics.csv: its loss is NaN or infinite there.
        state.losses.append(unread.result.loss)
        if unread.result.is_skipped:
            state.n_skipped += 1
            state.n_skipped_in_a_row += 1
        else:
            state.n_skipped_in_a_row = 0
        if state.n_skipped_in_a_row >= self.trainer.max_skipped:
            raise no_finite_gradient(
                unread.step, unread.patches, n_in_a_row=state.n_skipped_in_a_row
            )
        # What is not the step is the wait for its batch.
        self.stopwatch.split_lap("step_s", unread.result.seconds, rest="data_wait_s")
        self.progress.advance(f"loss {np.mean(state.losses):.3f}")
        # Before a validation and a checkpoint a row is always due.
        if self._is_everything_due() or unread.step % self.trainer.log_every == 0:
            self._write_row(unread)

    def stop_if_asked(self) -> None:
        """Raise Preempted if a signal came to any process, or the hours are over.

        The processes must agree, because a step needs all of them.
        """
        # Processes get a signal at different moments, or some of them none.
        reason = reason_to_stop(self.trainer.max_hours)
        if any_process(reason is not None):
            self.read_result()
            raise Preempted(reason or "another process was stopped")

    def validate_if_due(self) -> None:
        """Validate, and write best.pt if the network is the best so far."""
        if self.validate is not None and self._is_due(self.trainer.validate_every):
            self._validate()
            self.stopwatch.lap("validation_s")

    def save_if_due(self) -> None:
        """Write last.pt."""
        if self._is_due(self.trainer.checkpoint_every) or self.is_over():
            self.save_last()
            self.stopwatch.lap("checkpoint_s")

    def save_last(self) -> None:
        """Write last.pt to resume from, and keep the one before as previous.pt."""
        self._save(self.last, self.trainer.average.entries_to_resume(), previous=self.previous)

    def finish(self) -> None:
        """Make the last network the best one if nothing else has, and wait for all processes."""
        if self.validate is None:
            self._save_best()
        # The others must not look for best.pt before the first process has written it.
        wait_for_all()

    def _validate(self) -> None:
        assert self.validate is not None
        state = self.state
        # A validation is repeated as a whole, so a signal need not wait for its end.
        with allow_signals():
            validation = self.validate(self.trainer.average.network)
        value = self._monitored_value(validation)  # refuses before anything is written
        # The prefix tells "val_dice" from rows of the training, such as "loss".
        row = {f"val_{name}": number for name, number in validation.measures.items()}
        self.recorder.metrics(state.step, row)
        self.recorder.pictures(state.step, validation.pictures)
        state.threshold = validation.threshold
        state.min_volume_mm3 = validation.min_volume_mm3
        state.min_peak = validation.min_peak
        state.temperature = validation.temperature
        state.last_validation = state.step
        logger.info(
            "step %d: validation %s %.3f (%s)",
            state.step,
            _name_on_screen(self.trainer.monitor),
            value,
            describe_operating_point(validation),
        )
        # An undefined value (NaN) is never higher than another; before the first defined one
        # each network is the best so far.
        is_best = value > state.best or state.best == -math.inf
        if value > state.best:
            state.best = value
            state.n_without_gain = 0
        else:
            state.n_without_gain += 1
        if is_best:
            self._save_best()

    def _monitored_value(self, validation: Validation) -> float:
        monitor = self.trainer.monitor
        if monitor not in validation.measures:
            raise ValueError(
                f"monitor: {monitor} is not measured; "
                f"choose one of {', '.join(validation.measures)}"
            )
        return validation.measures[monitor]

    def _was_validation_interrupted(self) -> bool:
        if self.validate is None or self.state.last_validation == self.state.step:
            return False
        return self._is_due(self.trainer.validate_every)

    def _is_everything_due(self) -> bool:
        """Tell whether the last step is followed by a validation or a checkpoint."""
        trainer = self.trainer
        return self._is_due(trainer.validate_every) or self._is_due(trainer.checkpoint_every)

    def _is_due(self, every: int) -> bool:
        return self.state.step % every == 0 or self.state.step == self.trainer.max_steps

    def _write_row(self, last: UnreadStep) -> None:
        state = self.state
        row = {
            "loss": float(np.mean(state.losses)),
            "learning_rate": last.learning_rate,
            "skipped": state.n_skipped,
        }
        self.recorder.metrics(last.step, row)
        # Clocks go into a file of their own: metrics.csv repeats bit for bit.
        self.recorder.timings(last.step, self.stopwatch.read(n_steps=len(state.losses)))
        state.losses.clear()

    def _save_best(self) -> None:
        self._save(self.best, self.trainer.average.entries_to_predict())

    def _save(self, path: Path, weights: dict[str, Any], *, previous: Path | None = None) -> None:
        if not is_first():
            return
        # All entries are on the same level, where predict.py and older versions look for them.
        content = {
            **weights,
            **self.trainer.entries_to_resume(),
            **self.state.entries(),
            **self.keep,
        }
        save_checkpoint(path, content, previous=previous)


def describe_operating_point(validation: Validation) -> str:
    """Describe what a validation chose: "threshold 0.869, no minimum size, minimum peak 0.95"."""
    text = f"threshold {_format_by_class(validation.threshold, '{:.3f}')}"
    if _is_above_0(validation.min_volume_mm3):
        text += f", minimum size {_format_by_class(validation.min_volume_mm3, '{:g} mm³')}"
    else:
        text += ", no minimum size"
    if _is_above_0(validation.min_peak):
        text += f", minimum peak {_format_by_class(validation.min_peak, '{:g}')}"
    if validation.temperature != 1:
        text += f", temperature {_format_by_class(validation.temperature, '{:.3g}')}"
    return text


def _is_above_0(value: float | dict[str, float]) -> bool:
    return any(value.values()) if isinstance(value, dict) else value > 0


def _format_by_class(value: float | dict[str, float], form: str) -> str:
    if not isinstance(value, dict):
        return form.format(value)
    return ", ".join(f"{form.format(number)} for {name}" for name, number in value.items())


def _name_on_screen(measure: str) -> str:
    return "Dice" if measure == "dice" else measure
