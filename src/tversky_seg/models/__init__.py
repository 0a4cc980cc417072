"""Networks: (B, C, X, Y, Z) images to (B, K, X, Y, Z) logits, one channel per foreground class."""

from tversky_seg.models.unet import UNet3D

__all__ = ["UNet3D"]
