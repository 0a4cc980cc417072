"""Write the manifest of a public data set: `python scripts/import_dataset.py NAME ROOT OUT.csv`.

The same as `tversky-seg import`.
"""

from tversky_seg.cli import command

main = command("import")

if __name__ == "__main__":
    main()
