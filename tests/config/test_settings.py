"""Wrong settings: one line that names the key, status 2, before any data are read or made."""

import os
from pathlib import Path

import hydra
import pytest

from helpers.command_line import call
from tversky_seg.config import ConfigError
from tversky_seg.config.messages import one_line


@pytest.mark.parametrize(
    ("words", "key", "mention"),
    [
        # Misspelt keys: the nearest right key is named, however the word is written.
        (["loss.alhpa=1"], "loss.alhpa", "loss.alpha"),
        (["+loss.alhpa=1"], "loss.alhpa", "loss.alpha"),
        (["++loss.alhpa=1"], "loss.alhpa", "loss.alpha"),
        (["loss={alhpa: 1}"], "loss.alhpa", "loss.alpha"),
        (["trainr.max_steps=3"], "trainr", "trainer"),
        (["trainer.max_step=3"], "trainer.max_step", "trainer.max_steps"),
        (["+trainer.max_skiped=3"], "trainer.max_skiped", "trainer.max_skipped"),
        (["evaluation.rule.conectivity=6"], "evaluation.rule.conectivity", "evaluation.rule"),
        (["+evaluation.rule.conectivity=6"], "evaluation.rule.conectivity", "evaluation.rule"),
        (["data.importer.n_trian=3"], "data.importer.n_trian", "data.importer.n_train"),
        (["optimizer=sgd", "+optimizer.momentun=1"], "optimizer.momentun", "optimizer.momentum"),
        (["sead=1"], "sead", "seed"),
        (["+sead=1"], "sead", "seed"),
        (["los=dice"], "los", "loss"),
        (["expermient=x"], "expermient", "experiment"),
        # Keys of other choices.
        (["augmentation.blur_mm=2"], "augmentation.blur_mm", "+augmentation.blur_mm"),
        (["loss=dice", "loss.beta=0.8"], "loss.beta", "tversky"),
        (["loss=dice", "+loss.beta=0.8"], "loss.beta", "tversky"),
        (["loss.b=1.5"], "loss.b", "loss=tversky_ce has no b; choose loss=asymmetric"),
        # Names of other tools.
        (["trainer.epochs=10"], "trainer.epochs", "trainer.max_steps"),
        (["epochs=10"], "epochs", "trainer.max_steps"),
        (["+epochs=10"], "epochs", "trainer.max_steps"),
        (["lr=1e-3"], "lr", "optimizer.lr"),
        (["+lr=1e-3"], "lr", "optimizer.lr"),
        (["learning_rate=1e-3"], "learning_rate", "optimizer.lr"),
        (["batch_size=4"], "batch_size", "trainer.batch_size"),
        (["data.modalities=FLAIR,T1"], "data.modalities", "[FLAIR,T1]"),
        # Choices.
        (["loss=tverski"], "loss", "tversky"),
        (["model=unet"], "model", "unet3d"),
        (["data="], "data", "bids, "),
        (["experiment=none_such"], "experiment", "none_such"),
        (["experiment=salehi2017"], "experiment", "salehi2017/tversky_b07"),
        (["experiment=salehi2017/tversky_b7"], "experiment/salehi2017", "tversky_b07"),
        # Values.
        (["loss.alpha=-1"], "loss.alpha", "alpha=-1"),
        (["loss.alpha=abc"], "loss.alpha", '"abc"; expected a number or null'),
        (["trainer.max_steps=abc"], "trainer.max_steps", '"abc"; expected a whole number'),
        (["trainer.max_steps=0.5"], "trainer.max_steps", "0.5"),
        (["trainer.max_steps=null"], "trainer.max_steps", "null"),
        (["trainer.max_steps=0"], "trainer.max_steps", "got 0"),
        (["trainer.precision=fp8"], "trainer.precision", "got fp8"),
        (["trainer.device=gpu"], "trainer.device", "got gpu"),
        (["trainer.monitor=lesion_fpr"], "trainer.monitor", "lesion_fpr"),
        (["sampler.lesion_probability=2"], "sampler.lesion_probability", "2"),
        (["sampler.patch_size=big"], "sampler.patch_size", "big"),
        (["inference.overlap=1"], "inference.overlap", "got 1"),
        (["inference.window=hann"], "inference.window", "got hann"),
        (["evaluation.rule.connectivity=7"], "evaluation.rule.connectivity", "got 7"),
        (
            ["model.norm=layer"],
            "model.norm",
            '"layer"; expected instance or batch or group or null',
        ),
        (["data.fold=-1"], "data.fold", "-1"),
        (["data.classes={lesion: [0]}"], "data.classes.lesion", ""),
        (["seed=abc"], "seed", '"abc"; expected a whole number'),
        (["seed=-1"], "trainer.seed", "got -1"),
        (["+trainer.seed=3"], "trainer.seed", "3"),
        (["trust=os"], "trust", '"os"; expected a list'),
        (
            ["model=fc_densenet", "sampler.patch_size=8", "trainer.batch_size=1"],
            "model",
            "8x8x8",
        ),
        (["data=lesjak2017"], "data.root", ""),
        (["data=manifest"], "data.manifest", ""),
        # Words that are no setting.
        (["foo"], "foo", "key=value"),
        (["loss.alpha=[1"], "loss.alpha=[1", "key=value"),
        (["--bogus"], "command line", "--bogus"),
        (["--cfg", "jobb"], "command line", "jobb"),
    ],
)
def test_a_wrong_setting_is_one_line_that_names_it(
    words: list[str], key: str, mention: str, tmp_path: Path
) -> None:
    if not any(word.startswith("data") for word in words):
        words = [f"data.root={tmp_path / 'none'}", *words]
    outcome = call("train", f"output_dir={tmp_path / 'run'}", *words)
    assert outcome.error.startswith(f"{key}: ")
    assert mention in outcome.error
    assert not list(tmp_path.iterdir()), "nothing was made before the settings were checked"


