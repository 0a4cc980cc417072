"""Compare runs, with intervals and tests: `python scripts/compare.py RUN_A RUN_B …`.

The same as `tversky-seg compare`.
"""

from tversky_seg.cli import command

main = command("compare")

if __name__ == "__main__":
    main()
