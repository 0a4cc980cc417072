"""A cohort with labels and saved predictions, to evaluate."""

import csv
import json
import math
from pathlib import Path

import nibabel as nib
import numpy as np
from scipy import ndimage

from tversky_seg.data.case import Case
from tversky_seg.evaluation import evaluate

SHAPE = (24, 20, 14)
SPACING = (0.9, 1.1, 2.5)


def oblique_affine(spacing=SPACING):
    """Turned by 20 degrees about x, first axis pointing left."""
    turn = np.array(
        [[1, 0, 0], [0, math.cos(0.35), -math.sin(0.35)], [0, math.sin(0.35), math.cos(0.35)]]
    )
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.diag(spacing) @ np.diag([-1, 1, 1])
    affine[:3, 3] = (12, -8, 5)
    return affine


def lesions_and_map(seed, *, shape=SHAPE):
    """A reference with several lesions, and a probability map that finds some of them."""
    rng = np.random.default_rng(seed)
    field = ndimage.gaussian_filter(rng.normal(size=(2, *shape)), (0, 1.5, 1.5, 1))
    field /= field.std()
    reference = field[0] > 1.4
    probability = 1 / (1 + np.exp(-(3 * field[0] + field[1] - 4)))
    return reference, probability


def save(path, data, *, affine=None, scale=None):
    data = np.asarray(data)
    stored = (
        np.rint(data / scale).astype(np.uint16)
        if scale
        else data.astype(np.uint8 if data.dtype == bool else data.dtype)
    )
    image = nib.Nifti1Image(stored, oblique_affine() if affine is None else affine)
    image.header.set_slope_inter(scale or 1, 0)
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(image, path)
    return path


class Cohort:
    """Files of labelled and predicted cases below one folder."""

    def __init__(self, folder: Path):
        self.folder, self.predictions, self.output_dir = (
            folder,
            folder / "predictions",
            folder / "evaluation",
        )
        self.predictions.mkdir()
        self.cases: list[Case] = []

    def add(self, seed, *, subject=None, reference=None, probability=None, predicted=True):
        drawn_reference, drawn_probability = lesions_and_map(seed)
        reference = drawn_reference if reference is None else reference
        probability = drawn_probability if probability is None else probability
        name = f"case{seed}"
        image = save(
            self.folder / f"{name}_FLAIR.nii.gz", np.int16(1000) * (reference > 0) + np.int16(seed)
        )
        label = save(self.folder / f"{name}_label.nii.gz", np.asarray(reference).astype(np.uint8))
        if predicted:
            save(self.predictions / f"{name}_probability.nii.gz", probability, scale=1 / 65535)
        self.cases.append(
            Case(name, subject or f"subject{seed}", {"FLAIR": image}, labels=(label,))
        )
        return reference, np.rint(probability * 65535) / 65535

    def settings(self, **values):
        (self.predictions / "predictions.json").write_text(json.dumps(values))

    def evaluate(self, **settings):
        return evaluate(
            self.predictions,
            self.cases,
            output_dir=self.output_dir,
            **{"n_bootstrap": 200, **settings},
        )

    def rows(self, name):
        with (self.output_dir / name).open(newline="") as file:
            return list(csv.DictReader(file))
