"""Write the manifest of a BIDS data set alone: `python scripts/import_bids.py ROOT MANIFEST.csv`; see --help."""

from tversky_seg.data.datasets.bids import find_bids
from tversky_seg.data.datasets.importing import import_command

if __name__ == "__main__":
    import_command(find_bids)
