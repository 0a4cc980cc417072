"""Write the manifest of raw nnU-Net v2 data alone: `python scripts/import_nnunet.py ROOT MANIFEST.csv`; see --help."""

from tversky_seg.data.datasets._common import import_command
from tversky_seg.data.datasets.nnunet import find_nnunet

if __name__ == "__main__":
    import_command(find_nnunet)