PREDICT = ["checkpoint=a.pt", "output_dir=b", "input=c"]
EVALUATE = ["predictions=a", "manifest=b", "output_dir=c"]


@pytest.mark.parametrize(
    ("command", "words", "key", "mention"),
    [
        ("predict", [], "checkpoint", "checkpoint=…"),
        ("predict", ["chekpoint=a.pt"], "chekpoint", "checkpoint"),
        ("predict", PREDICT[:2], "input", "MODALITY"),
        ("predict", PREDICT, "a.pt", ""),
        ("predict", [*PREDICT, "precision=fp8"], "precision", "got fp8"),
        ("predict", [*PREDICT, "threads=0"], "threads", "got 0"),
        ("predict", ["inference.treshold=1"], "inference.treshold", "inference.threshold"),
        (
            "predict",
            [*PREDICT, "+inference.treshold=1"],
            "inference.treshold",
            "inference.threshold",
        ),
        ("evaluate", [], "predictions", "predictions=…"),
        ("evaluate", ["evaluation.treshold=1"], "evaluation.treshold", "evaluation.threshold"),
        ("evaluate", EVALUATE, "b", "No such file"),
        ("evaluate", [*EVALUATE, "pattern={case_id}_seg.nii.gz"], "pattern", "evaluation.pattern"),
        ("predict", [*PREDICT, "device={a: 1}"], "device", "expected a text"),
        ("evaluate", [*EVALUATE, "classes=3"], "classes", "3; expected {key: value}"),
    ],
)
def test_the_other_commands_name_wrong_settings_too(
    command: str,
    words: list[str],
    key: str,
    mention: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    outcome = call(command, *words)
    assert outcome.error.startswith(f"{key}: ")
    assert mention in outcome.error
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("experiment", "key", "mention"),
    [
        ("loss: {alhpa: 1}", "loss.alhpa", "loss.alpha"),
        ("trainr: {max_steps: 3}", "trainr", "trainer"),
        ("evaluation: {rule: {min_overlp: 1}}", "evaluation.rule.min_overlp", "evaluation.rule"),
        ("loss: {alpha: high}", "loss.alpha", '"high"'),
        ("loss: [1", "mine.yaml", "YAML"),
        ("loss: !!python/object/apply:os.system [touch evidence]", "mine.yaml", "YAML"),
        ("model: {_target_: os.system, command: touch evidence}", "model._target_", "os.system"),
        ("trust: [os]\nmodel: {_target_: os.system}", "trust", "command line"),
        ("defaults:\n  - override /loss: tverski", "loss", "tversky"),
    ],
)
def test_an_experiment_file_is_checked_as_the_command_line_is(
    experiment: str, key: str, mention: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "configs" / "experiment" / "mine.yaml"
    file.parent.mkdir(parents=True)
    file.write_text(f"# @package _global_\n{experiment}\n")
    monkeypatch.chdir(tmp_path)
    words = ["--config-dir", tmp_path / "configs", "experiment=mine", "data.root=none"]
    outcome = call("train", *words)
    assert outcome.error.split(": ")[0].endswith(key)
    assert mention in outcome.error
    assert [path.name for path in tmp_path.iterdir()] == ["configs"]


def test_hydra_full_error_gives_the_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    with pytest.raises(ConfigError, match="alhpa"):
        call("train", "+loss.alhpa=1")
    with pytest.raises(hydra.errors.ConfigCompositionException):
        call("train", "loss.alhpa=1")
    assert os.environ["HYDRA_FULL_ERROR"] == "1"
    monkeypatch.delenv("HYDRA_FULL_ERROR")
    assert call("train", "loss.alhpa=1").status == 2
    assert "HYDRA_FULL_ERROR" not in os.environ


def test_a_full_disk_is_one_line() -> None:
    fault = OSError(28, "No space left on device", "/scratch/a.pt")
    line = one_line(fault, config_name="train")
    assert line.startswith("/scratch/a.pt: No space left on device; ")


def test_the_home_of_nobody_is_a_missing_file(tmp_path: Path) -> None:
    manifest = tmp_path / "m.csv"
    manifest.write_text("case_id,subject_id,FLAIR,label\na,a,~nobody_of_this_name/x.nii,\n")
    outcome = call("train", "data=manifest", f"data.manifest={manifest}")
    assert "~nobody_of_this_name/x.nii: " in outcome.error
