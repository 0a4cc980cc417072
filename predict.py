"""Segment cases with one trained network or several: `python predict.py --help`.

The steps are in src/tversky_seg/commands/predict.py; `tversky-seg predict` is the same.
"""

from tversky_seg.cli import command

predict = command("predict")

if __name__ == "__main__":
    predict()
