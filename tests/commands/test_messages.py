"""The lines that users meet most, word for word. Other tests look for keys and values alone.

Who rewords a message changes it here and nowhere else.
"""

from pathlib import Path

import pytest

from helpers.command_line import call


@pytest.mark.parametrize(
    ("line_typed", "line_read"),
    [
        ("train loss.alhpa=1", "loss.alhpa: no such key; did you mean loss.alpha?"),
        (
            "train loss=tverski",
            "loss: no choice named 'tverski'; did you mean tversky? (asymmetric, bce, blob, "
            "combined, dice, focal, focal_tversky, generalized_dice, tversky, weighted_bce)",
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
