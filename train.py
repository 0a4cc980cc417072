"""Train a network, predict the test cases, judge the predictions. `python train.py --help` says what can be set."""

from dataclasses import asdict, replace
from functools import partial
from typing import Any

from omegaconf import DictConfig
from rich.console import Console
from torch import manual_seed

from tversky_seg import config
from tversky_seg.data.case import files_of
from tversky_seg.data.dataset import with_modalities
from tversky_seg.data.errors import DataError
from tversky_seg.data.patches.batches import PatchBatches
from tversky_seg.data.patches.draw_shares import log_draw_shares
from tversky_seg.data.patches.sampling import patch_sides
from tversky_seg.data.preprocessing.parallel import prepare_all
from tversky_seg.data.preprocessing.pipeline import preprocessing_of
from tversky_seg.data.preprocessing.prepared_case import one_case_per_rater
from tversky_seg.data.split import split_dataset
from tversky_seg.data_check.examine import check_training
from tversky_seg.inference.predict import predict_cases
from tversky_seg.report.page import metrics_table
from tversky_seg.runtime.checkpoints import checksum, load_checkpoint
from tversky_seg.runtime.distributed import is_first, rank, rank_zero_first, run_sharded, world_size
from tversky_seg.runtime.environment import record_environment
from tversky_seg.runtime.files import read_json
from tversky_seg.training.validation import check_monitor, validate


@config.command("train")
def train(cfg: DictConfig) -> int:
    """Build every part, then train, predict and judge; what an earlier call has done is kept."""
    data, sampler, augmentation, inference = (
        config.build(cfg, key) for key in ("data", "sampler", "augmentation", "inference")
    )
    loss, weighting, optimizer, schedule, evaluate = (
        config.build(cfg, key)
        for key in ("loss", "weighting", "optimizer", "schedule", "evaluation")
    )
    data = with_modalities(data)
    inference = replace(inference, patch_size=inference.patch_size or sampler.patch_size)
    manual_seed(cfg.seed)
    model = config.build(
        cfg, "model", in_channels=len(data.modalities), out_channels=len(data.classes)
    )
    parts = {"loss": loss, "weighting": weighting, "optimizer": optimizer, "schedule": schedule}
    trainer = config.build(cfg, "trainer", model=model, seed=cfg.seed, **parts)
    check_monitor(trainer.monitor, classes=tuple(data.classes))
    patch = (trainer.batch_size, len(data.modalities), *patch_sides(sampler.patch_size))
    config.check_network(model, patch, n_classes=len(data.classes))

    with rank_zero_first():
        output_dir = config.open_run(cfg)
        if (output_dir / "evaluation" / "metrics.json").exists():
            return show(
                read_json(output_dir / "evaluation" / "metrics.json"),
                f"{output_dir}, finished before",
            )
        split = split_dataset(
            data, output_dir / "manifest.csv", is_started=(output_dir / "checkpoints").exists()
        )
        cases = [
            *split.train,
            *split.val,
            *split.test,
        ]  # the test cases too: a fault in them is better known before
        preprocessing = preprocessing_of(data, cases)
        prepared = prepare_all(cases, preprocessing, cache_dir=data.cache_dir)
        record_environment(output_dir / "environment.json", data=files_of(cases))
    training, validation = (
        prepared[: len(split.train)],
        prepared[len(split.train) : -len(split.test) or None],
    )
    check_training(training)
    log_draw_shares(sampler, training)

    batches = PatchBatches(
        one_case_per_rater(training),
        sampler,
        augmentation,
        batch_size=trainer.batch_size,
        seed=cfg.seed,
        with_components=weighting is not None,
        rank=rank(),
        world_size=world_size(),
    )
    judge = partial(validate, cases=validation, classes=tuple(data.classes), inference=inference)
    keep = {
        "config": config.plain(cfg),
        "preprocessing": preprocessing.as_dict(),
        "inference": asdict(inference),
    }
    best = trainer.fit(batches, output_dir, validate=judge if validation else None, keep=keep)

    checkpoint = load_checkpoint(best)
    model.load_state_dict(checkpoint["model"])
    inference = inference.with_operating_point(checkpoint)
    predictions = output_dir / "predictions"
    settings = {"inference": inference, "checksum": checksum(best)}
    faults = run_sharded(
        lambda cases: predict_cases(model, cases, preprocessing, predictions, **settings),
        split.test,
    )
    if not is_first():
        return 0
    if len(faults) == len(split.test) > 0:
        raise DataError.gather(map(DataError, faults.values()))
    if not any(case.labels for case in split.test):
        config.logger.info("no test case has a label: nothing to judge in %s", output_dir)
        return 1 if faults else 0
    metrics = evaluate(predictions, split.test, output_dir=output_dir / "evaluation")
    return show(metrics, str(output_dir))


def show(metrics: dict[str, Any], title: str) -> int:
    """Print the table; the exit status says whether all cases could be judged."""
    console = Console(quiet=not is_first())
    console.print(metrics_table(metrics))
    console.print(title, soft_wrap=True)  # a path to copy stays in one piece
    return 1 if metrics.get("faults") else 0


if __name__ == "__main__":
    train()
