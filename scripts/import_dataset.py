"""Write the manifest of a public data set: `python scripts/import_dataset.py NAME ROOT OUT.csv`.

`--help` lists the data sets; `NAME --help` lists the options of one.
"""

from tversky_seg.data.datasets.import_command import main

if __name__ == "__main__":
    main()
