"""Check a dataset before training on it: `python scripts/check_data.py [any train.py setting]`.

The same as `tversky-seg check`.
"""

from tversky_seg.cli import command

check_data = command("check")

if __name__ == "__main__":
    check_data()
