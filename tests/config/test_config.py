import ast
import math
import os
from pathlib import Path
from typing import Any

import hydra
import pytest
import torch
import yaml
from omegaconf import DictConfig

from helpers.command_line import ROOT, call, composed
from helpers.trainers import Blobs
from tversky_seg.config import (
    ConfigError,
    build,
    build_network,
    check_arguments,
    check_config,
    check_network,
)
from tversky_seg.config.checks import check_type, nearest, nodes_with_target
from tversky_seg.config.config_files import known_keys
from tversky_seg.config.messages import one_line
from tversky_seg.config.sweep import job_directory
from tversky_seg.config.targets import check_target
from tversky_seg.models import FCDenseNet3D, UNet3D
from tversky_seg.runtime.run_settings import differences, fingerprint

CONFIGS = ROOT / "configs"
SMALL_NETWORK = ("model.width=4", "model.n_levels=2")


def choices(group: str) -> list[str]:
    return sorted(path.stem for path in (CONFIGS / group).glob("*.yaml"))


def on_a_manifest(*words: str) -> DictConfig:
    return composed("data=manifest", "data.manifest=my.csv", *words)


# Every choice by its name


@pytest.mark.parametrize(
    ("group", "choice"),
    [
        (group, choice)
        for group in (
            "augmentation",
            "evaluation",
            "inference",
            "optimizer",
            "sampler",
            "schedule",
            "trainer",
            "weighting",
        )
        for choice in choices(group)
    ],
)
def test_every_choice_of_a_group_is_valid_and_builds(group: str, choice: str) -> None:
    cfg = on_a_manifest(f"{group}={choice}")
    check_config(cfg, config_name="train")
    built = build(cfg, group)
    assert (built is None) == (cfg[group] is None)


@pytest.mark.parametrize("choice", choices("data"))
def test_every_data_set_builds_from_its_folder(choice: str) -> None:
    cfg = composed(
        f"data={choice}", "data.manifest=my.csv" if choice == "manifest" else "data.root=somewhere"
    )
    check_config(cfg, config_name="train")
    dataset = build(cfg, "data")
    of_ct = {"lits": {"liver": (1, 2), "tumour": (2,)}, "luna16": {"nodule": (1,)}}
    assert dataset.classes == of_ct.get(choice, {"lesion": (1,)})


@pytest.mark.parametrize(
    ("loss", "weighting"),
    [(loss, "none") for loss in choices("loss")]
    + [("tversky", weighting) for weighting in choices("weighting")],
)
def test_every_loss_and_weighting_trains(loss: str, weighting: str) -> None:
    cfg = on_a_manifest(
        f"loss={loss}", f"weighting={weighting}", *SMALL_NETWORK, "trainer.device=cpu"
    )
    cfg.trainer.max_steps = 2
    check_config(cfg, config_name="train")
    model = build(cfg, "model", in_channels=1, out_channels=1)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    parts = {key: build(cfg, key) for key in ("loss", "weighting", "optimizer", "schedule")}
    trainer = build(cfg, "trainer", model=model, **parts)
    for step in (1, 2):
        result = trainer.train_step(step, Blobs()[step])
        assert math.isfinite(result.loss)
        assert not result.is_skipped
    assert any(not torch.equal(a, b) for a, b in zip(model.parameters(), before, strict=True))


@pytest.mark.parametrize(
    ("optimizer", "schedule"),
    [(optimizer, "cosine") for optimizer in choices("optimizer")]
    + [("adamw", name) for name in choices("schedule")],
)
def test_every_optimizer_and_schedule_takes_a_step(optimizer: str, schedule: str) -> None:
    cfg = on_a_manifest(f"optimizer={optimizer}", f"schedule={schedule}", *SMALL_NETWORK)
    parts = {key: build(cfg, key) for key in ("loss", "weighting", "optimizer", "schedule")}
    trainer = build(
        cfg, "trainer", model=build(cfg, "model", in_channels=1, out_channels=1), **parts
    )
    trainer.train_step(1, Blobs()[1])
    rate = trainer.torch_optimizer.param_groups[0]["lr"]
    assert rate == pytest.approx(cfg.optimizer.lr * parts["schedule"](0, cfg.trainer.max_steps))


