"""3D segmentation of very small targets: losses, networks, metrics, training and prediction.

The names below come from the packages that hold them, imported when first used: `import
tversky_seg` itself is quick, and needs no torch.

    from tversky_seg import TverskyLoss, UNet3D, predict_volume
"""

from typing import TYPE_CHECKING

from tversky_seg.runtime.lazy_names import lazy_names

if TYPE_CHECKING:
    from tversky_seg.data import read_manifest
    from tversky_seg.evaluation import evaluate
    from tversky_seg.inference import predict_volume
    from tversky_seg.inference.segmenter import Segmenter
    from tversky_seg.losses import (
        AsymmetricSimilarityLoss,
        BCELoss,
        BlobLoss,
        CombinedLoss,
        DiceLoss,
        FocalLoss,
        FocalTverskyLoss,
        GeneralizedDiceLoss,
        TverskyCrossEntropyLoss,
        TverskyLoss,
        WeightedBCELoss,
    )
    from tversky_seg.metrics import (
        average_precision,
        lesion_counts,
        overlap_counts,
        precision_recall_curve,
        surface_distances,
    )
    from tversky_seg.models import FCDenseNet3D, ResidualUNet3D, UNet3D
    from tversky_seg.weighting import inverse_weights

    __version__: str
else:
    _imported = lazy_names(
        __name__,
        {
            "data": ("read_manifest",),
            "evaluation": ("evaluate",),
            "inference": ("predict_volume",),
            "inference.segmenter": ("Segmenter",),
            "losses": (
                "AsymmetricSimilarityLoss",
                "BCELoss",
                "BlobLoss",
                "CombinedLoss",
                "DiceLoss",
                "FocalLoss",
                "FocalTverskyLoss",
                "GeneralizedDiceLoss",
                "TverskyCrossEntropyLoss",
                "TverskyLoss",
                "WeightedBCELoss",
            ),
            "metrics": (
                "average_precision",
                "lesion_counts",
                "overlap_counts",
                "precision_recall_curve",
                "surface_distances",
            ),
            "models": ("FCDenseNet3D", "ResidualUNet3D", "UNet3D"),
            "weighting": ("inverse_weights",),
        },
    )

    def __getattr__(name):
        """Import a name when it is first used."""
        if name == "__version__":
            return _version()
        return _imported(name)

    def __dir__():
        """List the names, those not yet imported among them."""
        return sorted({*globals(), *__all__})

    def _version():
        """Return the version that pip installed; "0+unknown" in a clone that was not installed."""
        from importlib import metadata

        try:
            return metadata.version("tversky-seg")
        except metadata.PackageNotFoundError:
            return "0+unknown"


__all__ = [
    "AsymmetricSimilarityLoss",
    "BCELoss",
    "BlobLoss",
    "CombinedLoss",
    "DiceLoss",
    "FCDenseNet3D",
    "FocalLoss",
    "FocalTverskyLoss",
    "GeneralizedDiceLoss",
    "ResidualUNet3D",
    "Segmenter",
    "TverskyCrossEntropyLoss",
    "TverskyLoss",
    "UNet3D",
    "WeightedBCELoss",
    "__version__",
    "average_precision",
    "evaluate",
    "inverse_weights",
    "lesion_counts",
    "overlap_counts",
    "precision_recall_curve",
    "predict_volume",
    "read_manifest",
    "surface_distances",
]
