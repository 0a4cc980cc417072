"""From a trained network to masks: volumes by overlapping windows, cases on their own grid, many cases."""

import itertools
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn
from torch.nn.functional import pad

from tversky_seg.data.cases import Case, DataError
from tversky_seg.data.preprocessing import PreparedCase, Preprocessing, preprocess, to_input_grid
from tversky_seg.devices import autocast
from tversky_seg.predictions import claim_folder, prediction_files, read_lesions, write_lesions, write_prediction
from tversky_seg.progress import Reporter

logger = logging.getLogger("tversky_seg")

Sides = tuple[int, int, int]
Window = str | Callable[[int], ArrayLike] | NDArray[Any] | Tensor


def spline_window(n: int, *, order: int = 2) -> NDArray[np.float64]:
    """Spline weights along one side of n voxels, in (0, 1]: with n even and 50 % overlap, neighbours add up to 1.

    Order 2 is the window of Hashemi et al. (arXiv:1803.11078, released code). That code divides the fused map by 4
    where 8 windows meet, so its probabilities are twice too large and its threshold of 0.5 is one of 0.25; here the map
    is divided by the weights that were in fact added up.
    """
    place = np.arange(n, dtype=np.float64) + 0.5
    ramp = np.minimum(place, n - place) * 2 / n  # a triangle, 1 in the centre
    return np.where(ramp <= 0.5, (2 * ramp) ** order / 2, 1 - (2 - 2 * ramp) ** order / 2)


def gaussian_window(n: int, *, sigma: float = 0.125) -> NDArray[np.float64]:
    """Gaussian weights along one side of n voxels, sigma as a share of the side (MONAI and nnU-Net take 1/8)."""
    offset = np.arange(n, dtype=np.float64) - (n - 1) / 2
    weights: NDArray[np.float64] = np.exp(-0.5 * (offset / (sigma * n)) ** 2)
    return weights


WINDOWS: Mapping[str, Callable[[int], ArrayLike]] = {
    "bspline": spline_window,
    "gaussian": gaussian_window,
    "uniform": np.ones,
}


@dataclass(frozen=True)
class Inference:
    """How volumes are predicted and masks are made: plain values, kept with the checkpoint.

    Args:
        patch_size: Sides of a window in voxels, one number or three; None: those of training.
        overlap: Share of a window's side that the next one covers again, in [0, 1).
        window: Weights of a window's voxels: "bspline", "gaussian" or "uniform".
        batch_size: Windows that go through the network together.
        threshold: Probability from which a voxel belongs to the mask, in [0, 1], or one for each class; None: as chosen
            on validation, else 0.5.
        min_volume_mm3: Smaller lesions are taken out of the mask.

    Raises:
        ValueError: A value out of its range.
    """

    patch_size: int | Sequence[int] | None = None
    overlap: float = 0.5
    window: str = "bspline"
    batch_size: int = 2
    threshold: float | Mapping[str, float] | None = None
    min_volume_mm3: float = 0.0

    def __post_init__(self) -> None:
        """Refuse a wrong value before any data are read."""
        _check_windows(1 if self.patch_size is None else self.patch_size, self.overlap, self.window, self.batch_size)
        by_class = self.threshold if isinstance(self.threshold, Mapping) else {"": self.threshold}
        for threshold in by_class.values():
            if threshold is not None and not 0 <= threshold <= 1:
                raise ValueError(f"threshold must lie in [0, 1], got {threshold}")
        if not self.min_volume_mm3 >= 0:
            raise ValueError(f"min_volume_mm3 must be >= 0, got {self.min_volume_mm3}")

    @property
    def windows(self) -> dict[str, Any]:
        """The arguments of `predict_case` that are set here."""
        return {name: getattr(self, name) for name in ("patch_size", "overlap", "window", "batch_size")}

    def threshold_of(self, class_name: str) -> float:
        """The threshold of a class; 0.5 where none was chosen."""
        threshold = self.threshold.get(class_name) if isinstance(self.threshold, Mapping) else self.threshold
        return 0.5 if threshold is None else threshold


