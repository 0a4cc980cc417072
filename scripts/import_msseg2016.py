"""Write the manifest of MSSEG 2016 alone: `python scripts/import_msseg2016.py ROOT MANIFEST.csv`; see --help."""

from tversky_seg.data.datasets._common import import_command
from tversky_seg.data.datasets.msseg2016 import find_msseg2016

if __name__ == "__main__":
    import_command(find_msseg2016)
