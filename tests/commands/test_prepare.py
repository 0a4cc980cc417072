"""tversky-seg prepare: shares of a cohort, resumed, side by side, and found by a training."""

from pathlib import Path

import pytest

from helpers.cohorts import MODALITIES, make_cohort
from helpers.command_line import Outcome, call
from tversky_seg.commands.train import prepare_cohort
from tversky_seg.data.dataset import Dataset


def cache_of(manifest: Path) -> Path:
    """The cache lies apart from the images, as they may be in a read-only folder."""
    return manifest.parent.parent / "cache"


def prepare(manifest: Path, *words: str) -> Outcome:
    data = [
        "data=manifest",
        f"data.manifest={manifest}",
        f"data.cache_dir={cache_of(manifest)}",
        "n_workers=1",
    ]
    return call("prepare", *data, *words)


def entries(manifest: Path) -> dict[str, int]:
    """Each entry of the cache, and when it was written."""
    found = {}
    for meta in cache_of(manifest).glob("*/meta.json"):
        found[meta.parent.name] = meta.stat().st_mtime_ns
    return found


def times_of(folder: Path) -> dict[Path, int]:
    """When the folder and each file in it were last written."""
    return {path: path.stat().st_mtime_ns for path in (folder, *folder.rglob("*"))}


def test_shares_together_are_the_cohort_and_a_training_finds_all_prepared(tmp_path: Path) -> None:
    manifest = make_cohort(tmp_path / "data", n=5)
    images = times_of(manifest.parent)
    first = prepare(manifest, "shard=1/2")
    assert first.status == 0
    assert "share 1 of 2: 3 cases, 3 prepared, 0 from the cache, 0 failed" in first.stdout
    assert {name[:2] for name in entries(manifest)} == {"c0", "c2", "c4"}
    assert prepare(manifest, "shard=2/2").status == 0
    before = entries(manifest)
    assert len(before) == 5
    data = Dataset(modalities=MODALITIES, manifest=manifest, cache_dir=cache_of(manifest))
    (tmp_path / "run").mkdir()
    cohort = prepare_cohort(data, tmp_path / "run")  # as train begins
    assert len(cohort.training_cases) + len(cohort.validation_cases) == 4
    assert entries(manifest) == before
    # The loads of the labels too are those that the jobs have counted.
    assert not (cache_of(manifest) / "label_volumes.json").exists()
    # Nothing is written beside the images.
    assert times_of(manifest.parent) == images


def test_the_same_command_goes_on_where_it_was_stopped(tmp_path: Path) -> None:
    manifest = make_cohort(tmp_path / "data", n=3)
    prepare(manifest, "shard=1/3")
    before = entries(manifest)
    again = prepare(manifest)
    assert "share 1 of 1: 3 cases, 2 prepared, 1 from the cache, 0 failed" in again.stdout
    assert before.items() <= entries(manifest).items()


def test_a_case_that_fails_is_listed_and_the_others_are_prepared(tmp_path: Path) -> None:
    manifest = make_cohort(tmp_path / "data", n=3)
    (tmp_path / "data" / "c1_T1.nii.gz").write_bytes(b"no image")
    outcome = prepare(manifest)
    assert outcome.status == 1
    assert "c1_T1.nii.gz" in outcome.stdout
    assert "3 cases, 2 prepared, 0 from the cache, 1 failed" in outcome.stdout


@pytest.mark.parametrize("shard", ["0/3", "4/3", "3", "a/b"])
def test_a_share_that_is_none_is_one_line(tmp_path: Path, shard: str) -> None:
    outcome = call("prepare", f"shard={shard}")
    assert outcome.error == f"shard: {shard}; expected k/n as in 3/20, k from 1 to n"


def test_a_cache_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    manifest = make_cohort(tmp_path / "data", n=2)
    (tmp_path / "file").touch()
    outcome = prepare(manifest, f"data.cache_dir={tmp_path / 'file' / 'cache'}")
    assert "cannot be written" in outcome.error
    assert "name another cache_dir" in outcome.error
