"""The manifest of images that lie in folders: made by patterns of their names."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

from tversky_seg.data.case import broken_name_rule, normal_form
from tversky_seg.data.discovery.draft import Draft, make_draft
from tversky_seg.data.discovery.guess import search_folder
from tversky_seg.data.discovery.patterns import Pattern, parse_pattern, search_patterns
from tversky_seg.data.errors import DataError
from tversky_seg.data.manifest import manifest_table
from tversky_seg.data.manifest_columns import USUAL_NAMES_OF_LABELS, is_label, is_reserved
from tversky_seg.runtime.files import write_text

Patterns = Mapping[str, str | Sequence[str]]


def make_manifest(
    source: Path | str | Patterns,
    output: Path | str | None = None,
    *,
    names: Patterns | None = None,
) -> Draft:
    """List the images below folders as the cases of a manifest, and write it.

        make_manifest({"FLAIR": "raw/{subject}/{session}/*flair*.nii*",
                       "label": "raw/{subject}/{session}/*mask*"}, "my.csv")
        make_manifest("raw")    # guesses the columns from the names of the files

    Nothing is chosen where two files suit one cell: the draft names them, and leaves their case
    out.

    Args:
        source: Column -> pattern, or several; or a folder, whose columns are guessed.
        output: CSV to write, or None. One that exists must be equal.
        names: With a folder, column -> pattern of file names, such as {"label": "*_mask.nii.gz"},
            in place of the guess; an empty pattern leaves the column out.

    Returns:
        The cases, and what is ambiguous, missing or unused.

    Raises:
        DataError: A column or pattern is at fault, no case is found, or `output` differs.
    """
    if isinstance(source, Mapping):
        search = search_patterns(_parsed(source))
    else:
        for column in names or {}:
            check_column(column)
        search = search_folder(Path(source).expanduser(), _lists(names or {}))
    draft = make_draft(search)
    if output is not None:
        write_draft(draft, output)
    return draft


def write_draft(draft: Draft, output: Path | str) -> bool:
    """Write the manifest of a draft, unless it is there already.

    Returns:
        False if an equal file was there.

    Raises:
        DataError: No case is left, another file is there, or the folder cannot be written to.
    """
    draft.require_cases()
    output = Path(output).expanduser()
    text = manifest_text(draft, output)
    try:
        if output.exists():
            # A command that is run twice does no harm; a file that was edited since is not lost.
            if output.read_bytes() == text.encode():
                return False
            expected = "choose another output=, or move it away first"
            raise DataError(output, "exists and differs", expected)
        output.parent.mkdir(parents=True, exist_ok=True)
        write_text(output, text)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise DataError(output, reason, "expected a file that can be written") from error
    return True


def manifest_text(draft: Draft, output: Path) -> str:
    """Return the CSV of a draft, with file names as they are seen from `output`."""
    header, lines = manifest_table(
        draft.cases, output, modalities=draft.modalities, metadata=draft.metadata
    )
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(lines)
    return text.getvalue()


def check_column(column: str) -> None:
    """Check that a column can hold files.

    Raises:
        DataError: It has another meaning in a manifest, or is no name.
    """
    # mask=... would train on the answer.
    if column.lower() in USUAL_NAMES_OF_LABELS:
        raise DataError(column, "would be an image to train on", "did you mean label=?")
    if is_reserved(column) and not is_label(column) and column != "brain_mask":
        expected = f"write {{{column}}} in the patterns of the images"
        raise DataError(column, "is a column without files", expected)
    rule = broken_name_rule(column)
    if rule is not None:
        raise DataError("column", repr(column), rule)
    # "Brain mask" would be a modality, which is hardly what was meant.
    plain = column.lower().replace(" ", "_")
    if plain != column and is_reserved(plain):
        raise DataError("column", repr(column), f"write it as {plain!r}")


def _parsed(patterns: Patterns) -> list[Pattern]:
    parsed: list[Pattern] = []
    for column, texts in _lists(patterns).items():
        check_column(column)
        parsed.extend(parse_pattern(column, text) for text in texts)
    if not parsed:
        raise DataError("manifest", "no pattern", "expected FLAIR=raw/{subject}/*flair*.nii*")
    if all(is_reserved(pattern.column) for pattern in parsed):
        expected = "add one, as FLAIR=raw/{subject}/*flair*.nii*"
        raise DataError("manifest", "no pattern of images", expected)
    columns = {pattern.column for pattern in parsed}
    for pattern in parsed:
        for name in pattern.names:
            # The value would land in the column of the files.
            if name in columns or is_label(name) or name in ("brain_mask", "consensus"):
                fault = f"{{{name}}} is a column of files"
                raise DataError(pattern.text, fault, "choose another name for this part")
    return parsed


def _lists(patterns: Patterns) -> dict[str, list[str]]:
    """Return column -> list of patterns, the columns in their one Unicode form."""
    lists: dict[str, list[str]] = {}
    for column, texts in patterns.items():
        several = [texts] if isinstance(texts, str) else list(texts)
        lists.setdefault(normal_form(column), []).extend(several)
    return lists
