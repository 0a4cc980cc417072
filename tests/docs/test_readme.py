"""Every command of the README is understood, and its recipe and snippets run."""

import re
import shlex
import shutil
from pathlib import Path

import pytest

from helpers.cohorts import MODALITIES, make_cohort
from helpers.command_line import ROOT, SMALL, Outcome, call

README = (ROOT / "README.md").read_text(encoding="utf-8")
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
VERBS = {
    "train.py": "train",
    "predict.py": "predict",
    "evaluate.py": "evaluate",
    "scripts/check_data.py": "check",
    "scripts/make_manifest.py": "manifest",
    "scripts/summarize.py": "summarize",
    "scripts/compare.py": "compare",
}
COMPOSED = {"train", "predict", "evaluate", "check"}
# What is run as the README has it, without words of the tests: programs of others.
OTHERS = ("git clone", "source .venv/bin/activate", "tensorboard --logdir")


def blocks(language: str) -> list[str]:
    """Return the code blocks of the README in one language."""
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def commands() -> list[list[str]]:
    """Split the lines of the shell into words."""
    lines = [line for block in blocks("bash") for line in block.splitlines()]
    return [shlex.split(line, comments=True) for line in lines]


def ours(verbs: set[str]) -> list[tuple[str, list[str]]]:
    """List the lines that call our commands: the command, and the words after it."""
    found = []
    for words in commands():
        if words[0] == "python" and VERBS[words[1]] in verbs:
            found.append((VERBS[words[1]], words[2:]))
    return found


def run(verb: str, words: list[str]) -> Outcome:
    """Run a line, with the settings of a training of seconds if it trains."""
    outcome = call(verb, *words, *(SMALL if verb == "train" else ()))
    assert outcome.status == 0, (words, outcome.stderr)
    return outcome


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as the README has it: raw/<subject>/{flair,t1,mask}.nii.gz and new_scans/."""
    folder = tmp_path_factory.mktemp("scans")
    cohort = folder / "cohort"
    make_cohort(cohort, n=5)
    for i in range(5):
        subject = folder / "raw" / f"s{i}"
        subject.mkdir(parents=True)
        for name, copy in (("FLAIR", "flair"), ("T1", "t1"), ("label", "mask")):
            shutil.copy(cohort / f"c{i}_{name}.nii.gz", subject / f"{copy}.nii.gz")
    (folder / "new_scans").mkdir()
    for modality in MODALITIES:
        shutil.copy(cohort / f"c0_{modality}.nii.gz", folder / "new_scans")
        shutil.copy(cohort / f"c0_{modality}.nii.gz", folder / f"a_{modality.lower()}.nii.gz")
    (folder / "lst_ai").mkdir()
    for i in range(5):
        mask = cohort / f"c{i}_label.nii.gz"
        shutil.copy(mask, folder / "lst_ai" / f"s{i}_seg.nii.gz")
    return folder


def test_every_line_is_a_command_that_exists() -> None:
    for words in commands():
        line = " ".join(words)
        if words[0] == "python":
            assert (ROOT / words[1]).is_file(), line
            assert words[1] in VERBS, line
        elif words[0] == "make":
            assert re.search(rf"^{words[1]}:", MAKEFILE, re.MULTILINE), line
        else:
            assert line.startswith(OTHERS), line


@pytest.mark.parametrize(
    ("verb", "words"), ours(COMPOSED), ids=lambda value: value if isinstance(value, str) else None
)
def test_the_settings_of_a_line_exist(
    verb: str, words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    page = words if "--help" in words else [word for word in words if word != "-m"]
    if "--help" not in words:
        # Composes and prints the settings, and runs nothing. The lists of a sweep are its first.
        page = [re.sub(r"=([\d.]+),[\d.,]+$", r"=\1", word) for word in page]
        page += ["--cfg", "job"]
    outcome = call(verb, *page)
    assert outcome.status == 0, (words, outcome.stderr)


def test_the_recipe_goes_from_files_in_folders_to_masks(
    scans: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(scans)
    (recipe,) = [block for block in blocks("bash") if "make_manifest.py" in block]
    verbs = []
    for line in recipe.splitlines():
        words = shlex.split(line, comments=True)
        if words[0] == "python":
            verbs.append(VERBS[words[1]])
            run(verbs[-1], words[2:])
    assert verbs == ["manifest", "check", "train", "predict"]
    assert (scans / "check" / "report.html").is_file()
    assert (scans / "masks" / "c0_mask.nii.gz").is_file()
    for name in ("config.yaml", "checkpoints/best.pt", "evaluation/report.html"):
        assert (scans / "runs" / "ms" / name).is_file()
    # The other lines that use this run.
    for verb, words in ours({"predict", "evaluate"}):
        if "input=new_scans/" not in words:
            run(verb, words)


@pytest.mark.slow
def test_the_lines_that_customise_run(scans: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(scans)
    make_cohort(scans / "liver", n=4, values=(1, 2))
    shutil.copy(scans / "liver" / "manifest.csv", scans / "liver" / "liver.csv")
    for verb, words in ours({"train", "summarize", "compare"}):
        if "--help" in words or any("data.root" in word or "runs/ms" in word for word in words):
            continue  # run above, or needs a download
        if verb != "train":
            run(verb, words)
        elif "data.manifest=liver.csv" in words:
            run(verb, ["data.manifest=liver/liver.csv", *words[:1], *words[2:]])
        else:
            manifest = ["data=manifest", "data.manifest=cohort/manifest.csv"]
            quick = ["trainer.max_steps=1"] if "-m" in words else []
            # The U-Net's levels and width are no settings of another network.
            other_network = "model=fc_densenet" in words
            small = [word for word in SMALL if not (other_network and "model" in word)]
            outcome = call("train", *manifest, *small, *words, *quick)
            assert outcome.status == 0, (words, outcome.stderr)


def test_the_snippet_of_losses_and_metrics_runs(capsys: pytest.CaptureFixture[str]) -> None:
    (snippet,) = [block for block in blocks("python") if "TverskyLoss" in block]
    exec(compile(snippet, "README.md", "exec"), {})
    assert len(capsys.readouterr().out.splitlines()) == 2