@pytest.mark.parametrize("model", choices("model"))
def test_every_network_builds_and_takes_a_patch(model: str) -> None:
    cfg = on_a_manifest(f"model={model}")
    check_config(cfg, config_name="train")
    network = build(cfg, "model", in_channels=2, out_channels=3)
    check_network(network, (2, 2, 64, 64, 64), n_classes=3)


def test_what_a_reader_sees_in_a_file_is_what_python_does_without_it() -> None:
    """YAML repeats the defaults that a reader must see; it may differ from them, but never name another key."""
    for file in sorted(CONFIGS.glob("*/*.yaml")):
        text = file.read_text()
        settings = yaml.safe_load(text)
        settings.pop("defaults", None)
        for key, node in nodes_with_target(settings):
            found = check_target(key or file.parent.name, node)
            check_arguments(key or file.parent.name, node, found)


# Misspelt and unfit settings: one line, status 2, before any data are read


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["loss.alhpa=1"], "loss.alhpa: no such key; did you mean loss.alpha?"),
        (["+loss.alhpa=1"], "loss.alhpa: no such key; did you mean loss.alpha?"),
        (["++loss.alhpa=1"], "loss.alhpa: no such key; did you mean loss.alpha?"),
        (["loss={alhpa: 1}"], "loss.alhpa: no such key; did you mean loss.alpha?"),
        (["trainr.max_steps=3"], "trainr: no such key; did you mean trainer?"),
        (["trainer.max_step=3"], "trainer.max_step: no such key; did you mean trainer.max_steps?"),
        (
            ["+trainer.max_skiped=3"],
            "trainer.max_skiped: no such key; did you mean trainer.max_skipped?",
        ),
        (
            ["augmentation.blur_mm=2"],
            "augmentation.blur_mm: not set by the chosen augmentation; choose one that sets ",
        ),
        (
            ["loss=dice", "loss.beta=0.8"],
            "loss.beta: not set by the chosen loss; choose one that sets it",
        ),
        (
            ["evaluation.rule.conectivity=6"],
            "evaluation.rule.conectivity: no such key; did you mean evaluation.rule",
        ),
        (
            ["+evaluation.rule.conectivity=6"],
            "evaluation.rule.conectivity: no such key; did you mean evaluation.rule",
        ),
        (
            ["data.importer.n_trian=3"],
            "data.importer.n_trian: no such key; did you mean data.importer.n_train?",
        ),
        (
            ["+optimizer.momentun=0.9", "optimizer=sgd"],
            "optimizer.momentun: no such key; did you mean optimizer.mom",
        ),
        (["sead=1"], "sead: no such key; did you mean seed?"),
        (["+sead=1"], "sead: no such key; did you mean seed?"),
        (["los=dice"], "los: no such key; did you mean loss?"),
        (["expermient=x"], "expermient: no such key; did you mean experiment?"),
        (["loss=tverski"], "loss: no choice named 'tverski'; did you mean tversky?"),
        (["model=unet"], "model: no choice named 'unet'; did you mean unet3d?"),
        (["data="], "data: no choice named ''; expected one of bids, "),
        (["loss.alpha=-1"], "loss.alpha: got alpha=-1, beta=2; alpha and beta must be >= 0"),
        (["loss.alpha=abc"], 'loss.alpha: "abc"; expected a number or null'),
        (["trainer.max_steps=abc"], 'trainer.max_steps: "abc"; expected a whole number'),
        (["trainer.max_steps=0.5"], "trainer.max_steps: 0.5; expected a whole number"),
        (["trainer.max_steps=null"], "trainer.max_steps: null; expected a whole number"),
        (["trainer.max_steps=0"], "trainer.max_steps: got 0; max_steps must be >= 1"),
        (["trainer.precision=fp8"], "trainer.precision: got fp8; precision must be one of fp32"),
        (["trainer.device=gpu"], "trainer.device: got gpu; device must be auto, cpu or cuda"),
        (["trainer.monitor=lesion_fpr"], "trainer.monitor: lesion_fpr; expected one of dice, "),
        (
            ["sampler.lesion_probability=2"],
            "sampler.lesion_probability: got lesion_probability=2; lesion_prob",
        ),
        (
            ["sampler.patch_size=big"],
            'sampler.patch_size: "big"; expected a whole number or a list',
        ),
        (["inference.overlap=1"], "inference.overlap: got 1; overlap must lie in [0, 1)"),
        (["inference.window=hann"], "inference.window: got hann; window must be one of bspline"),
        (
            ["evaluation.rule.connectivity=7"],
            "evaluation.rule.connectivity: got 7; connectivity must be one of",
        ),
        (["model.norm=layer"], 'model.norm: "layer"; expected instance or batch or group or null'),
        (["data.fold=-1"], "data.fold: -1; expected 0 or more"),
        (["data.classes={lesion: [0]}"], "data.classes.lesion: "),
        (["seed=abc"], 'seed: "abc"; expected a whole number'),
        (["seed=-1"], "trainer.seed: got -1; seed must be >= 0"),
        (
            ["+trainer.seed=3"],
            "trainer.seed: 3; expected no such key, it follows from other settings",
        ),
        (
            ["model=fc_densenet", "sampler.patch_size=8", "trainer.batch_size=1"],
            "model: a patch of 8x8x8 ",
        ),
        (["foo"], "foo: cannot be read; expected key=value"),
        (["loss.alpha=[1"], "loss.alpha=[1: cannot be read; expected key=value"),
        (
            ["data=lesjak2017"],
            "data.root: none given; expected the folder of the data set as downloaded",
        ),
        (["data=manifest"], "data.manifest: none given; expected a CSV file that lists the cases"),
        (["experiment=none_such"], "experiment: no choice named"),
        (["trust=os"], 'trust: "os"; expected a list'),
        (["--bogus"], "command line: unrecognized arguments: --bogus; --help shows"),
        (["--cfg", "jobb"], "command line: argument --cfg/-c: invalid choice: 'jobb'"),
    ],
)
def test_a_wrong_setting_is_one_line_that_names_it(
    words: list[str], error: str, tmp_path: Path
) -> None:
    nowhere = (
        [] if any(word.startswith("data") for word in words) else [f"data.root={tmp_path / 'none'}"]
    )
    outcome = call("train", *nowhere, f"output_dir={tmp_path / 'run'}", *words)
    assert outcome.error.startswith(error)
    assert not list(tmp_path.iterdir()), "nothing was made before the settings were checked"


