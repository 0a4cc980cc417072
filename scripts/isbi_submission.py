"""Pack predicted masks for the ISBI 2015 challenge: `python scripts/isbi_submission.py MASKS`.

The same as `tversky-seg isbi-submission`.
"""

from tversky_seg.cli import command

main = command("isbi-submission")

if __name__ == "__main__":
    main()
