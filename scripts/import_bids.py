"""Write the manifest of a BIDS data set alone: `python scripts/import_bids.py ROOT MANIFEST.csv`; see --help."""

from tversky_seg.data.datasets._common import import_command
from tversky_seg.data.datasets.bids import find_bids

if __name__ == "__main__":
    import_command(find_bids)
