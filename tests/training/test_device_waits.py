"""Training and prediction never make the host wait for a GPU, as a device that is none shows."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from torch.utils import backend_registration

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "device_waits.py"
N_STEPS = 2  # whose events are written
WAITS = ("wait", "pageable copy")

pytestmark = pytest.mark.skipif(
    not hasattr(backend_registration, "_setup_privateuseone_for_python_backend"),
    reason="needs torch 2.9, which has devices in Python",
)


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, Any]]]:
    """Events of each training and prediction; in a process of its own, for it changes torch."""
    path = tmp_path_factory.mktemp("waits") / "events.json"
    without_gpu = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    subprocess.run([sys.executable, str(SCRIPT), "--every", str(path)], check=True, env=without_gpu)
    events: dict[str, list[dict[str, Any]]] = json.loads(path.read_text())
    return events


def waits(events: list[dict[str, Any]]) -> list[str]:
    """Say where the host waits."""
    return [f"{event['place']}: {event['operation']}" for event in events if event["kind"] in WAITS]


@pytest.mark.parametrize(
    "training",
    [
        "default",
        "workers",
        "no augmentation",
        "light augmentation",
        "strong augmentation",
        "growth augmentation",
        "turns alone",
        "weights",
        "cells",
        "largest probability",
        "blob term",
    ],
)
def test_a_step_waits_for_nothing(seen: dict[str, list[dict[str, Any]]], training: str) -> None:
    assert waits(seen[training]) == []


def test_every_kind_of_wait_is_seen(seen: dict[str, list[dict[str, Any]]]) -> None:
    found = [(event["kind"], event["operation"], event["n_bytes"]) for event in seen["known waits"]]
    assert found == [
        ("pageable copy", "copy to the device", 32),
        ("wait", "aten._local_scalar_dense", 0),
        ("wait", "aten.index by a mask", 0),
        ("pageable copy", "copy to the host", 32),
        ("pageable copy", "copy to the device", 8),
        ("mixing of devices", "aten.add with [(8,)] on the host", 0),
        ("pinned copy", "copy to the device", 32),
    ]


def test_what_is_seen_is_a_step_on_the_device(seen: dict[str, list[dict[str, Any]]]) -> None:
    """Each step takes its patches and reads the result of the step before."""
    kinds = [event["kind"] for event in seen["default"]]
    assert kinds.count("wait for an earlier step") >= N_STEPS
    copied = [event["n_bytes"] for event in seen["default"] if event["kind"] == "pinned copy"]
    assert sum(copied) > N_STEPS * 2 * 3 * 16**3  # two patches, three channels


def test_the_blob_loss_waits_for_its_components_alone(
    seen: dict[str, list[dict[str, Any]]],
) -> None:
    places = waits(seen["blob loss"])
    assert len(places) <= N_STEPS
    assert all(place.startswith("losses/blob.py") for place in places)


def test_a_prediction_waits_for_the_case_and_for_no_window(
    seen: dict[str, list[dict[str, Any]]],
) -> None:
    few, many = waits(seen["8 windows"]), waits(seen["27 windows"])
    assert few == many
    assert len(few) <= 2


def test_no_operation_mixes_devices(seen: dict[str, list[dict[str, Any]]]) -> None:
    for name, events in seen.items():
        if name == "known waits":
            continue
        assert [event for event in events if event["kind"] == "mixing of devices"] == []
