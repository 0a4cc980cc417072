"""Write the manifest of a Decathlon task alone: `python scripts/import_decathlon.py ROOT MANIFEST.csv`; see --help."""

from tversky_seg.data.datasets.decathlon import find_decathlon
from tversky_seg.data.datasets.importing import import_command

if __name__ == "__main__":
    import_command(find_decathlon)
