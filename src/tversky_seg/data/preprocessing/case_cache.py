"""Prepared cases, kept in a cache until files or settings change."""

from __future__ import annotations

import logging
from dataclasses import asdict
from functools import partial
from pathlib import Path

import numpy as np

from tversky_seg.data.cache import fingerprint, read_entry, write_entry
from tversky_seg.data.case import Case, check_case_id, modalities_of
from tversky_seg.data.errors import DataError
from tversky_seg.data.grids import Geometry
from tversky_seg.data.preprocessing.labels import labels_to_read
from tversky_seg.data.preprocessing.note import Note
from tversky_seg.data.preprocessing.pipeline import (
    Preprocessing,
    check_contents,
    log_notes,
    preprocess_quietly,
)
from tversky_seg.data.preprocessing.prepared_case import PreparedCase, close_arrays

logger = logging.getLogger("tversky_seg")

FORMAT_VERSION = 3
"""Format of the cache: raise it when equal files and settings give other entries.

Entries of another version are left alone, and the case is prepared again. 3: notes have fields.
"""


def prepare(case: Case, settings: Preprocessing, *, cache_dir: Path) -> PreparedCase:
    """Prepare one case, or take it from the cache if files and settings are unchanged.

    An entry of the cache is a folder that appears whole under its final name. A case whose
    entry is damaged is prepared again.

    Raises:
        DataError: As `preprocess`, or the cache cannot be written.
    """
    prepared = prepare_quietly(case, settings, cache_dir=cache_dir)
    log_notes(prepared)
    return prepared


def prepare_quietly(case: Case, settings: Preprocessing, *, cache_dir: Path) -> PreparedCase:
    """Do as `prepare`, and leave it to the caller to log the notes."""
    prepared = load_cached(case, settings, cache_dir=cache_dir)
    if prepared is not None:
        return prepared
    entry = _entry_folder(case, settings, cache_dir)
    _write(entry, preprocess_quietly(case, settings))
    prepared = _load(entry, case, settings)
    if prepared is None:
        expected = "expected no other program to write to the cache"
        raise DataError(entry, "changed while it was written", expected)
    return prepared


def load_cached(case: Case, settings: Preprocessing, *, cache_dir: Path) -> PreparedCase | None:
    """Take a case from the cache; None where its entry is absent or damaged.

    Raises:
        DataError: A source file is missing, or the case lacks a modality or rater.
    """
    return _load(_entry_folder(case, settings, cache_dir), case, settings)


def _entry_folder(case: Case, settings: Preprocessing, cache_dir: Path) -> Path:
    """Name the cache entry of a case, by settings and by path, size and time of its files."""
    check_case_id(case.case_id)
    check_contents(case, settings)
    present = modalities_of(case, settings.modalities)
    sources = [case.images[name] for name in present]
    # The crop is chosen by the first label, also where another rater's is trained on.
    labels = (*case.labels[:1], *labels_to_read(case, settings.rater))
    sources += dict.fromkeys(labels)
    if case.brain_mask is not None:
        sources.append(case.brain_mask)
    if case.ignore_mask is not None and labels:
        sources.append(case.ignore_mask)
    values = {"format": FORMAT_VERSION, **settings.as_dict()}
    # What must be there changes no array; what is there does.
    values.pop("require", None)
    if present != settings.modalities:
        values["present"] = list(present)
    key = fingerprint(values, sources)
    return Path(cache_dir).absolute() / f"{case.case_id}-{key}"


def _write(entry: Path, prepared: PreparedCase) -> None:
    facts = {
        "geometry": prepared.geometry.as_dict(),
        "image_scale": prepared.image_scale.tolist(),
        "n_lesions": prepared.n_lesions,
        "notes": [asdict(note) for note in prepared.notes],
        "rater_lesions": prepared.rater_lesions,
    }
    if prepared.has_ignored:
        facts["has_ignored"] = True
    if prepared.missing:
        facts["missing"] = list(prepared.missing)
    if prepared.n_raters:
        facts["n_raters"] = prepared.n_raters
    write_entry(entry, prepared.arrays, facts)
    # A damaged entry made room: what this process has mapped is the old one.
    close_arrays()


def _rebuild(entry: Path, case: Case, settings: Preprocessing) -> None:
    """Make an entry again that was deleted or damaged during a run.

    Raises:
        DataError: The files of the case have changed, so that its arrays would be other ones.
    """
    # The name of an entry changes with the files that it was made of.
    if _entry_folder(case, settings, entry.parent) != entry:
        found = "was lost, and the files of the case have changed since"
        expected = "run the same command in another output_dir"
        raise DataError(entry, found, expected, case_id=case.case_id)
    logger.warning("%s was deleted or damaged during the run: preparing the case again", entry)
    _write(entry, preprocess_quietly(case, settings))


def _load(entry: Path, case: Case, settings: Preprocessing) -> PreparedCase | None:
    facts = read_entry(entry)
    if facts is None:
        return None
    return PreparedCase(
        case_id=case.case_id,
        subject_id=case.subject_id,
        geometry=Geometry.from_dict(facts["geometry"]),
        image_scale=np.array(facts["image_scale"], dtype=np.float32),
        n_lesions=tuple(facts["n_lesions"]),
        notes=tuple(Note(**fields) for fields in facts["notes"]),
        rater_lesions=tuple(map(tuple, facts["rater_lesions"])),  # JSON has lists alone
        has_ignored=facts.get("has_ignored", False),
        missing=tuple(facts.get("missing", ())),
        n_raters=facts.get("n_raters", 0),
        folder=entry,
        rebuild=partial(_rebuild, entry, case, settings),
    )
