"""One case to walk through in three planes: NiiVue and the case, both inside the page, for a browser offline."""

from __future__ import annotations

import base64
import html
import json
import tempfile
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tversky_seg.data.nifti import write_volume
from tversky_seg.metrics.masks import Mask
from tversky_seg.report.slices import (
    PREDICTION_COLOUR,
    REFERENCE_COLOUR,
    ShownCase,
    drawn_box,
    to_grey,
)

LARGEST = 5_000_000  # bytes of a case in the page, as text
FOUND_COLOUR = (0, 158, 115)
COLOURS = {"found": FOUND_COLOUR, "missed": REFERENCE_COLOUR, "invented": PREDICTION_COLOUR}
ASSETS = files("tversky_seg.report") / "assets"


def viewer_section(case: ShownCase, *, largest: int = LARGEST) -> str:
    """The part of a page that shows a case in three planes, found, missed and invented voxels in colour.

    The image is cropped to what it holds and stored in 8 bits. Where it takes more than `largest` bytes nevertheless,
    one voxel in 2 (4, 8) along each axis is shown, and the page says so.

    Args:
        case: what is shown.
        largest: bytes that the case may take in the page.
    """
    stored, step = _packed(case, largest=largest)
    options = "".join(
        f'<option value="{k + 1}">{html.escape(name)}</option>'
        for k, name in enumerate(case.classes)
    )
    choice = (
        f'<label>Class <select id="viewer-class">{options}</select></label>'
        if len(case.classes) > 1
        else ""
    )
    coarser = f" To save room, one voxel in {step} along each axis is shown." if step > 1 else ""
    keys = " ".join(
        f'<span class="swatch" style="border-color: rgb{colour}">{name}</span>'
        for name, colour in COLOURS.items()
    )
    return (
        f'<section id="viewer"><h2>Case {html.escape(case.case_id)} in three planes</h2>'
        f"<p>Voxels {keys}. Click or drag to move, scroll to leaf through slices.{coarser}</p>"
        '<p class="controls"><label>Overlay <input type="range" id="viewer-opacity" min="0" max="1" step="0.05" '
        f'value="0.6"></label> {choice}<output id="viewer-place"></output></p>'
        '<div id="viewer-frame"><canvas id="viewer-canvas"></canvas></div>'
        '<p id="viewer-state">This needs a browser with scripts and WebGL 2.</p></section>\n'
        f'<script type="text/plain" id="viewer-program">{_text((ASSETS / "niivue.umd.js.gz").read_bytes())}</script>\n'
        f'<script type="application/json" id="viewer-case">{_script_safe(json.dumps(stored))}</script>\n'
        f"<script>{(ASSETS / 'viewer.js').read_text(encoding='utf-8')}</script>\n"
    )


def _packed(case: ShownCase, *, largest: int) -> tuple[dict[str, Any], int]:
    """The case as the page holds it, and how many voxels make one step."""
    box = drawn_box(case.image, case.prediction, case.reference)
    origin = case.affine @ np.array([*(part.start or 0 for part in box), 1.0])
    grey = to_grey(case.image[box])
    overlays = [
        reference[box] + 2 * prediction[box].astype(np.uint8)  # 1 missed, 2 invented, 3 found
        for prediction, reference in zip(case.prediction, case.reference, strict=True)
    ]
    for step in (1, 2, 4, 8):
        affine = np.column_stack([case.affine[:, :3] * step, origin])
        image, *masks = (
            _nifti(volume[::step, ::step, ::step], affine) for volume in (grey, *overlays)
        )
        if len(image) + sum(map(len, masks)) <= largest:
            break
    start = case.affine @ np.array([*_telling_voxel(case.prediction, case.reference), 1.0])
    colours = [(0, 0, 0), COLOURS["missed"], COLOURS["invented"], COLOURS["found"]]
    return {
        "image": image,
        "overlays": masks,
        "colours": {name: [colour[i] for colour in colours] for i, name in enumerate("RGB")},
        "start_mm": start[:3].tolist(),
    }, step


def _telling_voxel(prediction: Mask, reference: Mask) -> NDArray[np.int64]:
    """Where to look first: amid the errors of the slice that has most of them, else amid the masks, else the middle."""
    errors: Mask = np.asarray((prediction ^ reference).any(axis=0))
    shown: Mask = errors if errors.any() else np.asarray(reference.any(axis=0))
    if not shown.any():
        return np.array(shown.shape) // 2
    z = int(shown.sum(axis=(0, 1)).argmax())
    places = np.argwhere(shown[:, :, z])
    nearest = ((places - places.mean(axis=0)) ** 2).sum(axis=1).argmin()
    return np.array([*places[nearest], z])


def _nifti(volume: NDArray[np.uint8], affine: ArrayLike) -> str:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "volume.nii.gz"
        write_volume(path, np.ascontiguousarray(volume), affine)
        return _text(path.read_bytes())


def _text(content: bytes) -> str:
    return base64.b64encode(content).decode("ascii")


def _script_safe(text: str) -> str:
    return text.replace("<", "\\u003c")
