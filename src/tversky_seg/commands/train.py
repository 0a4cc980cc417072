"""Train a network, predict the test cases and evaluate the predictions, from top to bottom."""

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
from tversky_seg.data_check import check_training
from tversky_seg.inference.predict import predict_cases
from tversky_seg.inference.prediction_folder import check_file_names
from tversky_seg.report.terminal import metrics_table
from tversky_seg.runtime.checkpoints import checksum, load_checkpoint
from tversky_seg.runtime.distributed import is_first, rank, rank_zero_first, run_sharded, world_size
from tversky_seg.runtime.environment import record_environment
from tversky_seg.runtime.files import read_json_if_whole
from tversky_seg.runtime.recorder import record_results
from tversky_seg.training.validation import check_monitor, validate


def train(cfg: DictConfig) -> int:
    """Train, predict and evaluate; a stage that an earlier command finished is not repeated."""
    config.recall_precision(cfg)

    # Build every part from its group in configs/, before any data are read.
    data = with_modalities(config.build(cfg, "data"))
    sampler = config.build(cfg, "sampler")
    augmentation = config.build(cfg, "augmentation")
    n_channels = len(data.modalities)
    classes = tuple(data.classes)
    manual_seed(cfg.seed)  # of the initial weights
    model = config.build(cfg, "model", in_channels=n_channels, out_channels=len(classes))
    loss = config.build(cfg, "loss")
    weighting = config.build(cfg, "weighting")
    optimizer = config.build(cfg, "optimizer")
    schedule = config.build(cfg, "schedule")
    trainer = config.build(
        cfg,
        "trainer",
        model=model,
        loss=loss,
        weighting=weighting,
        optimizer=optimizer,
        schedule=schedule,
        seed=cfg.seed,
    )
    cfg.trainer.precision = trainer.precision  # the run keeps this word, not "auto"
    inference = config.build(cfg, "inference")
    inference = replace(inference, patch_size=inference.patch_size or sampler.patch_size)
    evaluate = config.build(cfg, "evaluation")
    check_monitor(trainer.monitor, classes=classes)
    batch_shape = (trainer.batch_size, n_channels, *patch_sides(sampler.patch_size))
    config.check_network(model, batch_shape, n_classes=len(classes))

    # Open the run directory and prepare the data. Of several processes the first works alone;
    # the others then find everything in the cache.
    with rank_zero_first():
        output_dir = config.open_run(cfg)
        metrics_file = output_dir / "evaluation" / "metrics.json"
        finished = read_json_if_whole(metrics_file)
        if finished is not None:
            title = f"{output_dir} is already complete; choose another output_dir to train again"
            return show(finished, title)
        has_started = (output_dir / "checkpoints").exists()
        split = split_dataset(data, output_dir / "manifest.csv", is_started=has_started)
        # The test cases are prepared as well: their faults had better be known before training.
        cases = [*split.train, *split.val, *split.test]
        check_file_names([case.case_id for case in cases], classes)
        preprocessing = preprocessing_of(data, cases)
        prepared = prepare_all(cases, preprocessing, cache_dir=data.cache_dir)
        record_environment(output_dir / "environment.json", data=files_of(cases))
    n_training = len(split.train)
    training_cases = prepared[:n_training]
    validation_cases = prepared[n_training : n_training + len(split.val)]
    check_training(training_cases)
    log_draw_shares(sampler, training_cases)

    # Train. The checkpoints hold what predict.py needs besides the weights.
    batches = PatchBatches(
        one_case_per_rater(training_cases),
        sampler,
        augmentation,
        batch_size=trainer.batch_size,
        seed=cfg.seed,
        with_components=weighting is not None,
        rank=rank(),
        world_size=world_size(),
        accumulate=trainer.accumulate,
    )
    validate_network = partial(
        validate,
        cases=validation_cases,
        classes=classes,
        inference=inference,
        precision=trainer.precision,
    )
    best_file = trainer.fit(
        batches,
        output_dir,
        validate=validate_network if validation_cases else None,
        keep={
            "config": config.plain(cfg),
            "preprocessing": preprocessing.as_dict(),
            "inference": asdict(inference),
        },
    )

    # Predict the test cases with the best network, at the operating point chosen on validation.
    best = load_checkpoint(best_file)
    model.load_state_dict(best["model"])
    predict = partial(
        predict_cases,
        model,
        preprocessing=preprocessing,
        output_dir=output_dir / "predictions",
        inference=inference.with_operating_point(best),
        checksum=checksum(best_file),
        precision=trainer.precision,
    )
    faults = run_sharded(predict, split.test)
    if not is_first():
        return 0
    if split.test and len(faults) == len(split.test):
        raise DataError.gather(map(DataError, faults.values()))

    # Evaluate the saved files, so that evaluate.py gives the same numbers.
    if not any(case.labels for case in split.test):
        config.logger.info("no test case has a label: nothing to evaluate in %s", output_dir)
        return 1 if faults else 0
    metrics = evaluate(output_dir / "predictions", split.test, output_dir=metrics_file.parent)
    record_results(output_dir, metrics, step=best["step"], trackers=trainer.trackers or ())
    return show(metrics, str(output_dir))


def show(metrics: dict[str, Any], title: str) -> int:
    """Print the table of metrics; return exit status 1 if some cases could not be evaluated."""
    console = Console(quiet=not is_first())
    console.print(metrics_table(metrics))
    console.print(title, soft_wrap=True)  # a path stays in one piece, to copy
    return 1 if metrics.get("faults") else 0
