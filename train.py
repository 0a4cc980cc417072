"""Train a network, predict the test cases and evaluate the predictions.

`python train.py --help` lists the settings. The steps are in src/tversky_seg/commands/train.py;
`tversky-seg train` is the same.
"""

from tversky_seg.cli import command

train = command("train")

if __name__ == "__main__":
    train()
