"""What a run records, sent to MLflow or Weights & Biases as well: optional packages, imported where they are asked for.

Each tracker belongs to one run directory: the id of its run lies in `<run>/trackers/`, a command that goes on sends to
the same run, and what is there already is not sent again. Where a tracker stands is told by its own environment
variables (MLFLOW_TRACKING_URI, MLFLOW_EXPERIMENT_NAME, WANDB_PROJECT, WANDB_MODE=offline).
"""

from __future__ import annotations

import importlib.util
import json
import os
import time
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import yaml

from tversky_seg.runtime.run_settings import flatten

PACKAGES = {"mlflow": "mlflow", "wandb": "wandb"}


class Tracker(Protocol):
    """Where numbers and pictures of a run go."""

    def numbers(self, step: int, values: Mapping[str, float]) -> None:
        """Send numbers; those of a name whose step is there already are left out."""
        ...

    def pictures(self, step: int, values: Mapping[str, np.ndarray[Any, Any]]) -> None:
        """Send pictures, uint8 (height, width, 3)."""
        ...

    def close(self) -> None:
        """Send what is left."""
        ...


def check_trackers(names: Sequence[str]) -> tuple[str, ...]:
    """The names, if each is a tracker whose package is installed.

    Raises:
        ValueError: naming the tracker, and what to install.
    """
    for name in names:
        if name not in PACKAGES:
            raise ValueError(f"trackers must be of {', '.join(PACKAGES)}, got {name}")
        if importlib.util.find_spec(PACKAGES[name]) is None:
            raise ValueError(
                f"trackers need a package: pip install 'tversky-seg[{name}]', got {name}"
            )
    return tuple(names)


def open_trackers(names: Sequence[str], output_dir: Path) -> list[Tracker]:
    """The trackers of a run directory, going on where they were left."""
    makers: dict[str, Any] = {"mlflow": MLflow, "wandb": WeightsAndBiases}
    return [makers[name](output_dir) for name in check_trackers(names)]


class MLflow:
    """A run of MLflow; its server knows which steps are there."""

    def __init__(self, output_dir: Path) -> None:
        import mlflow
        from mlflow.entities import Metric, Param

        self._client, self._metric = mlflow.MlflowClient(), Metric
        note = _Note(output_dir, "mlflow")
        if note.run_id is None:
            name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "tversky-seg")
            found = self._client.get_experiment_by_name(name)
            experiment = found.experiment_id if found else self._client.create_experiment(name)
            note.keep(
                run_id=self._client.create_run(experiment, run_name=output_dir.name).info.run_id
            )
            settings = [
                Param(key, str(value)[:500]) for key, value in _settings(output_dir).items()
            ]
            for first in range(0, len(settings), 100):  # as many as a request may hold
                self._client.log_batch(note.run_id, params=settings[first : first + 100])
        self.run_id = str(note.run_id)
        self._client.update_run(self.run_id, status="RUNNING")
        names = self._client.get_run(self.run_id).data.metrics
        self._last = {
            n: max(m.step for m in self._client.get_metric_history(self.run_id, n)) for n in names
        }

    def numbers(self, step: int, values: Mapping[str, float]) -> None:
        """Send in one request."""
        now = int(time.time() * 1000)
        new = {name: value for name, value in values.items() if step > self._last.get(name, -1)}
        self._client.log_batch(
            self.run_id, [self._metric(name, value, now, step) for name, value in new.items()]
        )
        self._last |= dict.fromkeys(new, step)

    def pictures(self, step: int, values: Mapping[str, np.ndarray[Any, Any]]) -> None:
        """Send as files pictures/<name>/<step>.png."""
        for name, picture in values.items():
            self._client.log_image(
                self.run_id, picture, artifact_file=f"pictures/{name}/{step:07d}.png"
            )

    def close(self) -> None:
        """Mark the run as ended for now."""
        self._client.set_terminated(self.run_id)


class WeightsAndBiases:
    """A run of Weights & Biases; which steps are there is noted beside, since offline nobody else knows."""

    def __init__(self, output_dir: Path) -> None:
        import wandb

        self._note, self._picture = _Note(output_dir, "wandb"), wandb.Image
        if self._note.run_id is None:
            self._note.keep(run_id=uuid.uuid4().hex[:12])
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "tversky-seg"),
            dir=str(self._note.path.parent),
            id=self._note.run_id,
            name=output_dir.name,
            resume="allow",
            config=_settings(output_dir),
        )

    def numbers(self, step: int, values: Mapping[str, float]) -> None:
        """Log, then note the step: a kill between the two sends one row of numbers again."""
        new = {
            name: value for name, value in values.items() if step > self._note.last.get(name, -1)
        }
        if new:
            self._run.log(new, step=step)
            self._note.keep(last=self._note.last | dict.fromkeys(new, step))

    def pictures(self, step: int, values: Mapping[str, np.ndarray[Any, Any]]) -> None:
        """Log as images."""
        self._run.log({name: self._picture(picture) for name, picture in values.items()}, step=step)

    def close(self) -> None:
        """Wait until all is sent, or written where offline."""
        self._run.finish()


class _Note:
    """What is known of a tracker's run between commands, as <run>/trackers/<name>.json."""

    def __init__(self, output_dir: Path, name: str) -> None:
        self.path = output_dir / "trackers" / f"{name}.json"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        kept = json.loads(self.path.read_text()) if self.path.exists() else {}
        self.run_id: str | None = kept.get("run_id")
        self.last: dict[str, int] = kept.get("last", {})

    def keep(self, *, run_id: str | None = None, last: Mapping[str, int] | None = None) -> None:
        """Write beside and rename."""
        self.run_id, self.last = run_id or self.run_id, dict(last or self.last)
        scratch = self.path.with_suffix(".tmp")
        scratch.write_text(json.dumps({"run_id": self.run_id, "last": self.last}))
        scratch.replace(self.path)


def _settings(output_dir: Path) -> dict[str, Any]:
    """The settings of a run by dotted key; none where it has no config.yaml."""
    path = output_dir / "config.yaml"
    return dict(flatten(yaml.safe_load(path.read_text()))) if path.exists() else {}
