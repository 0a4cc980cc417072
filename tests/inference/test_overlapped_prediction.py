"""Cases that are read and written in threads, as beside a GPU: the same files, errors and order."""

import hashlib
import threading
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from helpers.cuda import on_gpu
from helpers.networks import FirstChannel
from helpers.oblique_cases import FLAIR, a_case
from tversky_seg.data.case import Case
from tversky_seg.inference import predict as prediction
from tversky_seg.inference.predict import predict_cases
from tversky_seg.inference.settings import Inference
from tversky_seg.runtime.overlap import OneBehind, read_ahead
from tversky_seg.runtime.preemption import Preempted

SETTINGS = Inference(patch_size=8, threshold=0.7)


@pytest.fixture
def in_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    def one_behind(*, in_thread: bool) -> OneBehind:
        assert not in_thread, "on the CPU the network takes all cores"
        return OneBehind(in_thread=True)

    def ahead(items: object, read: object, *, in_thread: bool) -> object:
        return read_ahead(items, read, in_thread=True)  # type: ignore[arg-type]

    monkeypatch.setattr(prediction, "OneBehind", one_behind)
    monkeypatch.setattr(prediction, "read_ahead", ahead)


def predict(cases: list[Case], folder: Path, network: nn.Module | None = None) -> dict[str, str]:
    return predict_cases(
        network or FirstChannel(), cases, FLAIR, folder, inference=SETTINGS, checksum="c"
    )


def checksums(folder: Path) -> dict[str, str]:
    """SHA-256 of all files, by name."""
    sums = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            sums[str(path.relative_to(folder))] = hashlib.sha256(path.read_bytes()).hexdigest()
    return sums


def test_files_and_faults_are_those_of_one_after_the_other(
    tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    cases = [a_case(tmp_path, name, seed=seed) for seed, name in enumerate("abcde")]
    for name in "bd":
        lost = tmp_path / f"{name}_FLAIR.nii.gz"
        lost.write_bytes(lost.read_bytes()[:50])
    faults = predict(cases, tmp_path / "one after the other")
    request.getfixturevalue("in_threads")
    faults_in_threads = predict(cases, tmp_path / "in threads")
    assert list(faults) == list(faults_in_threads) == ["b", "d"]
    assert faults == faults_in_threads
    expected = checksums(tmp_path / "one after the other")
    assert len(expected) > 9
    assert checksums(tmp_path / "in threads") == expected


class Failing(FirstChannel):
    """Fails at the n-th window."""

    def __init__(self, n: int, error: BaseException) -> None:
        super().__init__()
        self.n_left = n
        self.error = error

    def forward(self, image: Tensor) -> Tensor:
        self.n_left -= len(image)
        if self.n_left < 0:
            raise self.error
        return super().forward(image)


@pytest.mark.usefixtures("in_threads")
def test_a_stop_leaves_the_cases_before_it_complete_and_resumes(tmp_path: Path) -> None:
    cases = [a_case(tmp_path, name, seed=seed) for seed, name in enumerate("abc")]
    counting = Failing(10**6, ValueError())
    predict(cases[:1], tmp_path / "first", counting)
    n_of_a_case = 10**6 - counting.n_left
    with pytest.raises(Preempted):
        predict(cases, tmp_path / "p", Failing(2 * n_of_a_case, Preempted("SIGTERM")))
    assert [path.name for path in sorted((tmp_path / "p" / ".cases").glob("*.json"))] == [
        "a.json",
        "b.json",
    ]
    assert not list((tmp_path / "p" / ".cases").glob("job-*"))
    assert predict(cases, tmp_path / "p") == {}
    assert predict(cases, tmp_path / "once") == {}
    assert checksums(tmp_path / "p") == checksums(tmp_path / "once")


@pytest.mark.usefixtures("in_threads")
def test_while_a_case_is_predicted_the_next_is_read_and_the_last_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Each of the three waits for the two others, so that without overlap none would go on.
    meeting = threading.Barrier(3, timeout=20)
    prepare = prediction.CasePredictor.read
    write = prediction.CasePredictor.write

    def read_and_meet(predictor: prediction.CasePredictor, case: Case) -> prediction.ReadCase:
        if case.case_id == "c":
            meeting.wait()
        return prepare(predictor, case)

    def meet_and_write(predictor: prediction.CasePredictor, case: Case, predicted: object) -> None:
        if case.case_id == "a":
            meeting.wait()
        write(predictor, case, predicted)  # type: ignore[arg-type]

    monkeypatch.setattr(prediction.CasePredictor, "read", read_and_meet)
    monkeypatch.setattr(prediction.CasePredictor, "write", meet_and_write)
    predicted = []
    of_ensemble = prediction.Ensemble.predict_parts

    def predict_and_meet(*arguments: object, **settings: object) -> object:
        predicted.append(1)
        if len(predicted) == 2:
            meeting.wait()
        return of_ensemble(*arguments, **settings)  # type: ignore[arg-type]

    monkeypatch.setattr(prediction.Ensemble, "predict_parts", predict_and_meet)
    cases = [a_case(tmp_path, name, seed=seed) for seed, name in enumerate("abc")]
    assert predict(cases, tmp_path / "p") == {}
    assert not meeting.broken


@on_gpu
def test_a_gpu_writes_the_files_of_the_cpu(tmp_path: Path) -> None:
    cases = [a_case(tmp_path, name, seed=seed) for seed, name in enumerate("abc")]
    on_cpu = predict(cases, tmp_path / "cpu")
    device = torch.device("cuda")
    on_device = predict_cases(
        FirstChannel(), cases, FLAIR, tmp_path / "gpu", inference=SETTINGS, device=device
    )
    assert on_cpu == on_device == {}
    expected = checksums(tmp_path / "cpu")
    found = checksums(tmp_path / "gpu")
    for name in expected:
        if name.endswith("_mask.nii.gz"):
            assert found[name] == expected[name]
