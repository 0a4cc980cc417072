"""MLflow and Weights & Biases: optional packages that receive the numbers and pictures of a run.

Each run directory has one run in each tracker. Its id is kept in `<run>/trackers/<name>.json`, so a
resumed command sends to the same run, and no step twice. The server is set by the trackers' own
environment variables (MLFLOW_TRACKING_URI, MLFLOW_EXPERIMENT_NAME, WANDB_PROJECT,
WANDB_MODE=offline). The packages are imported only where they are asked for.
"""

from __future__ import annotations

import importlib.util
import os
import time
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import yaml

from tversky_seg.runtime.files import read_json_if_whole, write_json
from tversky_seg.runtime.run_settings import flatten

PACKAGES = {"mlflow": "mlflow", "wandb": "wandb"}
"""Name of a tracker in the settings -> package that it needs."""
DEFAULT_PROJECT = "tversky-seg"

# Limits of MLflow's server.
MLFLOW_PARAMS_PER_REQUEST = 100
MLFLOW_PARAM_LENGTH = 500


class Tracker(Protocol):
    """A receiver of the numbers and pictures of a run."""

    def numbers(self, step: int, values: Mapping[str, float]) -> None:
        """Send numbers, except those whose name and step were sent before."""
        ...

    def pictures(self, step: int, values: Mapping[str, np.ndarray[Any, Any]]) -> None:
        """Send pictures, uint8 (height, width, 3)."""
        ...

    def results(self, step: int, values: Mapping[str, float], files: Sequence[Path]) -> None:
        """Send the results of the finished run, and files of its directory."""
        ...

    def close(self) -> None:
        """Send what is left."""
        ...


