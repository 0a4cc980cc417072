"""Write the manifest of LUNA16 alone: `python scripts/import_luna16.py ROOT MANIFEST.csv`; see --help."""

from tversky_seg.data.datasets._common import import_command
from tversky_seg.data.datasets.luna16 import find_luna16

if __name__ == "__main__":
    import_command(find_luna16)
