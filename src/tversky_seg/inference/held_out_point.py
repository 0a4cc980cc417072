"""Operating point of an ensemble of folds, as chosen on held-out predictions.

`tversky-seg operating-point` writes them into the folder of the runs; a prediction with all
networks of the folder uses them.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from tversky_seg.data.errors import DataError
from tversky_seg.inference.trained_model import TrainedModel
from tversky_seg.runtime.files import read_json

logger = logging.getLogger("tversky_seg")

POINT_FILE = "operating_point.json"


def with_held_out_point(
    models: Sequence[TrainedModel], names: Sequence[str | Path]
) -> list[TrainedModel]:
    """Give the networks of a folder of runs the operating point that was chosen for them.

    Args:
        models: The networks that the names stand for.
        names: What the user named. A point counts where this is one folder that holds it.

    Returns:
        The models, each with the point as its own; without a point as they are.

    Raises:
        DataError: The file of the point is damaged.
    """
    path = Path(names[0]).expanduser() / POINT_FILE
    if len(names) != 1 or not path.is_file():
        return list(models)
    try:
        point = read_json(path)
        chosen_for = set(point["checkpoints"])
        chosen = {name: point[name] for name in ("threshold", "min_volume_mm3")}
        chosen["min_peak"] = point.get("min_peak", 0.0)  # as folders of before, that lack it
    except (OSError, ValueError, KeyError, TypeError) as error:
        remedy = "delete it, or run tversky-seg operating-point again"
        raise DataError(path, f"holds no operating point ({error!r})", remedy) from error
    if chosen_for != {model.checksum for model in models}:
        logger.warning(
            "%s was chosen for other networks than those in the folder and is not used; "
            "run tversky-seg operating-point again",
            path,
        )
        return list(models)
    logger.info("threshold, smallest lesion and lowest peak from held-out predictions: %s", path)
    # As if the user had set it: it is one of the probability after each network's temperature.
    results = []
    for model in models:
        inference = replace(model.inference, **chosen)
        settings = replace(model.settings, **chosen)
        results.append(replace(model, inference=inference, settings=settings))
    return results
