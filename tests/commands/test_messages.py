"""The lines that users meet most, word for word. Other tests look for keys and values alone.

Who rewords a message changes it here and nowhere else.
"""

from pathlib import Path

import pytest

from helpers.command_line import call
from tversky_seg.config.config_files import choices


@pytest.mark.parametrize(
    ("line_typed", "line_read"),
    [
        ("train loss.alhpa=1", "loss.alhpa: no such key; did you mean loss.alpha?"),
        (
            "train loss=tverski",
            "loss: no choice named 'tverski'; did you mean tversky? "
            f"({', '.join(choices('loss'))})",
        ),
        (
            "train trainer.epochs=10",
            "trainer.epochs: no such key; training is counted in steps: set trainer.max_steps",
        ),
        ("train lr=1e-3", "lr: no such key; did you mean optimizer.lr?"),
        (
            "evaluate inference.min_peak=0.3",
            "inference: is a key of train.py and predict.py, not of evaluate.py; see --help",
        ),
        (
            "train checkpoint=runs/a",
            "checkpoint: is a key of predict.py, not of train.py; see --help",
        ),
        (
            "train loss=dice loss.beta=0.7",
            "loss.beta: loss=dice has no beta; choose loss=blob or focal_tversky or tversky or "
            "tversky_ce",
        ),
        (
            "train loss=dice +loss.beta=0.7",
            "loss.beta: loss=dice has no beta; choose loss=blob or focal_tversky or tversky or "
            "tversky_ce",
        ),
        (
            "train augmentation.blur_mm=2",
            "augmentation.blur_mm: not in the chosen file; add it with +augmentation.blur_mm=…",
        ),
        (
            "train experiment=salehi2017",
            "experiment: salehi2017 is a folder; expected one of salehi2017/base, "
            "salehi2017/small, salehi2017/tversky_b05, salehi2017/tversky_b06, "
            "salehi2017/tversky_b07, salehi2017/tversky_b08, salehi2017/tversky_b09",
        ),
        (
            "train data.modalities=FLAIR,T1",
            "data.modalities: FLAIR,T1 are several values; expected a list in brackets, "
            "data.modalities=[FLAIR,T1], or -m to run one job for each",
        ),
        (
            "train --bogus",
            "command line: unrecognized arguments: --bogus; --help shows what can be set",
        ),
        (
            "train --epochs 10",
            "command line: unrecognized arguments: --epochs; settings are written key=value: "
            "training is counted in steps: set trainer.max_steps",
        ),
        (
            "train --batch-size=4",
            "command line: unrecognized arguments: --batch-size; settings are written key=value: "
            "did you mean inference.batch_size or trainer.batch_size?",
        ),
        (
            "train --seed 3",
            "command line: unrecognized arguments: --seed; settings are written key=value: seed=…",
        ),
        (
            "evaluate pattern={case_id}_seg.nii.gz",
            "pattern: no such key; did you mean evaluation.pattern?",
        ),
        ("train data.manifest=my.csv", "data.manifest: my.csv; add data=manifest to read it"),
        (
            "train data=msseg2016 data.importer._partial_=false",
            "data.importer._target_: tversky_seg.data.datasets.msseg2016.find_msseg2016 is a "
            "function; add _partial_: true below it",
        ),
        (
            "train loss._target_=tversky_seg.losses.NoLoss",
            "loss._target_: tversky_seg.losses.NoLoss cannot be imported (No module named "
            "'tversky_seg.losses.NoLoss'); expected a Module class defined in one of tversky_seg, "
            "torch.nn, torch.optim, monai.networks, monai.losses (trust=[package] adds one)",
        ),
        ("train loss.alpha=abc", 'loss.alpha: "abc"; expected a number or null'),
        ("train trainer.max_steps=0", "trainer.max_steps: got 0; max_steps must be >= 1"),
        (
            "train +trainer.seed=3",
            "trainer.seed: 3; expected no such key, it follows from other settings",
        ),
        (
            "train model._target_=os.system",
            "model._target_: os.system; expected a Module class defined in one of tversky_seg, "
            "torch.nn, torch.optim, monai.networks, monai.losses (trust=[package] adds one)",
        ),
        (
            "train foo",
            "foo: cannot be read; expected key=value (quote what has spaces, brackets or =)",
        ),
        (
            "predict",
            "checkpoint: no value given; set it on the command line as checkpoint=…",
        ),
        (
            "train trust=os",
            'trust: "os"; expected a list',
        ),
        (
            "predict checkpoint=a.pt output_dir=b",
            "input: none given; expected {MODALITY: file, ...}, a manifest CSV or a folder",
        ),
    ],
)
def test_a_line_that_helps(
    line_typed: str, line_read: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    command, *words = line_typed.split()
    assert call(command, *words).error == line_read
    assert not list(tmp_path.iterdir()), "nothing was made"
