"""Networks: (B, C, X, Y, Z) images to (B, K, X, Y, Z) logits, one channel per foreground class."""

from tversky_seg.models.fc_densenet import FCDenseNet3D
from tversky_seg.models.residual_unet import ResidualUNet3D
from tversky_seg.models.unet import UNet3D

__all__ = ["FCDenseNet3D", "ResidualUNet3D", "UNet3D"]
