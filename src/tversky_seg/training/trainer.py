"""The trainer: optimiser updates, whole-volume validation, checkpoints, resuming."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tversky_seg.data.patches.batch import Batch
from tversky_seg.data.patches.batches import PatchBatches
from tversky_seg.data.patches.loader import load_batches, resolve_n_workers
from tversky_seg.losses.deep_supervision import with_deep_supervision
from tversky_seg.losses.lesion_terms import with_ratio_of
from tversky_seg.models.recompute import recompute_blocks
from tversky_seg.runtime.devices import (
    log_precision,
    pick_device,
    resolve_precision,
    to_device,
    use_deterministic_algorithms,
    use_fastest_algorithms,
    use_threads,
    warn_of_faulty_cudnn,
)
from tversky_seg.runtime.distributed import any_process, rank, wrap_ddp
from tversky_seg.runtime.preemption import Preempted, defer_signals
from tversky_seg.runtime.trackers import check_trackers
from tversky_seg.runtime.warm_start import start_network
from tversky_seg.training.compiling import is_compilable, should_compile
from tversky_seg.training.cuda_graph import graphed
from tversky_seg.training.ema import WeightAverage
from tversky_seg.training.optimizer_state import (
    can_skip_on_device,
    load_optimizer_state,
    make_optimizer,
    step_unless,
)
from tversky_seg.training.ranges import check_ranges
from tversky_seg.training.run import TrainingRun
from tversky_seg.training.saved_buffers import SavedBuffers
from tversky_seg.training.schedules import constant
from tversky_seg.training.step import forward_backward
from tversky_seg.training.step_result import StepResult, mark_time
from tversky_seg.training.validation import Validation

logger = logging.getLogger("tversky_seg")


@dataclass(kw_only=True, eq=False)
class Trainer:
    """Trains a network and keeps two checkpoints: the last, and the best on validation.

    Step k sees batch k and a torch RNG seeded by (seed, k) alone, so a run that was stopped resumes
    bit for bit as if it had not been. Under torchrun, the processes share each batch and the
    validation cases.

        trainer = Trainer(model=UNet3D(in_channels=1, out_channels=1), loss=TverskyLoss())
        best = trainer.fit(batches, Path("runs/first"))

    Raises:
        ValueError: A setting is out of range; with its name and value, before any data are read.
    """

    model: nn.Module
    """Network from images (B, C, X, Y, Z) to logits (B, K, X, Y, Z)."""

    loss: nn.Module
    """`(logits, target, weight) -> scalar`."""

    optimizer: Callable[..., torch.optim.Optimizer] = torch.optim.AdamW
    """Makes the optimizer from the parameters."""

    schedule: Callable[[int, int], float] = constant
    """`(step, max_steps) -> factor` on the learning rate."""

    weighting: Callable[..., Tensor] | None = None
    """`(components, n_labels=bound)` -> voxel weights, of lesion components (B, K, X, Y, Z)."""

    lesion_term: nn.Module | None = None
    """`(logits, target, lesions, weight, n_labels=bound) -> scalar`, added to the loss."""

    max_steps: int = 20_000
    """Optimiser updates in all."""

    batch_size: int = 2
    """Patches in the global batch. The maker of the batches reads it here."""

    accumulate: int = 1
    """Equal parts in which a batch goes through the network, to fit into memory."""

    validate_every: int = 1000
    """Steps between validations. The last step always validates."""

    checkpoint_every: int = 500
    """Steps between checkpoints. The last step always writes one."""

    log_every: int = 10
    """Steps that a row of metrics.csv averages."""

    monitor: str = "dice"
    """Validation metric whose highest value makes a checkpoint the best."""

    patience: int | None = None
    """Validations in a row without a new best that end the training. None: never."""

    max_hours: float | None = None
    """Hours since the command began after which the run stops, to be resumed. None: no limit."""

    init_from: Path | str | None = None
    """Checkpoint whose weights to start from; `synthetic`: the network that the package carries,
    trained on synthetic patients. The first layer is adapted to other modalities, kernels to thick
    slices, and the log says so. `auto` is replaced by `synthetic` where a modality is FLAIR and the
    weights fit, otherwise by None."""

    init_strict: bool = True
    """Whether all of these weights must fit. If not, the others are left out and listed."""

    ema_decay: float | None = None
    """Decay of a moving average of the weights, such as 0.999, which is then validated and kept.
    None: the weights themselves are."""

    clip_norm: float = 1.0
    """Largest norm of the whole gradient."""

    max_skipped: int = 20
    """Consecutive steps without a finite gradient, hence skipped, that end the run."""

    device: str = "auto"
    """`auto`, `cpu` or `cuda`."""

    precision: str = "auto"
    """`fp32`, `tf32`, `bf16` or `fp16` in the network; weights and losses stay float32. `auto` is
    replaced by the fastest that the device has, and by fp32 on a CPU."""

    compile: bool | str = "auto"
    """Compile the network with torch. `auto`: in a long training on CUDA where that is possible,
    but not with group norm, which has kernels of its own."""

    cuda_graph: bool | str = "auto"
    """Start all kernels of the network by one call: `auto`, in one process on CUDA, where the step
    needs little of its memory. Not with `compile`, `recompute` or `accumulate`."""

    recompute: bool = False
    """Keep only the inputs of the network's blocks for the backward pass: less memory, about a
    third slower."""

    deterministic: bool = False
    """Use deterministic algorithms on CUDA, too; on the CPU they always are."""

    n_workers: int | str = 0
    """Loader processes; 0 loads in this one, `auto` takes 2 on a CPU and as many as there are cores
    for, at most 8, on a GPU. The batches are the same for any number."""

    threads: int | None = None
    """CPU threads. None leaves OMP_NUM_THREADS in force."""

    trackers: Sequence[str] | None = None
    """`mlflow` and `wandb` receive the numbers of metrics.csv, results and report as well."""

    seed: int = 0
    """Seed of everything random in a step."""

    modalities: Sequence[str] = ()
    """Names of the channels of the images, by which `init_from` is adapted."""

    def __post_init__(self) -> None:
        """Check the settings and build everything that can refuse one."""
        check_ranges(self)
        # These refuse a wrong setting themselves.
        check_trackers(self.trackers or ())
        use_threads(self.threads)
        self.torch_device = pick_device(self.device)
        resolve_n_workers(self.n_workers, self.torch_device)
        self.precision = resolve_precision(self.precision, self.torch_device)
        self.schedule(0, self.max_steps)
        # Logged when a training begins: the run has its log by then.
        self.init_from, self.start_notes = start_network(
            self.model, self.init_from, is_strict=self.init_strict, modalities=self.modalities
        )

        # The network has three names:
        #   model            the bare network, whose state dict checkpoints hold;
        #   network          the same weights as a step runs them: compiled, recorded as a CUDA
        #                    graph, or shared by processes;
        #   average.network  the network to validate and predict with: the moving average, or the
        #                    model itself where ema_decay is None.
        to_device(self.model, self.torch_device)
        self.network = self.model
        self.is_compiled = False
        self.is_graphed = False
        self.average = WeightAverage(self.model, decay=self.ema_decay)

        if self.lesion_term is not None:
            self.lesion_term = with_ratio_of(self.lesion_term, self.loss).to(self.torch_device)
        self.loss = with_deep_supervision(self.loss).to(self.torch_device)
        self.weights = list(self.model.parameters())
        self.torch_optimizer = make_optimizer(self.optimizer, self.weights, self.torch_device)
        # The schedule multiplies these, so that the rate of a step follows from the step alone.
        self.base_rates = [group["lr"] for group in self.torch_optimizer.param_groups]
        # bf16 has the range of float32; only fp16 needs its loss scaled.
        self.scaler = torch.amp.GradScaler(self.torch_device.type, enabled=self.precision == "fp16")

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
            batches: Batches by step; batch k is a pure function of (seed, k).
            output_dir: Run directory, for checkpoints/, metrics.csv, timings.csv and tensorboard/.
            validate: Function that validates a network on whole volumes. Without it the best
                checkpoint is the last.
            keep: Plain values to keep in each checkpoint (config, preprocessing).

        Returns:
            The file of the best checkpoint.

        Raises:
            CheckpointError: A checkpoint cannot be read or written, or another process trains in
                `output_dir`.
            FloatingPointError: `max_skipped` steps in a row had no finite gradient.
            Preempted: A signal came, or `max_hours` are over. A checkpoint is written, and the same
                call resumes from it.
        """
        run = TrainingRun(self, output_dir, validate=validate, keep=keep or {})
        with run.locked():
            run.resume()
            if run.is_complete():
                return run.best
            if run.state.step == 0:
                for note in self.start_notes:
                    logger.info(note)
            log_precision(self.precision, self.torch_device)
            self.network = self._prepare_network(n_steps=self.max_steps - run.state.step)
            with run.recording(), defer_signals():
                try:
                    self._train(run, batches)
                except Preempted as stop:
                    run.save_last()
                    progress = f"after step {run.state.step} of {self.max_steps}"
                    raise Preempted(f"{stop} {progress}, checkpoint written") from None
            run.finish()
        # A CUDA graph keeps up to half of the GPU's memory, which the prediction may use.
        self.network = self.model
        return run.best

    def _train(self, run: TrainingRun, batches: PatchBatches) -> None:
        """Take the remaining steps of a run."""
        remaining_batches = load_batches(
            batches,
            start=run.state.step,
            stop=self.max_steps,
            n_workers=resolve_n_workers(self.n_workers, self.torch_device),
            device=self.torch_device,
        )
        # The loader is a generator: workers start with the first batch, after this.
        run.repeat_interrupted_validation()
        is_first = True
        for step, batch in enumerate(remaining_batches, run.state.step + 1):
            if is_first:
                self._try_compiled(run, batch)
                self.use_graph(batch)
                run.record_computation()
                is_first = False
            result = self.train_step(step, batch)
            run.count_step(step, result, batch)
            # Before the validation, which may take longer than a scheduler waits after its signal;
            # a validation that was due is then made up for when the run resumes.
            run.stop_if_asked()
            run.validate_if_due()
            run.save_if_due()
            if run.is_over():
                break

    def train_step(self, step: int, batch: Batch) -> StepResult:
        """Make one update, from the batch and a random stream that depend on the step alone.

        Args:
            step: Number of the update, from 1.
            batch: Patches, with their components where there is a weighting or a lesion term.

        Returns:
            The result. A GPU may still compute the step then; reading the result waits for it.
        """
        start = mark_time(self.torch_device)
        # Dropout must differ from step to step and between processes, and repeat when resumed.
        # Seeds are a million steps apart, so that seed 1 draws other numbers than seed 0.
        torch.manual_seed(self.seed * 1_000_003 + step + 2**40 * rank())
        factor = self.schedule(step - 1, self.max_steps)
        for group, base_rate in zip(
            self.torch_optimizer.param_groups, self.base_rates, strict=True
        ):
            group["lr"] = base_rate * factor

        buffers = SavedBuffers(self.model)
        if not self.model.training:
            self.model.train()
        self.torch_optimizer.zero_grad()
        loss = forward_backward(
            self.network,
            self.loss,
            batch,
            weighting=self.weighting,
            scaler=self.scaler,
            device=self.torch_device,
            precision=self.precision,
            n_parts=self.accumulate,
            lesion_term=self.lesion_term,
        )
        # The norm must be that of the true gradient, not of the scaled one.
        self.scaler.unscale_(self.torch_optimizer)
        norm = nn.utils.clip_grad_norm_(self.weights, self.clip_norm)
        # A single NaN or infinite entry makes the norm so, and the processes share one gradient:
        # all of them skip the same step.
        is_skipped = torch.isfinite(norm).logical_not()
        self._update_unless(is_skipped, step=step, buffers=buffers)
        self.scaler.update()  # after an overflow in fp16 the next step is scaled less
        return StepResult(loss, is_skipped, start=start)

    def _update_unless(self, is_skipped: Tensor, *, step: int, buffers: SavedBuffers) -> None:
        """Update weights and average, or put back the buffers."""
        if can_skip_on_device(self.torch_optimizer):
            # A GPU decides by itself, so that the host can go on to the next step.
            step_unless(self.torch_optimizer, is_skipped)
            buffers.put_back(is_skipped)
            self.average.update(step, is_skipped=is_skipped)
        elif bool(is_skipped):  # the host waits here for a GPU
            buffers.put_back()
        else:
            self.torch_optimizer.step()
            self.average.update(step)

    @property
    def needs_components(self) -> bool:
        """Whether the batches must hold the components of the lesions."""
        return self.weighting is not None or self.lesion_term is not None

    @property
    def reach_of_cells_mm(self) -> float | None:
        """How far the cells of the lesions must reach; None: the batches need none."""
        return getattr(self.lesion_term, "max_distance_mm", None)

    def entries_to_resume(self) -> dict[str, Any]:
        """Return optimizer, schedule and loss scale as entries of a checkpoint."""
        return {
            "optimizer": self.torch_optimizer.state_dict(),
            "schedule": {"base_rates": self.base_rates},
            "scaler": self.scaler.state_dict(),
        }

    def load_state(self, checkpoint: Mapping[str, Any]) -> None:
        """Load weights, optimizer and loss scale of last.pt."""
        self.average.load_state(checkpoint)
        load_optimizer_state(self.torch_optimizer, checkpoint["optimizer"])
        self.scaler.load_state_dict(checkpoint["scaler"])

    def _prepare_network(self, *, n_steps: int | None = None) -> nn.Module:
        """Give the model the properties that only training needs; its weights stay shared.

        Args:
            n_steps: Steps that remain; None: all.
        """
        if self.deterministic:
            use_deterministic_algorithms()
        elif self.torch_device.type == "cuda":
            use_fastest_algorithms()
            warn_of_faulty_cudnn()
        if self.recompute:
            recompute_blocks(self.model)
        self.is_compiled = should_compile(
            self.compile,
            self.model,
            self.torch_device,
            n_steps=self.max_steps if n_steps is None else n_steps,
            is_deterministic=self.deterministic,
        )
        network = self.model
        if self.is_compiled:
            network = torch.compile(self.model)  # type: ignore[assignment]
        return wrap_ddp(network, self.torch_device)

    def _try_compiled(self, run: TrainingRun, batch: Batch) -> None:
        """Compile before the first step; if that fails in any process, train without."""
        if not self.is_compiled:
            return
        run.stopwatch.lap("data_wait_s")
        self.model.train()
        image = batch.image.chunk(self.accumulate)[0]
        if any_process(
            not is_compilable(self.network, image, self.torch_device, precision=self.precision)
        ):
            self.is_compiled = False
            self.network = wrap_ddp(self.model, self.torch_device)
        run.stopwatch.lap("compile_s")

    def use_graph(self, batch: Batch) -> None:
        """Replay a CUDA graph of the network from now on, where that is possible.

        Args:
            batch: Patches of the shape of every step.
        """
        # A second part of a batch would overwrite the gradients of the first.
        if self.is_compiled or self.recompute or self.accumulate > 1:
            return
        self.model.train()
        network = graphed(
            self.model,
            batch.image,
            self.torch_device,
            precision=self.precision,
            setting=self.cuda_graph,
        )
        if network is not None:
            self.network = network
            self.is_graphed = True
