"""Write the manifest of ISBI 2015 alone: `python scripts/import_isbi2015.py ROOT MANIFEST.csv`; see --help."""

from tversky_seg.data.datasets._common import import_command
from tversky_seg.data.datasets.isbi2015 import find_isbi2015

if __name__ == "__main__":
    import_command(find_isbi2015)
