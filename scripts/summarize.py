"""Summarize a sweep or a cross-validation: `python scripts/summarize.py runs/beta [--goal f2]`.

The same as `tversky-seg summarize`.
"""

from tversky_seg.cli import command

main = command("summarize")

if __name__ == "__main__":
    main()