@pytest.mark.parametrize(
    ("verb", "words", "error"),
    [
        ("predict", [], "checkpoint: no value given; set it on the command line as checkpoint=…"),
        ("predict", ["chekpoint=a.pt"], "chekpoint: no such key; did you mean checkpoint?"),
        (
            "predict",
            ["checkpoint=a.pt", "output_dir=b"],
            "input: none given; expected {MODALITY: file, ...}, ",
        ),
        ("predict", ["checkpoint=a.pt", "output_dir=b", "input=c"], "a.pt: no such file; "),
        (
            "predict",
            ["checkpoint=a.pt", "output_dir=b", "input=c", "precision=fp8"],
            "precision: got fp8; ",
        ),
        (
            "predict",
            ["checkpoint=a.pt", "output_dir=b", "input=c", "threads=0"],
            "threads: got 0; ",
        ),
        (
            "predict",
            ["inference.treshold=0.5"],
            "inference.treshold: no such key; did you mean inference.threshold?",
        ),
        (
            "predict",
            ["checkpoint=a.pt", "output_dir=b", "input=c", "+inference.treshold=0.5"],
            "inference.treshold: no such key; did you mean inference.threshold?",
        ),
        (
            "evaluate",
            [],
            "predictions: no value given; set it on the command line as predictions=…",
        ),
        (
            "evaluate",
            ["evaluation.treshold=1"],
            "evaluation.treshold: no such key; did you mean evaluation.threshold?",
        ),
        (
            "evaluate",
            ["predictions=a", "manifest=b", "output_dir=c"],
            "b: No such file or directory; expected a man",
        ),
        (
            "evaluate",
            ["predictions=a", "manifest=b", "output_dir=c", "classes=3"],
            "classes: 3; expected {key: value}",
        ),
    ],
)
def test_the_other_verbs_name_wrong_settings_too(
    verb: str, words: list[str], error: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert call(verb, *words).error.startswith(error)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("experiment", "error"),
    [
        ("loss: {alhpa: 1}", "loss.alhpa: no such key; did you mean loss.alpha?"),
        ("trainr: {max_steps: 3}", "trainr: no such key; did you mean trainer?"),
        (
            "evaluation: {rule: {min_overlp: 0.1}}",
            "evaluation.rule.min_overlp: no such key; did you mean evaluation.ru",
        ),
        ("loss: {alpha: high}", 'loss.alpha: "high"; expected a number or null'),
        ("loss: [1", "expected YAML"),
        ("loss: !!python/object/apply:os.system [touch evidence]", "expected YAML"),
        (
            "model: {_target_: os.system, command: touch evidence}",
            "model._target_: os.system; expected a Module class",
        ),
        (
            "trust: [os]\nmodel: {_target_: os.system}",
            "trust: ['os'] in a file; expected it on the command line",
        ),
        (
            "defaults:\n  - override /loss: tverski",
            "loss: no choice named 'tverski'; did you mean tversky?",
        ),
    ],
)
def test_an_experiment_file_is_checked_as_the_command_line_is(
    experiment: str, error: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "configs" / "experiment").mkdir(parents=True)
    (tmp_path / "configs" / "experiment" / "mine.yaml").write_text(
        f"# @package _global_\n{experiment}\n"
    )
    monkeypatch.chdir(tmp_path)
    outcome = call(
        "train", "--config-dir", tmp_path / "configs", "experiment=mine", "data.root=none"
    )
    assert error in outcome.error
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


