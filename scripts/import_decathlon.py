"""Write the manifest of a Decathlon task alone: `python scripts/import_decathlon.py ROOT MANIFEST.csv`; see --help."""

from tversky_seg.data.datasets._common import import_command
from tversky_seg.data.datasets.decathlon import find_decathlon

if __name__ == "__main__":
    import_command(find_decathlon)