def predict_volume(
    network: nn.Module,
    image: Tensor | NDArray[Any],
    *,
    patch_size: int | Sequence[int],
    overlap: float = 0.5,
    window: Window = "bspline",
    batch_size: int = 1,
    foreground: Tensor | NDArray[Any] | None = None,
    device: torch.device | str | None = None,
    precision: str = "fp32",
) -> Tensor:
    """Probability of each class in each voxel of a volume of any size, from overlapping windows.

    Windows lie on a grid from the first voxel on, the last one pushed back to the border; a volume smaller than the
    window is padded with 0. Each voxel's probability is the weighted mean over the windows that cover it. The network
    runs in eval mode (each module's mode is put back) and is not otherwise touched. On a full CUDA device fewer windows
    are taken at once, then the sums move to the host, with one warning.

    Args:
        network: (B, C, *patch_size) -> logits (B, K, *patch_size).
        image: (C, X, Y, Z), as in training.
        patch_size: Sides of a window in voxels, one number or three.
        overlap: Share of a window's side that the next one covers again, in [0, 1).
        window: Weights: "bspline", "gaussian", "uniform", a function from the side n to n weights, or an array of the
            window's shape. All must be positive.
        batch_size: Windows that go through the network together.
        foreground: (X, Y, Z) bool: windows without any of it are skipped, with the same result inside it. Voxels that
            no window covers get 0. None: all windows.
        device: Where to compute; the network is moved there. None: where the network is.
        precision: "fp32", "bf16" or "fp16" inside the network; sums are float32.

    Returns:
        (K, X, Y, Z) float32 on the CPU, in [0, 1].

    Raises:
        ValueError: Arguments out of range, shapes that do not match, or a network that gives NaN.
    """
    sides = _check_windows(patch_size, overlap, window, batch_size)
    volume = image if isinstance(image, Tensor) else torch.from_numpy(np.require(image, np.float32, ["C", "W"]))
    if volume.ndim != 4:
        raise ValueError(f"image must have the shape (C, X, Y, Z), got {tuple(volume.shape)}")
    shape = volume.shape[1:]
    missing = [max(side - n, 0) for side, n in zip(sides, shape, strict=True)]
    before = [n // 2 for n in missing]
    if any(missing):
        volume = pad(volume, [n for b, m in zip(before[::-1], missing[::-1], strict=True) for n in (b, m - b)])
    corners = _corners(volume.shape[1:], sides, overlap)
    if foreground is not None:
        corners = _with_foreground(corners, foreground, sides=sides, shape=shape, before=before)
    device = _device_of(network) if device is None else torch.device(device)
    weights = _weights(window, sides)
    with _evaluating(network.to(device)):
        probability = _fuse(
            network, volume, corners, weights, batch_size=batch_size, device=device, precision=precision
        )
    x, y, z = (slice(b, b + n) for b, n in zip(before, shape, strict=True))
    return probability[:, x, y, z].contiguous()


def predict_case(
    network: nn.Module,
    prepared: PreparedCase,
    *,
    patch_size: int | Sequence[int],
    overlap: float = 0.5,
    window: Window = "bspline",
    batch_size: int = 1,
    device: torch.device | str | None = None,
    precision: str = "fp32",
) -> NDArray[np.float32]:
    """Probability (K, X, Y, Z) of a case on the grid of its own file: shape, affine and orientation of the input.

    Windows without any brain are skipped; outside the crop around the brain the probability is 0.
    Arguments as in `predict_volume`.
    """
    image = np.multiply(prepared.image, prepared.image_scale[:, None, None, None], dtype=np.float32)
    probability = predict_volume(
        network,
        image,
        patch_size=patch_size,
        overlap=overlap,
        window=window,
        batch_size=batch_size,
        foreground=prepared.foreground,
        device=device,
        precision=precision,
    )
    on_input_grid = np.empty((len(probability), *prepared.geometry.input_shape), dtype=np.float32)
    for of_class, from_network in zip(on_input_grid, probability.numpy(), strict=True):
        np.clip(to_input_grid(from_network, prepared.geometry), 0, 1, out=of_class)
    return on_input_grid


def predict_cases(
    network: nn.Module,
    cases: Sequence[Case],
    preprocessing: Preprocessing,
    output_dir: Path,
    *,
    inference: Inference,
    checksum: str,
    device: torch.device | str | None = None,
    precision: str = "fp32",
) -> dict[str, str]:
    """Predict many cases into one folder: masks, probabilities, lesions.csv and predictions.json.

    Cases whose files are there are not computed again; a case that fails does not stop the others. Labels are not read.
    lesions.csv is complete after every call, whatever was stopped before.

    Args:
        network: Trained network.
        cases: What to predict.
        preprocessing: As in training.
        output_dir: Made where it is missing.
        inference: Windows, threshold and smallest lesion; its `patch_size` must be set.
        checksum: Of the checkpoint, kept in predictions.json.
        device: Where to compute; None: where the network is.
        precision: As in `predict_volume`.

    Returns:
        The faults: case_id -> one line. Empty when all cases are written.

    Raises:
        DataError: The folder holds predictions of another checkpoint or other settings, or cannot be written.
        ValueError: `inference.patch_size` is None.
    """
    if inference.patch_size is None:
        raise ValueError("inference.patch_size must be set to predict, got None")
    classes = tuple(preprocessing.classes)
    threshold = {name: inference.threshold_of(name) for name in classes}
    resumes = claim_folder(output_dir, _settings(inference, preprocessing, threshold, checksum))

    def predict(case: Case) -> list[dict[str, Any]]:
        files = itertools.chain(*prediction_files(output_dir, case.case_id, classes).values())
        if resumes and all(map(Path.is_file, files)):
            return read_lesions(output_dir, case.case_id, classes=classes)
        prepared = preprocess(replace(case, labels=()), preprocessing)
        return write_prediction(
            output_dir,
            case.case_id,
            predict_case(network, prepared, **inference.windows, device=device, precision=precision),
            prepared.geometry.input_affine,
            classes=classes,
            threshold=threshold,
            min_volume_mm3=inference.min_volume_mm3,
        )

    rows: list[dict[str, Any]] = []
    faults: dict[str, str] = {}
    with Reporter("predict", total=len(cases)) as reporter:
        for case in cases:
            try:
                rows += predict(case)
            except Exception as error:
                kind = "" if isinstance(error, DataError) else f"{type(error).__name__}: "
                faults[case.case_id] = " ".join(f"{case.case_id}: {kind}{error}".split())
                logger.error("%s", faults[case.case_id], exc_info=logger.isEnabledFor(logging.DEBUG))
            reporter.advance(case.case_id)
    case_ids = [case.case_id for case in cases]
    write_lesions(output_dir / "lesions.csv", rows, case_ids=case_ids, n_classes=len(classes))
    return faults


def _check_windows(patch_size: int | Sequence[int], overlap: float, window: Window, batch_size: int) -> Sides:
    """The three sides of a window; ValueError for settings that make no sense."""
    sides = (patch_size,) * 3 if isinstance(patch_size, int) else tuple(patch_size)
    if len(sides) != 3 or min(sides) < 1:
        raise ValueError(f"patch_size must be one or three numbers >= 1, got {patch_size}")
    if not 0 <= overlap < 1:
        raise ValueError(f"overlap must lie in [0, 1), got {overlap}")
    if isinstance(window, str) and window not in WINDOWS:
        raise ValueError(f"window must be one of {', '.join(WINDOWS)}, got {window}")
    if batch_size < 1:
        raise ValueError(f"batch_size must be >= 1, got {batch_size}")
    return sides


def _corners(shape: Sequence[int], sides: Sides, overlap: float) -> list[Sides]:
    """First voxels of the windows; no side of the volume is smaller than the window's."""
    steps = [max(int(side * (1 - overlap)), 1) for side in sides]
    last = [n - side for n, side in zip(shape, sides, strict=True)]
    x, y, z = ([*range(0, end, step), end] for end, step in zip(last, steps, strict=True))
    return list(itertools.product(x, y, z))


def _weights(window: Window, sides: Sides) -> Tensor:
    """The weight of each voxel of a window, (x, y, z) float32."""
    if isinstance(window, str):
        window = WINDOWS[window]
    if callable(window):
        x, y, z = (np.asarray(window(side), dtype=np.float64) for side in sides)
        window = x[:, None, None] * y[:, None] * z
    weights = torch.as_tensor(window, dtype=torch.float32)
    if weights.shape != sides or not (weights > 0).all():
        raise ValueError(f"window must give positive weights of shape {sides}, got shape {tuple(weights.shape)}")
    return weights


def _with_foreground(
    corners: list[Sides],
    foreground: Tensor | NDArray[Any],
    *,
    sides: Sides,
    shape: Sequence[int],
    before: Sequence[int],
) -> list[Sides]:
    """The windows that hold a foreground voxel; the first one where none does, so that there is a result."""
    inside = np.asarray(foreground, dtype=bool)
    if inside.shape != tuple(shape):
        raise ValueError(f"foreground must have the image's shape {tuple(shape)}, got {inside.shape}")
    boxes = (
        tuple(slice(max(c - b, 0), c - b + side) for c, b, side in zip(corner, before, sides, strict=True))
        for corner in corners
    )
    return [corner for corner, box in zip(corners, boxes, strict=True) if inside[box].any()] or corners[:1]


def _device_of(network: nn.Module) -> torch.device:
    tensors = itertools.chain(network.parameters(), network.buffers())
    return next((tensor.device for tensor in tensors), torch.device("cpu"))


@contextmanager
def _evaluating(network: nn.Module) -> Iterator[None]:
    """Eval mode, and afterwards each module's own mode again."""
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        yield
    finally:
        for module, is_training in modes:
            module.training = is_training


def _fuse(
    network: nn.Module,
    volume: Tensor,
    corners: Sequence[Sides],
    weights: Tensor,
    *,
    batch_size: int,
    device: torch.device,
    precision: str,
) -> Tensor:
    """Weighted mean over the windows, (K, X, Y, Z) float32 on the CPU; 0 where there is no window."""
    volume, weights = volume.to(device), weights.to(device)
    total: Tensor | None = None
    weight_sum = torch.zeros(volume.shape[1:], device=device)
    done, has_warned = 0, False
    while done < len(corners):
        boxes = [_box(corner, weights.shape) for corner in corners[done : done + batch_size]]
        try:
            probability = _forward(network, volume, boxes, device=device, precision=precision)
        except torch.OutOfMemoryError:
            if batch_size == 1 and volume.device.type == "cpu":
                raise
            if batch_size == 1:
                volume, weights, weight_sum = volume.cpu(), weights.cpu(), weight_sum.cpu()
                total = None if total is None else total.cpu()
            batch_size = max(batch_size // 2, 1)
            if not has_warned:
                logger.warning("out of memory on %s: fewer windows at once, sums on the host if need be", device)
            has_warned = True
            continue
        if total is None:
            total = torch.zeros(probability.shape[1], *volume.shape[1:], device=volume.device)
        for of_window, box in zip(probability.to(volume.device), boxes, strict=True):
            total[:, *box].addcmul_(of_window, weights)
            weight_sum[box] += weights
        done += len(boxes)
    assert total is not None
    total /= weight_sum.clamp_(min=torch.finfo(torch.float32).tiny)
    if not torch.isfinite(total.sum()):
        raise ValueError("the network gave NaN; expected finite logits")
    return total.clamp_(0, 1).cpu()


@torch.inference_mode()
def _forward(
    network: nn.Module, volume: Tensor, boxes: Sequence[tuple[slice, ...]], *, device: torch.device, precision: str
) -> Tensor:
    """Probabilities of some windows, (B, K, x, y, z) float32."""
    windows = torch.stack([volume[:, *box] for box in boxes]).to(device, torch.float32)
    with autocast(device, precision):
        logits = network(windows)
    if logits.ndim != 5 or logits.shape[2:] != windows.shape[2:]:
        raise ValueError(f"the network made {tuple(logits.shape)} of {tuple(windows.shape)}; expected equal sides")
    probability: Tensor = logits.float().sigmoid()
    return probability


def _box(corner: Sides, sides: Sequence[int]) -> tuple[slice, ...]:
    return tuple(slice(start, start + side) for start, side in zip(corner, sides, strict=True))


def _settings(
    inference: Inference, preprocessing: Preprocessing, threshold: Mapping[str, float], checksum: str
) -> dict[str, Any]:
    """What predictions.json says of a folder."""
    patch_size = inference.patch_size
    return {
        "checkpoint": checksum,
        "classes": {name: list(values) for name, values in preprocessing.classes.items()},
        "threshold": dict(threshold) if len(threshold) > 1 else next(iter(threshold.values())),
        "min_volume_mm3": inference.min_volume_mm3,
        "window": inference.window,
        "overlap": inference.overlap,
        "patch_size": patch_size if isinstance(patch_size, int) or patch_size is None else list(patch_size),
    }