@pytest.mark.parametrize("verb", ["train", "predict", "evaluate"])
def test_help_reads_as_a_manual_page(verb: str) -> None:
    outcome = call(verb, "--help")
    assert outcome.status == 0
    assert outcome.stdout.startswith(f"python {verb}.py ")
    assert "Exit status: 0 done, 1 some cases failed" in outcome.stdout
    assert max(map(len, outcome.stdout.splitlines())) <= 120


def test_help_names_every_group_with_its_choices() -> None:
    page = call("train", "--help").stdout
    for group in sorted(
        path.name for path in CONFIGS.iterdir() if path.is_dir() and path.name != "hydra"
    ):
        if choices(group):
            assert f"{group}: {', '.join(choices(group))}" in page


# Only what was meant to be built is built


@pytest.mark.parametrize(
    "target",
    [
        "os.system",
        "subprocess.Popen",
        "builtins.eval",
        "torch.hub.load",
        "torch.nn.modules.module.torch.hub.load",
        "torch.nn.modules.module.torch.load",
        "tversky_seg.config.entry_point.os.system",
        "tversky_seg.runtime.environment.subprocess.Popen",
        "tversky_seg.runtime.files.write_json",
        "tversky_seg.training.Trainer",
        "tversky_seg.models.none_such",
        "tversky_seg",
        "tversky_segment.Net",
        "torch.nn.functional.relu",
        "",
        5,
        None,
        ["a"],
    ],
)
@pytest.mark.parametrize("key", ["model", "loss.losses[0]"])
def test_a_target_must_be_a_network_class_of_an_allowed_package(key: str, target: Any) -> None:
    for node in ({"_target_": target}, {"_target_": target, "_partial_": True}):
        with pytest.raises(
            ConfigError,
            match=r"_target_: .*; expected a Module class defined in one of tversky_seg, ",
        ):
            check_target(key, node)


@pytest.mark.parametrize(
    "target", ["os.system", "torch.nn.modules.module.torch.hub.load", "5", "null"]
)
def test_a_command_line_builds_nothing_else(target: str, tmp_path: Path) -> None:
    outcome = call("train", f"model._target_={target}", f"output_dir={tmp_path / 'run'}")
    assert outcome.error.startswith(
        f"model._target_: {target.replace('null', 'None')}; expected a Module class"
    )
    assert not list(tmp_path.iterdir())


