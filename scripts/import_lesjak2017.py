"""Write the manifest of open_ms_data alone: `python scripts/import_lesjak2017.py ROOT MANIFEST.csv`; see --help."""

from tversky_seg.data.datasets._common import import_command
from tversky_seg.data.datasets.lesjak2017 import find_lesjak2017

if __name__ == "__main__":
    import_command(find_lesjak2017)
