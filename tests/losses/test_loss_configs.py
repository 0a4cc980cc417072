"""The files of configs/loss."""

from pathlib import Path

import pytest
from hydra.utils import instantiate
from omegaconf import OmegaConf

from helpers.losses import random_case

CONFIGS = Path(__file__).parents[2] / "configs"


@pytest.mark.parametrize(
    "path", sorted((CONFIGS / "loss").glob("*.yaml")), ids=lambda path: path.stem
)
def test_every_loss_config_builds_a_loss_that_takes_weights(path):
    logits, target, weight = random_case()
    loss = instantiate(OmegaConf.load(path), _convert_="all")
    assert loss(logits, target, weight).isfinite()


def test_configs_repeat_the_defaults_of_python():
    assert (
        vars(instantiate(OmegaConf.load(CONFIGS / "loss/tversky.yaml"))).items()
        >= {"alpha": 0.3, "beta": 0.7}.items()
    )
    for path in (CONFIGS / "loss").glob("*.yaml"):
        config = OmegaConf.load(path)
        if path.stem in ("combined", "weighted_bce"):
            continue
        built, default = (
            instantiate(config, _convert_="all"),
            instantiate({"_target_": config["_target_"]}),
        )
        settings = [
            {k: v for k, v in vars(loss).items() if not k.startswith("_")}
            for loss in (built, default)
        ]
        assert settings[0] == settings[1], path.stem
