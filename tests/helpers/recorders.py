"""A recorder that has recorded some steps."""

from pathlib import Path

from tversky_seg.runtime.recorder import Recorder


def record(folder: Path, steps: range, *, from_step: int = 0) -> None:
    recorder = Recorder(folder, from_step=from_step)
    for step in steps:
        recorder.metrics(step, {"loss": 1 / step, "learning_rate": 1e-3})
        recorder.timings(step, {"step_s": 0.1})
    recorder.close()