def test_a_function_is_only_handed_on_never_called(tmp_path: Path) -> None:
    evidence = tmp_path / "evidence.json"
    write = [
        "augmentation._target_=tversky_seg.runtime.files.write_json",
        f"+augmentation.path={evidence}",
    ]
    assert call("train", *write, "+augmentation.content=1").error.startswith(
        "augmentation._target_: "
    )
    assert not evidence.exists()
    check_config(on_a_manifest(), config_name="train")  # as schedule and evaluation are


def test_a_nested_target_is_checked_too() -> None:
    words = ["loss=combined", "loss.losses=[{_target_: os.system, command: ls}]"]
    assert call("train", *words).error.startswith("loss.losses[0]._target_: os.system; ")


def test_trust_on_the_command_line_adds_a_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_networks.py").write_text(
        "from torch import nn\n\nclass Mine(nn.Conv3d):\n    def __init__(self, *, in_channels, out_channels):\n"
        "        super().__init__(in_channels, out_channels, 1)\n"
    )
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "mine.yaml").write_text("_target_: my_networks.Mine\n")
    monkeypatch.syspath_prepend(tmp_path)
    words = ["--config-dir", tmp_path, "model=mine", "data=manifest"]
    assert call("train", *words).error.startswith("model._target_: my_networks.Mine; ")
    assert call("train", *words, "trust=[my_networks]").error.startswith(
        "data.manifest: none given"
    )


def test_a_checkpoints_network_is_built_from_its_config() -> None:
    settings = {"model": {"_target_": "tversky_seg.models.UNet3D", "width": 4, "n_levels": 2}}
    network = build_network(settings, in_channels=2, out_channels=1)
    assert isinstance(network, UNet3D)
    assert network(torch.zeros(1, 2, 8, 8, 8)).shape == (1, 1, 8, 8, 8)


@pytest.mark.parametrize(
    "model",
    [
        {"_target_": "os.system", "command": "touch evidence"},
        {"_target_": "torch.nn.modules.module.torch.hub.load", "repo_or_dir": "a/b", "model": "c"},
        {
            "_target_": "torch.nn.Sequential",
            "_args_": [{"_target_": "os.system", "command": "touch evidence"}],
        },
        {
            "_target_": "tversky_seg.runtime.files.write_json",
            "_partial_": True,
            "path": "evidence",
            "content": 1,
        },
        {"_target_": "tversky_seg.training.Trainer"},
        {"_target_": "tversky_seg.models.UNet3D", "wdith": 4},
        {"width": 4},
        None,
        3,
    ],
)
def test_a_strangers_checkpoint_builds_nothing_but_networks(
    model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"^model"):
        build_network({"model": model}, in_channels=2, out_channels=1)
    assert not list(tmp_path.iterdir())


def test_a_network_that_looks_at_values_is_let_through() -> None:
    class Looking(torch.nn.Module):
        def forward(self, image: torch.Tensor) -> torch.Tensor:
            return image if image.sum().item() > 0 else -image

    check_network(Looking(), (1, 1, 4, 4, 4), n_classes=1)


def test_a_network_that_cannot_take_the_patch_is_found_out_without_computing() -> None:
    network = FCDenseNet3D(
        in_channels=1, out_channels=1, growth_rate=2, n_layers=1, n_blocks=2, width=4
    )
    statistics = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    check_network(network, (1, 1, 16, 16, 16), n_classes=1)
    with pytest.raises(
        ConfigError, match="model: a patch of 4x4x4 is one voxel at the lowest level"
    ):
        check_network(network, (1, 1, 4, 4, 4), n_classes=1)
    with pytest.raises(ConfigError, match="expected 2 channels of the same sides"):
        check_network(network, (1, 1, 16, 16, 16), n_classes=2)
    with pytest.raises(ConfigError, match="model: "):
        check_network(network, (1, 3, 16, 16, 16), n_classes=1)
    assert all(
        torch.equal(tensor, statistics[name]) for name, tensor in network.state_dict().items()
    )


# Types


