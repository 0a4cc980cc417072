"""Train the network of `trainer.init_from=synthetic` and write it to the file of the package.

    python scripts/dev/synthetic_start.py [key=value ...]

The words are settings of train.py beside experiment=synthetic_start. Run it again to resume.
"""

import argparse
import copy
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from tversky_seg.runtime.checkpoints import load_checkpoint, save_checkpoint
from tversky_seg.runtime.warm_start import SYNTHETIC_FILE

ROOT = Path(__file__).parents[2]
KEPT = ("model", "config", "preprocessing", "inference", "step")
OPERATING_POINT = ("threshold", "min_volume_mm3", "min_peak")
OF_THIS_MACHINE = {
    "data": {"root": "data/phantom", "cache_dir": "data/cache"},
    "trainer": {"threads": None, "n_workers": "auto", "device": "auto"},
}


def main() -> None:
    """Train, and write the release file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path, default=Path("runs/synthetic_start"))
    parser.add_argument("--file", type=Path, default=SYNTHETIC_FILE)
    parser.add_argument("--only-write", action="store_true", help="write what the run has so far")
    words, overrides = parser.parse_known_args()
    if not words.only_write:
        command = [sys.executable, str(ROOT / "train.py"), "experiment=synthetic_start"]
        command += [f"output_dir={words.run}", *overrides]
        subprocess.run(command, check=True)
    best = words.run / "checkpoints" / "best.pt"
    if not best.exists():
        best = words.run / "checkpoints" / "last.pt"
    content = release(load_checkpoint(best))
    save_checkpoint(words.file, content)
    size_mb = words.file.stat().st_size / 1e6
    print(f"{words.file}: step {content['step']}, {size_mb:.1f} MB")


def release(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """Keep what a prediction and a warm start need, weights as 16-bit numbers, no local paths."""
    content = {name: copy.deepcopy(checkpoint[name]) for name in (*KEPT, *OPERATING_POINT)}
    content["model"] = {name: halved(tensor) for name, tensor in content["model"].items()}
    config = content["config"]
    for group, settings in OF_THIS_MACHINE.items():
        config[group].update(settings)
    config["output_dir"] = None
    return content


def halved(tensor: torch.Tensor) -> torch.Tensor:
    """Round a tensor to 16 bits; whole numbers stay as they are."""
    return tensor.half() if tensor.is_floating_point() else tensor


if __name__ == "__main__":
    main()
