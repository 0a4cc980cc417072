"""Evaluate predictions against the labels of a manifest: `python evaluate.py --help`.

The steps are in src/tversky_seg/commands/evaluate.py; `tversky-seg evaluate` is the same.
"""

from tversky_seg.cli import command

evaluate = command("evaluate")

if __name__ == "__main__":
    evaluate()
