"""Training: steps, whole-volume validation, checkpoints. What varies is handed in."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tversky_seg.data.patches.batches import Batch, PatchBatches
from tversky_seg.data.patches.loader import load_batches
from tversky_seg.losses.deep_supervision import with_deep_supervision
from tversky_seg.models.recompute import recompute_blocks
from tversky_seg.runtime.checkpoints import State, load_newest, save_checkpoint, warm_start
from tversky_seg.runtime.devices import autocast, for_training, pick_device, to_device, use_threads
from tversky_seg.runtime.distributed import any_process, is_first, rank, wait_for_all, wrap_ddp
from tversky_seg.runtime.preemption import Preempted, allow_signals, defer_signals, reason_to_stop
from tversky_seg.runtime.progress import Reporter
from tversky_seg.runtime.recorder import Recorder, SilentRecorder, Stopwatch, open_recorder
from tversky_seg.runtime.trackers import check_trackers
from tversky_seg.training.ema import WeightAverage
from tversky_seg.training.step import (
    check_parts,
    check_positive,
    loss_and_gradient,
    no_finite_gradient,
)
from tversky_seg.training.validation import Validation

logger = logging.getLogger("tversky_seg")


class Trainer:
    """Trains a network for a number of steps and keeps two checkpoints: the last, and the best on validation.

    Step k sees batch k and a torch RNG seeded by (seed, k) alone, so a run that was stopped goes on, bit for bit, as
    if it had not been. Under torchrun, processes share each batch and the validation cases.

    Args:
        model: Network from images (B, C, X, Y, Z) to logits (B, K, X, Y, Z).
        loss: `(logits, target, weight) -> scalar`.
        optimizer: Makes the optimizer from the parameters.
        schedule: `(step, max_steps) -> factor` on the learning rate.
        weighting: Makes voxel weights from lesion components (B, K, X, Y, Z), or None.
        max_steps: Optimiser updates in all.
        batch_size: Patches in the global batch; whoever makes the batches reads it here.
        accumulate: Equal parts in which a batch goes through the network, to fit into memory.
        validate_every: Steps between validations; the last step always validates.
        checkpoint_every: Steps between checkpoints; the last step always writes one.
        log_every: Steps that a row of metrics.csv averages.
        monitor: The validation measure whose highest value makes a checkpoint the best.
        patience: So many validations in a row without a new best end the training; None: never.
        max_hours: After so many hours since the command began the run stops; the same command goes on. None: never.
        init_from: A checkpoint whose weights to start from.
        init_strict: Whether all weights must fit; else those that do not are left out and listed.
        ema_decay: Judge and keep the moving average of the weights with this decay, such as 0.999; None: the weights.
        clip_norm: Largest norm of the whole gradient.
        max_skipped: A step without a finite gradient is skipped; after so many in a row the run stops.
        device: `auto`, `cpu` or `cuda`.
        precision: `fp32`, `bf16` or `fp16` for the forward pass; weights and losses stay float32.
        compile: Have torch compile the network for training.
        recompute: Keep only the inputs of the network's blocks for backward: less memory, about a third slower.
        deterministic: Ask for deterministic algorithms on CUDA as well; on the CPU they always are.
        n_workers: Loader processes; 0 loads in this one. The batches are the same for any number.
        threads: CPU threads; None leaves OMP_NUM_THREADS in force.
        trackers: Of `mlflow` and `wandb`; what is recorded is sent there as well.
        seed: Seed of everything random in a step.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: nn.Module,
        *,
        optimizer: Callable[..., torch.optim.Optimizer] = torch.optim.AdamW,
        schedule: Callable[[int, int], float] = lambda step, max_steps: 1.0,
        weighting: Callable[[Tensor], Tensor] | None = None,
        max_steps: int = 20000,
        batch_size: int = 2,
        accumulate: int = 1,
        validate_every: int = 1000,
        checkpoint_every: int = 500,
        log_every: int = 10,
        monitor: str = "dice",
        patience: int | None = None,
        max_hours: float | None = None,
        init_from: Path | None = None,
        init_strict: bool = True,
        ema_decay: float | None = None,
        clip_norm: float = 1.0,
        max_skipped: int = 20,
        device: str = "auto",
        precision: str = "fp32",
        compile: bool = False,
        recompute: bool = False,
        deterministic: bool = False,
        n_workers: int = 0,
        threads: int | None = None,
        trackers: Sequence[str] | None = None,
        seed: int = 0,
    ) -> None:
        counts = (
            "max_steps",
            "batch_size",
            "validate_every",
            "checkpoint_every",
            "log_every",
            "max_skipped",
        )
        for name, least in {
            **dict.fromkeys((*counts, "patience"), 1),
            "n_workers": 0,
            "seed": 0,
        }.items():
            if (value := locals()[name]) is not None and value < least:
                raise ValueError(f"{name} must be >= {least}, got {value}")
        check_positive(clip_norm=clip_norm, max_hours=max_hours)
        check_parts(accumulate, batch_size=batch_size)
        use_threads(threads)
        self.device = pick_device(device)
        autocast(
            self.device, precision
        )  # refuses another precision, and the schedule its arguments,
        schedule(0, max_steps)  # before any data are read
        warm_start(model, init_from, is_strict=init_strict)
        self.model, self.loss = (
            to_device(model, self.device),
            with_deep_supervision(loss).to(self.device),
        )
        self.average = WeightAverage(self.model, decay=ema_decay)
        self.recompute = recompute
        self.for_training = partial(for_training, compile=compile, deterministic=deterministic)
        self.optimizer, self.schedule, self.clip_norm = (
            optimizer(model.parameters()),
            schedule,
            clip_norm,
        )
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=precision == "fp16")
        how = dict[str, Any](
            precision=precision, n_parts=accumulate, weighting=weighting, scaler=self.scaler
        )
        self.gradient: Callable[..., float] = partial(loss_and_gradient, device=self.device, **how)
        self.base_rates = [group["lr"] for group in self.optimizer.param_groups]
        self.max_steps, self.batch_size, self.seed, self.n_workers = (
            max_steps,
            batch_size,
            seed,
            n_workers,
        )
        self.validate_every, self.checkpoint_every, self.log_every = (
            validate_every,
            checkpoint_every,
            log_every,
        )
        self.monitor, self.patience, self.max_hours, self.max_skipped = (
            monitor,
            patience,
            max_hours,
            max_skipped,
        )
        self.network, self.state = self.model, State()
        self.trackers = check_trackers(trackers or ())

    def fit(
        self,
        batches: PatchBatches,
        output_dir: Path,
        *,
        validate: Callable[[nn.Module], Validation] | None = None,
        keep: Mapping[str, Any] | None = None,
    ) -> Path:
        """Train to `max_steps`, from the last checkpoint in `output_dir` if there is one.

        Args:
            batches: Batch k, a pure function of (seed, k).
            output_dir: Gets checkpoints/, metrics.csv, timings.csv and tensorboard/.
            validate: Judges the network on whole volumes; without it the best checkpoint is the last.
            keep: Plain values to keep in each checkpoint (config, preprocessing).

        Returns:
            The file of the best checkpoint.

        Raises:
            FloatingPointError: After `max_skipped` steps in a row without a finite gradient.
            Preempted: A signal came or `max_hours` are over; a checkpoint is written, and the same call goes on.
        """
        last, previous, best = (
            output_dir / "checkpoints" / f"{name}.pt" for name in ("last", "previous", "best")
        )
        self.keep = dict(keep or {})
        self._resume(last, previous)
        state, watch = self.state, Stopwatch()
        is_pending = bool(
            validate and state.judged < state.step and self._is_due(self.validate_every)
        )
        if self._is_over() and best.exists() and not is_pending:
            return best
        if not validate:
            logger.info("no validation cases: the best checkpoint is the last, the threshold 0.5")
        if self.recompute:
            recompute_blocks(self.model)
        self.network = wrap_ddp(self.for_training(self.model), self.device)
        loading: dict[str, Any] = {"n_workers": self.n_workers, "device": self.device}
        loader = load_batches(batches, start=state.step, stop=self.max_steps, **loading)
        recording = closing(open_recorder(output_dir, from_step=state.step, trackers=self.trackers))
        shown = Reporter("train", total=self.max_steps, done=state.step)
        with recording as recorder, shown as progress, defer_signals():
            try:
                if is_pending and validate:
                    self._judge(validate, recorder, best)
                    self._save(last, previous=previous)
                for step, batch in enumerate(loader, state.step + 1):
                    watch.lap("data_wait_s")
                    self._step(step, batch)
                    watch.lap("step_s")
                    progress.advance(f"loss {np.mean(state.losses):.3f}")
                    is_to_validate = self._is_due(self.validate_every)
                    if (
                        is_to_validate
                        or self._is_due(self.checkpoint_every)
                        or self._is_due(self.log_every)
                    ):
                        self._write_row(recorder, watch)
                    if any_process((reason := reason_to_stop(self.max_hours)) is not None):
                        raise Preempted(reason or "another process was stopped")
                    if validate and is_to_validate:
                        self._judge(validate, recorder, best)
                        watch.lap("validation_s")
                    if self._is_due(self.checkpoint_every) or self._is_over():
                        self._save(last, previous=previous)
                        watch.lap("checkpoint_s")
                    if self._is_over():
                        break
            except Preempted as stop:
                self._save(last, previous=previous)
                raise Preempted(
                    f"{stop} after step {state.step} of {self.max_steps}, checkpoint written"
                ) from None
        if not validate:
            self._save(best, is_judged=True)
        wait_for_all()
        return best

    def _step(self, step: int, batch: Batch) -> None:
        """One update, from the batch and a random stream that depend on the step alone."""
        torch.manual_seed(self.seed * 1_000_003 + step + 2**40 * rank())
        for group, base_rate in zip(self.optimizer.param_groups, self.base_rates, strict=True):
            group["lr"] = base_rate * self.schedule(step - 1, self.max_steps)
        self.model.train()
        self.optimizer.zero_grad()
        self.state.losses.append(self.gradient(self.network, self.loss, batch))
        self.scaler.unscale_(self.optimizer)
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.clip_norm)
        is_finite, state = bool(torch.isfinite(norm)), self.state
        state.n_skipped += not is_finite
        state.n_skipped_in_a_row = 0 if is_finite else state.n_skipped_in_a_row + 1
        if state.n_skipped_in_a_row >= self.max_skipped:
            raise no_finite_gradient(step, batch, n_in_a_row=state.n_skipped_in_a_row)
        if is_finite:
            self.scaler.step(self.optimizer)
        self.scaler.update()
        self.average.update(step)
        state.step = step

    def _judge(
        self,
        validate: Callable[[nn.Module], Validation],
        recorder: Recorder | SilentRecorder,
        best: Path,
    ) -> None:
        """Judge the network on whole volumes, keep what was chosen there, and the network if it is the best so far."""
        state = self.state
        with allow_signals():
            found = validate(self.average.network)
        if self.monitor not in found.measures:
            raise ValueError(
                f"monitor: {self.monitor} is not measured; choose one of {', '.join(found.measures)}"
            )
        recorder.metrics(
            state.step, {f"val_{name}": value for name, value in found.measures.items()}
        )
        recorder.pictures(state.step, found.pictures)
        state.threshold, state.min_volume_mm3, state.judged = (
            found.threshold,
            found.min_volume_mm3,
            state.step,
        )
        value, chosen = (
            found.measures[self.monitor],
            f"threshold {found.threshold}, from {found.min_volume_mm3} mm3",
        )
        logger.info("step %d: validation %s %.4f, %s", state.step, self.monitor, value, chosen)
        is_best = value > state.best or state.best == -math.inf
        state.n_without_gain = 0 if value > state.best else state.n_without_gain + 1
        state.best = value if value > state.best else state.best
        if is_best:
            self._save(best, is_judged=True)

    def _is_due(self, every: int) -> bool:
        return self.state.step % every == 0 or self.state.step == self.max_steps

    def _is_over(self) -> bool:
        return self.state.step == self.max_steps or self.state.n_without_gain >= (
            self.patience or math.inf
        )

    def _write_row(self, recorder: Recorder | SilentRecorder, watch: Stopwatch) -> None:
        state, rate = self.state, self.optimizer.param_groups[0]["lr"]
        row = {
            "loss": float(np.mean(state.losses)),
            "learning_rate": rate,
            "skipped": state.n_skipped,
        }
        recorder.metrics(state.step, row)
        recorder.timings(state.step, watch.read(n_steps=len(state.losses)))
        state.losses.clear()

    def _save(self, path: Path, *, previous: Path | None = None, is_judged: bool = False) -> None:
        """Write a checkpoint; of the network that was judged, or to go on from."""
        parts = {
            "optimizer": self.optimizer.state_dict(),
            "schedule": {"base_rates": self.base_rates},
        }
        parts |= {"scaler": self.scaler.state_dict(), **asdict(self.state), **self.keep}
        if is_first():
            save_checkpoint(
                path, {**self.average.weights(is_judged=is_judged), **parts}, previous=previous
            )

    def _resume(self, *checkpoints: Path) -> None:
        """Go back to where the newest readable checkpoint was written; stay at the start without one."""
        if (kept := load_newest(*checkpoints)) is None:
            return
        self.average.load_state(kept)
        self.optimizer.load_state_dict(kept["optimizer"])
        self.scaler.load_state_dict(kept["scaler"])
        self.state = State.of_checkpoint(kept)
        logger.info("going on from step %d of %d", self.state.step, self.max_steps)