@pytest.mark.parametrize(
    ("value", "hint", "fits"),
    [
        (1, int, True),
        (True, int, False),
        (1.5, int, False),
        (1, float, True),
        (float("inf"), float, True),
        ("1", float, False),
        (True, bool, True),
        (1, bool, False),
        (None, float | None, True),
        (None, float, False),
        ("a", Path | None, True),
        (3, Path, False),
        ([1, 2], tuple[int, int] | int, True),
        (None, tuple[int, ...], True),
        ("ab", tuple[str, ...], False),
        ({"a": 1}, dict[str, int], True),
        ([1], dict[str, int], False),
        ({"_target_": "x"}, torch.nn.Module, True),
        (3, torch.nn.Module, False),
        (3, Any, True),
    ],
)
def test_a_value_fits_its_annotation_or_is_refused(value: Any, hint: Any, fits: bool) -> None:
    if fits:
        check_type("key", value, hint)
    else:
        with pytest.raises(ConfigError, match=r"^key: .*; expected "):
            check_type("key", value, hint)


def test_the_nearest_key_is_named_or_what_there_is() -> None:
    assert nearest("loss.alhpa", ["loss.alpha", "loss.beta"]) == "did you mean loss.alpha?"
    assert nearest("zzz", ["alpha", "beta"]) == "expected one of alpha, beta"


# Where a run lies, and when it is another


def test_the_fingerprint_changes_with_what_decides_the_numbers_alone() -> None:
    settings = {
        "seed": 0,
        "output_dir": None,
        "trainer": {"n_workers": 0, "lr": 1.0},
        "data": {"cache_dir": "a"},
    }
    free = {
        "seed": 0,
        "output_dir": "x",
        "trainer": {"n_workers": 4, "lr": 1.0},
        "data": {"cache_dir": "b"},
    }
    other = {
        "seed": 1,
        "output_dir": None,
        "trainer": {"n_workers": 0, "lr": 1.0},
        "data": {"cache_dir": "a"},
    }
    assert len(fingerprint(settings)) == 8
    assert fingerprint(settings) == fingerprint(free) != fingerprint(other)
    assert differences(settings, free) == []
    assert differences(settings, other) == ["seed was 0, now 1"]
    assert differences(settings, {"seed": 0}) == ["trainer.lr was 1.0, now null"]


def test_a_sweeps_directories_tell_settings_apart() -> None:
    name = job_directory
    words = ["data.manifest=/a/b.csv", "loss.beta=0.5", "trainer.threads=1"]
    assert name(words) == "loss.beta=0.5,data.manifest=_a_b.csv"
    assert name(["experiment=a"]) != name(["experiment=b"])
    assert name([]) == "default"
    long = [name([f"data.root={'x' * 300}", f"seed={seed}"]) for seed in (1, 2)]
    assert long[0] != long[1]
    assert all(len(each) <= 200 and "/" not in each for each in long)


@pytest.mark.parametrize(
    "folder", ["loss.beta=0.5,seed=1", "it's (here)", "größe", "a b", "a[1]", "50%", "007", "1e3"]
)
def test_names_need_no_quotes_for_hydra(
    folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    outcome = call("predict", f"checkpoint={folder}", "input=x", "output_dir=y")
    assert outcome.error.startswith(f"{folder}: no such file; ")
    Path(folder).write_text("in the way")
    outcome = call(
        "train", "data=manifest", "data.manifest=x", "data.modalities=[a]", f"output_dir={folder}"
    )
    assert outcome.error.startswith(f"output_dir: {folder} cannot be written")


def test_a_full_disk_is_one_line() -> None:
    said = one_line(OSError(28, "No space left on device"), config_name="train")
    assert (
        said
        == "files: No space left on device; make it readable or make room, and run the command again"
    )


def test_every_config_key_of_the_help_page_exists() -> None:
    page = (
        call("train", "--help").stdout.split("Keys you may want to change")[1].split("Examples")[0]
    )
    known = known_keys("train")
    words = [
        word.split("=")[0]
        for line in page.splitlines()
        for word in line.split()
        if "=" in word and "." in word
    ]
    assert [
        key for key in words if "." in key and key.split(".")[0] in known and key not in known
    ] == []


def test_only_plain_python_reaches_the_objects() -> None:
    built = build(on_a_manifest("sampler.patch_size=[8,8,8]"), "sampler")
    assert type(built.patch_size) in (list, tuple)
    assert ast.literal_eval(str(list(built.patch_size))) == [8, 8, 8]
