"""What a term that counts each lesion costs and does: time, memory, and lesions of every size.

    python benchmarks/lesion_terms.py [--steps 60] [--terms none cc mil blob] [words of train.py]

The same training, with the same weights and batches, runs without a term and with each of them, one
step of each in turn, so that other work on the machine slows all of them alike. Printed are the
median time of a step, the largest memory that a step takes besides what is held between steps, the
losses, and of the lesions of the last batches the mean of the largest probability in each, and the
share of lesions in which that is below 0.1.
"""

import argparse
import statistics
from collections.abc import Sequence
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from torch.profiler import ProfilerActivity, profile

from tversky_seg import config
from tversky_seg.config.config_files import CONFIG_DIR
from tversky_seg.data.dataset import find_cases, with_modalities
from tversky_seg.data.patches.batch import Batch
from tversky_seg.data.patches.batches import PatchBatches
from tversky_seg.data.preprocessing.lesion_cells import with_cells
from tversky_seg.data.preprocessing.parallel import prepare_all
from tversky_seg.data.preprocessing.pipeline import preprocessing_of
from tversky_seg.training.trainer import Trainer

TERMS = ("none", "cc", "mil", "blob")
LAST = 10
"""Batches over which the largest probabilities are averaged."""


def compose_training(words: Sequence[str]) -> Any:
    """Compose the configuration of train.py."""
    with initialize_config_dir(str(CONFIG_DIR), version_base=None):
        return compose("train", overrides=["trainer.precision=fp32", *words])


def build_trainer(cfg: Any, *, n_channels: int, n_classes: int) -> Trainer:
    """Build a trainer; equal seeds give equal weights."""
    torch.manual_seed(cfg.seed)
    model = config.build(cfg, "model", in_channels=n_channels, out_channels=n_classes)
    parts = {name: config.build(cfg, name) for name in ("loss", "lesion_term", "weighting")}
    parts |= {name: config.build(cfg, name) for name in ("optimizer", "schedule")}
    trainer: Trainer = config.build(cfg, "trainer", model=model, seed=cfg.seed, **parts)
    return trainer


def build_batches(cfg: Any, *, max_distance_mm: float) -> PatchBatches:
    """Prepare all cases of the data set, with cells."""
    data = with_modalities(config.build(cfg, "data"))
    cases = [case for case in find_cases(data) if case.labels]
    prepared = prepare_all(cases, preprocessing_of(data, cases), cache_dir=data.cache_dir)
    return PatchBatches(
        with_cells(prepared, max_distance_mm=max_distance_mm),
        config.build(cfg, "sampler"),
        config.build(cfg, "augmentation"),
        batch_size=cfg.trainer.batch_size,
        seed=cfg.seed,
        with_components=True,
        with_cells=True,
    )


def largest_probabilities(trainer: Trainer, batch: Batch) -> list[float]:
    """List the largest probability in each lesion of a batch."""
    trainer.model.eval()
    with torch.no_grad():
        logits = trainer.model(batch.image.to(trainer.torch_device))
    probability = (logits if isinstance(logits, torch.Tensor) else logits[0]).sigmoid().cpu()
    assert batch.components is not None
    largest = []
    for patch, components in zip(
        probability.flatten(0, 1), batch.components.flatten(0, 1), strict=True
    ):
        for number in components.unique():
            if number > 0:
                largest.append(float(patch[components == number].max()))
    return largest


def bytes_of_a_step(trainer: Trainer, batch: Batch) -> int:
    """Measure the largest memory of a step, above what the trainer holds between steps."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        _ = trainer.train_step(1, batch).loss
    held = largest = 0
    for event in profiler.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            largest = max(largest, held)
    return largest


def main() -> None:
    """Train without and with each term, in turn."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=60, help="steps of each training (60)")
    parser.add_argument("--terms", nargs="+", default=TERMS, help="choices of lesion_term")
    options, words = parser.parse_known_args()
    trainers = {}
    for name in options.terms:
        cfg = compose_training(
            [*words, f"trainer.max_steps={options.steps}", f"lesion_term={name}"]
        )
        data = with_modalities(config.build(cfg, "data"))
        trainers[name] = build_trainer(
            cfg, n_channels=len(data.modalities), n_classes=len(data.classes)
        )
    batches = build_batches(compose_training(words), max_distance_mm=5.0)
    losses: dict[str, list[float]] = {name: [] for name in trainers}
    seconds: dict[str, list[float]] = {name: [] for name in trainers}
    largest: dict[str, list[float]] = {name: [] for name in trainers}
    for step in range(1, options.steps + 1):
        batch = batches[step - 1]
        for name, trainer in trainers.items():
            if step > options.steps - LAST:
                largest[name] += largest_probabilities(trainer, batch)
            result = trainer.train_step(step, batch)
            losses[name].append(result.loss)
            seconds[name].append(result.seconds)
            assert not result.is_skipped, f"{name}: no finite gradient at step {step}"
    print(
        "| lesion_term | ms a step | peak MB | first losses | last losses | largest p | below .1 |"
    )
    print("|---|---|---|---|---|---|---|")
    for name, trainer in trainers.items():
        peak = bytes_of_a_step(trainer, batches[0]) / 2**20
        first = statistics.fmean(losses[name][:LAST])
        last = statistics.fmean(losses[name][-LAST:])
        missed = statistics.fmean(p < 0.1 for p in largest[name])
        print(
            f"| {name} | {statistics.median(seconds[name]) * 1000:.0f} | {peak:.0f} | {first:.3f} "
            f"| {last:.3f} | {statistics.fmean(largest[name]):.3f} | {missed:.3f} |"
        )


if __name__ == "__main__":
    main()
