"""Write the manifest of LiTS alone: `python scripts/import_lits.py ROOT MANIFEST.csv`; see --help."""

from tversky_seg.data.datasets._common import import_command
from tversky_seg.data.datasets.lits import find_lits

if __name__ == "__main__":
    import_command(find_lits)
