"""Training: steps, whole-volume validation, checkpoints. What varies is handed in."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tversky_seg.checkpoints import load_newest, save_checkpoint
from tversky_seg.data.loaders import PatchBatches, load_batches
from tversky_seg.devices import autocast, pick_device, place, use_threads
from tversky_seg.progress import Reporter
from tversky_seg.recording import Recorder, Stopwatch

logger = logging.getLogger("tversky_seg")


@dataclass(frozen=True)
class Validation:
    """What whole volumes say of a network: measures by name, the threshold chosen on them, pictures to look at."""

    measures: Mapping[str, float]
    threshold: float | dict[str, float] = 0.5
    pictures: Mapping[str, np.ndarray] = field(default_factory=dict)


class Trainer:
    """Trains a network for a number of steps and keeps two checkpoints: the last, and the best on validation.

    Step k sees batch k and a torch RNG seeded by (seed, k) alone, so a run that was stopped goes on, bit for bit, as
    if it had not been.

    Args:
        model: Network from images (B, C, X, Y, Z) to logits (B, K, X, Y, Z).
        loss: `(logits, target, weight) -> scalar`.
        optimizer: Makes the optimizer from the parameters.
        schedule: `(step, max_steps) -> factor` on the learning rate.
        weighting: Makes voxel weights from lesion components (B, K, X, Y, Z), or None.
        max_steps: Optimiser updates in all.
        batch_size: Patches in the global batch; whoever makes the batches reads it here.
        validate_every: Steps between validations; the last step always validates.
        checkpoint_every: Steps between checkpoints; the last step always writes one.
        log_every: Steps that a row of metrics.csv averages.
        monitor: The validation measure whose highest value makes a checkpoint the best.
        clip_norm: Largest norm of the whole gradient.
        max_skipped: A step without a finite gradient is skipped; after so many in a row the run stops.
        device: `auto`, `cpu` or `cuda`.
        precision: `fp32`, `bf16` or `fp16` for the forward pass; weights and losses stay float32.
        n_workers: Loader processes; 0 loads in this one. The batches are the same for any number.
        threads: CPU threads; None leaves OMP_NUM_THREADS in force.
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
        validate_every: int = 1000,
        checkpoint_every: int = 500,
        log_every: int = 10,
        monitor: str = "dice",
        clip_norm: float = 1.0,
        max_skipped: int = 20,
        device: str = "auto",
        precision: str = "fp32",
        n_workers: int = 0,
        threads: int | None = None,
        seed: int = 0,
    ) -> None:
        counts = ("max_steps", "batch_size", "validate_every", "checkpoint_every", "log_every", "max_skipped")
        for name, least in {**dict.fromkeys(counts, 1), "n_workers": 0, "seed": 0}.items():
            if locals()[name] < least:
                raise ValueError(f"{name} must be >= {least}, got {locals()[name]}")
        if not clip_norm > 0:
            raise ValueError(f"clip_norm must be > 0, got {clip_norm}")
        use_threads(threads)
        self.device, self.precision = pick_device(device), precision
        autocast(self.device, precision)  # refuses another precision, and the schedule its arguments,
        schedule(0, max_steps)  # before any data are read
        self.model, self.loss, self.weighting = place(model, self.device), loss.to(self.device), weighting
        self.optimizer, self.schedule, self.clip_norm = optimizer(model.parameters()), schedule, clip_norm
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=precision == "fp16")
        self.base_rates = [group["lr"] for group in self.optimizer.param_groups]
        self.max_steps, self.batch_size, self.seed, self.n_workers = max_steps, batch_size, seed, n_workers
        self.validate_every, self.checkpoint_every, self.log_every = validate_every, checkpoint_every, log_every
        self.monitor, self.max_skipped = monitor, max_skipped
        self.n_skipped = self.n_skipped_in_a_row = 0
        self.best: float = -math.inf
        self.threshold: float | dict[str, float] = 0.5

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
        """
        last, previous, best = (output_dir / "checkpoints" / f"{name}.pt" for name in ("last", "previous", "best"))
        start = self._resume(last, previous)
        if start == self.max_steps and best.exists():
            return best
        if not validate:
            logger.info("no validation cases: the best checkpoint is the last, the threshold 0.5")
        watch, losses = Stopwatch(), list[float]()
        loader = load_batches(
            batches, start=start, stop=self.max_steps, n_workers=self.n_workers, pin_memory=self.device.type == "cuda"
        )
        recording = closing(Recorder(output_dir, from_step=start))
        with recording as recorder, Reporter("train", total=self.max_steps, done=start) as progress:
            for step, batch in enumerate(loader, start + 1):
                watch.lap("data_wait_s")
                losses.append(self._step(step, batch))
                watch.lap("step_s")
                progress.advance(f"loss {np.mean(losses):.3f}")
                is_checkpoint = self._is_due(step, self.checkpoint_every)
                if is_checkpoint or self._is_due(step, self.log_every):
                    rate = self.optimizer.param_groups[0]["lr"]
                    recorder.metrics(
                        step, {"loss": float(np.mean(losses)), "learning_rate": rate, "skipped": self.n_skipped}
                    )
                    recorder.timings(step, watch.read())
                    losses.clear()
                if validate and self._is_due(step, self.validate_every) and self._is_best(validate, recorder, step):
                    save_checkpoint(best, self._state(step, keep))
                if is_checkpoint:
                    save_checkpoint(last, self._state(step, keep), previous=previous)
                watch.lap("validation_s")
        if not validate:
            save_checkpoint(best, self._state(self.max_steps, keep))
        return best

    def _step(self, step: int, batch: Mapping[str, Any]) -> float:
        """One update; returns the loss."""
        torch.manual_seed(self.seed * 1_000_003 + step)
        for group, rate in zip(self.optimizer.param_groups, self.base_rates, strict=True):
            group["lr"] = rate * self.schedule(step - 1, self.max_steps)
        image, target = (batch[name].to(self.device, non_blocking=True) for name in ("image", "target"))
        weight = self.weighting(batch["components"].to(self.device)) if self.weighting else None
        self.model.train()
        with autocast(self.device, self.precision):
            logits = self.model(image)
        loss = self.loss(logits, target, weight)
        self.optimizer.zero_grad()
        self.scaler.scale(loss).backward()
        self.scaler.unscale_(self.optimizer)
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.clip_norm)
        if self._is_finite(norm, step, batch):
            self.scaler.step(self.optimizer)
        self.scaler.update()
        return float(loss.item())

    def _is_finite(self, norm: Tensor, step: int, batch: Mapping[str, Any]) -> bool:
        """Whether this step's gradient can be used; counts the steps that are skipped."""
        is_finite = bool(torch.isfinite(norm))
        self.n_skipped += not is_finite
        self.n_skipped_in_a_row = 0 if is_finite else self.n_skipped_in_a_row + 1
        if self.n_skipped_in_a_row >= self.max_skipped:
            patches = ", ".join(
                f"{case} at {start}" for case, start in zip(batch["case_ids"], batch["starts"], strict=True)
            )
            raise FloatingPointError(
                f"step {step}: no finite gradient in {self.n_skipped_in_a_row} steps in a row (patches: {patches}); "
                "lower optimizer.lr or use trainer.precision=fp32"
            )
        return is_finite

    def _is_best(self, validate: Callable[[nn.Module], Validation], recorder: Recorder, step: int) -> bool:
        """Judge the network on whole volumes, keep the threshold, and say whether it is the best so far."""
        found = validate(self.model)
        if self.monitor not in found.measures:
            raise ValueError(f"monitor: {self.monitor} is not measured; choose one of {', '.join(found.measures)}")
        recorder.metrics(step, {f"val_{name}": value for name, value in found.measures.items()})
        recorder.pictures(step, found.pictures)
        value = found.measures[self.monitor]
        logger.info("step %d: validation %s %.4f, threshold %s", step, self.monitor, value, found.threshold)
        self.threshold = found.threshold
        is_best = value > self.best or self.best == -math.inf
        self.best = value if value > self.best else self.best
        return is_best

    def _is_due(self, step: int, every: int) -> bool:
        return step % every == 0 or step == self.max_steps

    def _state(self, step: int, keep: Mapping[str, Any] | None) -> dict[str, Any]:
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": {"base_rates": self.base_rates},
            "scaler": self.scaler.state_dict(),
            "step": step,
            "best": self.best,
            "threshold": self.threshold,
            "n_skipped": [self.n_skipped, self.n_skipped_in_a_row],
            **(keep or {}),
        }

    def _resume(self, *checkpoints: Path) -> int:
        """Go back to where the newest readable checkpoint was written; 0 without one."""
        state = load_newest(*checkpoints)
        if state is None:
            return 0
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        self.best, self.threshold = state["best"], state["threshold"]
        self.n_skipped, self.n_skipped_in_a_row = state["n_skipped"]
        logger.info("going on from step %d of %d", state["step"], self.max_steps)
        return int(state["step"])
