"""The choices of each group: every file is valid, builds, and works with the others."""

import ast
import logging
import math

import hydra
import pytest
import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from helpers.command_line import CONFIGS, choices, composed
from helpers.trainers import Blobs
from tversky_seg.config import build, check_arguments, check_config, check_network
from tversky_seg.config.checks import nodes_with_target
from tversky_seg.config.config_files import read_yaml
from tversky_seg.config.implied_choices import log_implied_choices
from tversky_seg.config.targets import check_target

SMALL_NETWORK = ("model.width=4", "model.n_levels=2")
PLAIN_GROUPS = (
    "augmentation",
    "evaluation",
    "inference",
    "lesion_term",
    "optimizer",
    "sampler",
    "schedule",
    "trainer",
    "weighting",
)
"""Groups whose choices build without parts of the run."""

CLASSES = {
    "brats_mets": {"WT": (1, 2, 3), "TC": (1, 3), "ET": (3,)},
    "lits": {"liver": (1, 2), "tumour": (2,)},
    "luna16": {"nodule": (1,)},
}
"""Classes of the data sets that are not of multiple sclerosis."""


def on_a_manifest(*words: str) -> DictConfig:
    return composed("data=manifest", "data.manifest=my.csv", *words)


def build_trainer(cfg: DictConfig):  # type: ignore[no-untyped-def]
    """Build the trainer of a config, with a network of one channel and one class."""
    model = build(cfg, "model", in_channels=1, out_channels=1)
    return build(
        cfg,
        "trainer",
        model=model,
        loss=build(cfg, "loss"),
        lesion_term=build(cfg, "lesion_term"),
        weighting=build(cfg, "weighting"),
        optimizer=build(cfg, "optimizer"),
        schedule=build(cfg, "schedule"),
    )


@pytest.mark.parametrize(
    ("group", "choice"), [(group, choice) for group in PLAIN_GROUPS for choice in choices(group)]
)
def test_every_choice_of_a_group_is_valid_and_builds(group: str, choice: str) -> None:
    cfg = on_a_manifest(f"{group}={choice}")
    check_config(cfg, config_name="train")
    built = build(cfg, group)
    assert (built is None) == (cfg[group] is None)


@pytest.mark.parametrize("choice", choices("data"))
def test_every_data_set_builds_from_its_folder(choice: str) -> None:
    source = "data.manifest=my.csv" if choice == "manifest" else "data.root=somewhere"
    cfg = composed(f"data={choice}", source)
    check_config(cfg, config_name="train")
    assert build(cfg, "data").classes == CLASSES.get(choice, {"lesion": (1,)})


@pytest.mark.parametrize(
    "choice",
    [f"loss={loss}" for loss in choices("loss")]
    + [f"weighting={weighting}" for weighting in choices("weighting")]
    + [f"lesion_term={term}" for term in choices("lesion_term")],
)
def test_every_loss_weighting_and_lesion_term_trains(choice: str) -> None:
    words = [choice, *SMALL_NETWORK, "trainer.device=cpu"]
    cfg = on_a_manifest(*words, "trainer.max_steps=2")
    check_config(cfg, config_name="train")
    trainer = build_trainer(cfg)
    before = [parameter.detach().clone() for parameter in trainer.model.parameters()]
    for step in (1, 2):
        result = trainer.train_step(step, Blobs()[step])
        assert math.isfinite(result.loss)
        assert not result.is_skipped
    after = trainer.model.parameters()
    assert any(not torch.equal(a, b) for a, b in zip(after, before, strict=True))


@pytest.mark.parametrize(
    ("optimizer", "schedule"),
    [(optimizer, "cosine") for optimizer in choices("optimizer")]
    + [("adamw", name) for name in choices("schedule")],
)
def test_every_optimizer_and_schedule_takes_a_step(optimizer: str, schedule: str) -> None:
    cfg = on_a_manifest(f"optimizer={optimizer}", f"schedule={schedule}", *SMALL_NETWORK)
    trainer = build_trainer(cfg)
    trainer.train_step(1, Blobs()[1])
    factor = build(cfg, "schedule")(0, cfg.trainer.max_steps)
    assert trainer.torch_optimizer.param_groups[0]["lr"] == pytest.approx(cfg.optimizer.lr * factor)


@pytest.mark.parametrize("model", choices("model"))
def test_every_network_builds_and_takes_a_patch(model: str) -> None:
    cfg = on_a_manifest(f"model={model}")
    check_config(cfg, config_name="train")
    network = build(cfg, "model", in_channels=2, out_channels=3)
    check_network(network, (2, 2, 64, 64, 64), n_classes=3)


def test_a_file_names_only_arguments_that_its_object_takes() -> None:
    for file in sorted(CONFIGS.glob("*/*.yaml")):
        settings = read_yaml(file)
        settings.pop("defaults", None)
        for key, node in nodes_with_target(settings):
            where = key or file.parent.name
            check_arguments(where, node, check_target(where, node))


def test_only_plain_python_reaches_the_objects() -> None:
    sampler = build(on_a_manifest("sampler.patch_size=[8,8,8]"), "sampler")
    assert type(sampler.patch_size) in (list, tuple)
    assert ast.literal_eval(str(list(sampler.patch_size))) == [8, 8, 8]


@pytest.mark.parametrize("choice", choices("data"))
def test_every_data_set_takes_the_keys_that_all_share(choice: str) -> None:
    shared = read_yaml(CONFIGS / "data" / "_common.yaml")
    assert shared.keys() <= composed(f"data={choice}").data.keys()
    assert composed(f"data={choice}", "data.rater=majority").data.rater == "majority"


@pytest.mark.parametrize(
    ("words", "logged"),
    [
        (["data=phantom"], ["data=phantom also sets trainer=phantom, augmentation=light"]),
        (["data=phantom", "trainer=quick"], ["data=phantom also sets augmentation=light"]),
        (["data=lesjak2017"], ["data=lesjak2017 also sets augmentation=growth"]),
        (["data=msseg2016"], []),
    ],
)
def test_the_further_choices_of_a_data_set_are_logged(
    words: list[str], logged: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    with hydra.initialize_config_dir(str(CONFIGS), version_base="1.3"):
        cfg = hydra.compose("train", overrides=words, return_hydra_config=True)
    HydraConfig.instance().set_config(cfg)
    with caplog.at_level(logging.INFO, logger="tversky_seg"):
        log_implied_choices()
    assert caplog.messages == logged
