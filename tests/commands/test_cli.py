"""`tversky-seg`: its words, its page, and that it answers without torch."""

import shutil
import subprocess
import sys
import tomllib
from contextlib import suppress
from pathlib import Path
from unittest import mock

import pytest

import tversky_seg
from helpers.command_line import ROOT
from tversky_seg import cli, losses
from tversky_seg.runtime.program import as_called


def page_of(name: str, capsys: pytest.CaptureFixture[str]) -> str:
    """Return the help of a command, called in this process as a shell would."""
    with mock.patch.object(sys, "argv", ["tversky-seg", name, "--help"]), suppress(SystemExit):
        cli.main()
    return capsys.readouterr().out


def test_the_program_alone_lists_every_command_with_a_line() -> None:
    page = cli.overview().splitlines()
    for name, word in cli.COMMANDS.items():
        assert [line for line in page if line.split(maxsplit=1) == [name, word.summary]]
    assert max(map(len, page)) <= 100


def test_every_command_is_a_function_of_the_package() -> None:
    for word in cli.COMMANDS.values():
        module, _, name = word.function.partition(":")
        file = Path(*module.split(".")).with_suffix(".py")
        assert f"def {name}(" in (ROOT / "src" / file).read_text(encoding="utf-8")
        assert word.config is None or (ROOT / "configs" / f"{word.config}.yaml").is_file()


def test_a_misspelt_command_is_one_line_with_the_nearest(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tversky_seg", "trian"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: trian: no such command; did you mean train?\n"


def test_a_command_names_itself_as_it_was_called(capsys: pytest.CaptureFixture[str]) -> None:
    page = page_of("predict", capsys)
    assert page.startswith("tversky-seg predict checkpoint=F")
    assert "predict.py" not in page
    usage = page_of("summarize", capsys)
    assert usage.startswith("usage: tversky-seg summarize ")
    assert "scripts/" not in usage


def test_the_program_and_its_version_are_those_of_the_package() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["scripts"] == {"tversky-seg": "tversky_seg.cli:main"}
    assert tversky_seg.__version__ in (project["version"], "0+unknown")


def test_every_name_of_the_package_is_the_object_of_its_module() -> None:
    for name in tversky_seg.__all__:
        assert getattr(tversky_seg, name).__doc__
        assert name in dir(tversky_seg)
    assert tversky_seg.TverskyLoss is losses.TverskyLoss
    with pytest.raises(AttributeError, match="TverskiLoss"):
        tversky_seg.TverskiLoss  # type: ignore[attr-defined]  # noqa: B018


def test_the_package_and_its_page_need_no_torch() -> None:
    program = (
        "import sys, tversky_seg, tversky_seg.cli as cli; cli.overview(); tversky_seg.__version__\n"
        "sys.exit(bool({'torch', 'numpy', 'hydra'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_the_help_of_a_command_needs_no_torch(name: str) -> None:
    program = (
        "import sys, tversky_seg.cli as cli\n"
        "from contextlib import suppress\n"
        f"sys.argv = ['tversky-seg', {name!r}, '--help']\n"
        "with suppress(SystemExit):\n"
        "    cli.main()\n"
        "sys.exit('torch' in sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", program], check=False, capture_output=True)
    assert run.returncode == 0


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("tversky-seg tr", "train"),
        ("tversky-seg train loss=focal_t", "focal_tversky"),  # bash replaces what follows "="
        ("tversky-seg train loss=dice loss.bet", "loss.beta="),
        ("tversky-seg check data=less", ""),
        ("tversky-seg compare pyproject.t", "pyproject.toml"),
    ],
)
def test_bash_completes_commands_settings_and_files(
    line: str, expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["tversky-seg", "--completion", "bash"]
    with mock.patch.object(sys, "argv", asked), suppress(SystemExit):
        cli.main()
    script = capsys.readouterr().out
    words = line.split()
    question = (
        f"COMP_LINE='{line}' COMP_POINT={len(line)} COMP_CWORD={len(words) - 1}\n"
        f'COMP_WORDS=({line})\n_tversky_seg\necho "${{COMPREPLY[*]}}"\n'
    )
    done = subprocess.run(
        ["bash", "--norc"],
        input=script + question,
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == expected


def test_commands_in_a_text_are_those_of_the_program_that_was_called() -> None:
    text = (
        "run scripts/check_data.py, python train.py loss=dice, old/train.py; written by predict.py"
    )
    with mock.patch.object(sys, "argv", ["train.py"]):
        assert as_called(text) == text
    with mock.patch.object(sys, "argv", ["tversky-seg train"]):
        assert as_called(text) == (
            "run tversky-seg check, tversky-seg train loss=dice, old/train.py; "
            "written by tversky-seg predict"
        )