def check_trackers(names: Sequence[str]) -> tuple[str, ...]:
    """Check that each name is a tracker whose package is installed.

    Raises:
        ValueError: With the name of the tracker, and what to install.
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
    """Open the trackers of a run directory, each in the run that an earlier command began.

    Raises:
        ValueError: A tracker cannot be opened, as without a login.
    """
    trackers: list[Tracker] = []
    for name in check_trackers(names):
        try:
            trackers.append(
                MLflow(output_dir) if name == "mlflow" else WeightsAndBiases(output_dir)
            )
        except Exception as error:  # the packages of trackers raise anything
            first_line = str(error).partition("\n")[0] or type(error).__name__
            raise ValueError(
                f"trainer.trackers: {name} cannot be opened ({first_line}); "
                "expected a server or a login, see docs/training.md"
            ) from error
    return trackers


class MLflow:
    """A run of MLflow, whose server knows which steps it has."""

    def __init__(self, output_dir: Path) -> None:
        # Optional and slow to import, so not at the top of the module.
        import mlflow
        from mlflow.entities import Metric, Param

        self._client = mlflow.MlflowClient()
        self._metric = Metric
        self._param = Param
        note = _TrackerNote(output_dir, "mlflow")
        if note.run_id is None:
            run = self._client.create_run(self._experiment_id(), run_name=output_dir.name)
            note.save(run_id=run.info.run_id)
            self._send_settings(run.info.run_id, settings_of_run(output_dir))
        self.run_id = str(note.run_id)
        # An earlier command has closed the run, or was killed before it could.
        self._client.update_run(self.run_id, status="RUNNING")
        self._last_steps = self._read_last_steps()

    def numbers(self, step: int, values: Mapping[str, float]) -> None:
        """Send new numbers in one request."""
        now_ms = int(time.time() * 1000)
        new = _values_after(self._last_steps, step, values)
        metrics = [self._metric(name, value, now_ms, step) for name, value in new.items()]
        self._client.log_batch(self.run_id, metrics)
        self._last_steps |= dict.fromkeys(new, step)

    def pictures(self, step: int, values: Mapping[str, np.ndarray[Any, Any]]) -> None:
        """Send files pictures/<name>/<step>.png."""
        for name, picture in values.items():
            file = f"pictures/{name}/{step:07d}.png"
            self._client.log_image(self.run_id, picture, artifact_file=file)

    def results(self, step: int, values: Mapping[str, float], files: Sequence[Path]) -> None:
        """Send the results as metrics, and the files as artifacts in the folders of the run."""
        self.numbers(step, values)
        for file in files:
            self._client.log_artifact(self.run_id, str(file), file.parent.name)

    def close(self) -> None:
        """Mark the run as ended; a resumed command opens it again."""
        self._client.set_terminated(self.run_id)

    def _experiment_id(self) -> str:
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", DEFAULT_PROJECT)
        experiment = self._client.get_experiment_by_name(name)
        if experiment is None:
            return str(self._client.create_experiment(name))
        return str(experiment.experiment_id)

    def _send_settings(self, run_id: str, settings: Mapping[str, Any]) -> None:
        params = []
        for key, value in settings.items():
            # The server refuses longer values, as of a list of paths.
            params.append(self._param(key, str(value)[:MLFLOW_PARAM_LENGTH]))
        for first in range(0, len(params), MLFLOW_PARAMS_PER_REQUEST):
            batch = params[first : first + MLFLOW_PARAMS_PER_REQUEST]
            self._client.log_batch(run_id, params=batch)

    def _read_last_steps(self) -> dict[str, int]:
        """Ask the server for the last step of each metric."""
        # Rows after the last checkpoint are repeated by a resumed run, and must not be sent twice.
        last_steps = {}
        for name in self._client.get_run(self.run_id).data.metrics:
            history = self._client.get_metric_history(self.run_id, name)
            last_steps[name] = max(metric.step for metric in history)
        return last_steps


class WeightsAndBiases:
    """A run of Weights & Biases.

    Its sent steps are noted in the run directory, because offline no server knows them.
    """

    def __init__(self, output_dir: Path) -> None:
        import wandb

        self._image = wandb.Image
        self._note = _TrackerNote(output_dir, "wandb")
        if self._note.run_id is None:
            # An id of our own, because offline no server gives one.
            self._note.save(run_id=uuid.uuid4().hex[:12])
        # "allow" begins a run with this id, or adds to it where the server has one.
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", DEFAULT_PROJECT),
            dir=str(self._note.path.parent),
            id=self._note.run_id,
            name=output_dir.name,
            resume="allow",
            config=settings_of_run(output_dir),
        )

    def numbers(self, step: int, values: Mapping[str, float]) -> None:
        """Log, then note the step: a kill between the two sends one row again."""
        new = _values_after(self._note.last_steps, step, values)
        if new:
            self._run.log(new, step=step)
            self._note.save(last_steps=self._note.last_steps | dict.fromkeys(new, step))

    def pictures(self, step: int, values: Mapping[str, np.ndarray[Any, Any]]) -> None:
        """Log images."""
        images = {name: self._image(picture) for name, picture in values.items()}
        self._run.log(images, step=step)

    def results(self, step: int, values: Mapping[str, float], files: Sequence[Path]) -> None:
        """Put the results into the summary, which knows no order of steps; upload the files."""
        self._run.summary.update(dict(values))
        for file in files:
            self._run.save(str(file), base_path=str(file.parents[1]), policy="now")

    def close(self) -> None:
        """Wait until everything is sent, or written if offline."""
        self._run.finish()


class _TrackerNote:
    """Id and sent steps of a tracker's run, kept between commands: <run>/trackers/<name>.json."""

    def __init__(self, output_dir: Path, name: str) -> None:
        self.path = output_dir / "trackers" / f"{name}.json"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        content = read_json_if_whole(self.path) or {}
        self.run_id: str | None = content.get("run_id")
        self.last_steps: dict[str, int] = content.get("last", {})

    def save(
        self, *, run_id: str | None = None, last_steps: Mapping[str, int] | None = None
    ) -> None:
        """Change the given entries and write the file."""
        if run_id is not None:
            self.run_id = run_id
        if last_steps is not None:
            self.last_steps = dict(last_steps)
        write_json(self.path, {"run_id": self.run_id, "last": self.last_steps})


def _values_after(
    last_steps: Mapping[str, int], step: int, values: Mapping[str, float]
) -> dict[str, float]:
    """Keep the values of names whose last sent step lies before `step`."""
    # {"loss": 200} and step 200: "loss" was sent before, "val_dice" was not.
    new = {}
    for name, value in values.items():
        if step > last_steps.get(name, -1):
            new[name] = value
    return new


def settings_of_run(output_dir: Path) -> dict[str, Any]:
    """Read the settings of a run by dotted key; none without a config.yaml."""
    path = output_dir / "config.yaml"
    if not path.exists():
        return {}
    return dict(flatten(yaml.safe_load(path.read_text(encoding="utf-8"))))
