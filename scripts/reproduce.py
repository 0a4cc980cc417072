"""Run all rows of a paper's table and write the table: `python scripts/reproduce.py PAPER`.

The same as `tversky-seg reproduce`.
"""

from tversky_seg.cli import command

main = command("reproduce")

if __name__ == "__main__":
    main()
