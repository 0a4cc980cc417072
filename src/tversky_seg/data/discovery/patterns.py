"""Patterns of file names whose parts have names: `raw/{subject}/{session}/*flair*.nii*`."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tversky_seg.data.case import normal_form
from tversky_seg.data.discovery.walk import RESULT_FOLDERS, Listing, list_images
from tversky_seg.data.errors import DataError
from tversky_seg.data.manifest_columns import is_reserved

# A name in braces, ** with its slash, *, ?, […], plain characters, or a lone [ or {.
_TOKEN = re.compile(r"\{(?P<name>[^{}]*)\}|\*\*/?|\*|\?|\[!?[^\]/]+\]|[^*?\[{]+|.")
_NAME = re.compile(r"[A-Za-z_]\w*")
_ALIASES = {
    "case_id": "case",
    "id": "case",
    "patient": "subject",
    "ses": "session",
    "sub": "subject",
    "subject_id": "subject",
    "timepoint": "session",
    "visit": "session",
}
"""Other words for the parts of a path that have a meaning of their own."""


@dataclass(frozen=True)
class Pattern:
    """File names of one column of a manifest."""

    column: str
    text: str
    """As the user wrote it."""
    base: Path
    """Folder before the first wildcard, which is searched."""
    regex: re.Pattern[str]
    """Matches the path below `base`, with slashes, in capitals or not."""
    names: tuple[str, ...]
    """Names of its parts, each once."""

    def match(self, path: Path) -> dict[str, str] | None:
        """Return the named parts of a path below `base`, or None if it does not match."""
        found = self.regex.fullmatch(normal_form(path.relative_to(self.base).as_posix()))
        return None if found is None else found.groupdict()


@dataclass
class FoundCase:
    """The files that belong together."""

    names: dict[str, str]
    """Name of a part -> its value: subject, session, site, …."""
    files: dict[str, list[Path]] = field(default_factory=dict)
    """Column -> files; more than one are ambiguous."""


@dataclass(frozen=True)
class Search:
    """Everything that patterns, or a folder, gave."""

    cases: list[FoundCase]
    sources: dict[str, list[str]]
    """Column -> patterns, or kinds of file names."""
    unmatched: list[Path]
    """Images that belong to no column."""
    skipped: dict[str, list[Path]]
    """Reason -> images or folders that were passed over."""
    is_guess: bool = False
    """Whether the columns were guessed."""
    notes: tuple[str, ...] = ()
    """Sentences about the folder."""


def parse_pattern(column: str, text: str) -> Pattern:
    """Read a pattern: `*`, `?`, `[…]` within a name, `**` over folders, `{name}` a named part.

    A name that occurs twice has the same value in both places.

    Raises:
        DataError: A name is no word, or no folder is named.
    """
    # On Windows the pattern may have backslashes; paths are matched with slashes.
    slashed = text.replace(os.sep, "/")
    folders, literal = _literal_folders(slashed)
    names: list[str] = []
    expression = ""
    _check_ends_of_names(slashed, text)
    for token in _TOKEN.finditer(slashed[literal:]):
        expression += _as_regex(token, names, text)
    return Pattern(
        column=column,
        text=text,
        base=Path(folders).expanduser(),
        regex=re.compile(normal_form(expression), re.IGNORECASE | re.DOTALL),
        names=tuple(names),
    )


def search_patterns(patterns: Sequence[Pattern]) -> Search:
    """Find the files of all patterns, and put those together whose named parts agree.

    Cases come from the patterns with all the names; a pattern with fewer, such as one brain mask
    for all sessions, gives its file to each case that agrees in those.

    Raises:
        DataError: A pattern matches nothing, none has a {subject}, or none has all the names.
    """
    all_names = _all_names(patterns)
    listings: dict[Path, Listing] = {}
    used: set[Path] = set()
    matches: list[tuple[Pattern, dict[str, str], Path]] = []
    for pattern in patterns:
        found = _matches(pattern, listings)
        used.update(path for _, path in found)
        matches.extend((pattern, parts, path) for parts, path in found)
    cases: dict[tuple[str, ...], FoundCase] = {}
    for pattern, parts, _ in matches:
        # A pattern with fewer names tells no cases apart; its files are handed out below.
        if set(pattern.names) == set(all_names):
            ordered = {name: parts[name] for name in all_names}
            cases.setdefault(tuple(ordered.values()), FoundCase(ordered))
    homeless = _hand_out(matches, cases)
    settled = []
    for case in cases.values():
        settled += _settle_files_of_two_columns(case)
    settled += _take_masks_from_images(cases.values())
    # As an ordered set, since two folders that are searched may lie in each other.
    unmatched: dict[Path, None] = {}
    skipped: dict[str, list[Path]] = {}
    for listing in listings.values():
        unmatched.update(dict.fromkeys(path for path in listing.images if path not in used))
        for reason, paths in listing.skipped.items():
            known = skipped.setdefault(reason, [])
            known.extend(path for path in paths if path not in known)
    sources: dict[str, list[str]] = {}
    for pattern in patterns:
        sources.setdefault(pattern.column, []).append(pattern.text)
    return Search(
        cases=[cases[key] for key in sorted(cases)],
        sources=sources,
        unmatched=[*homeless, *unmatched],
        skipped=skipped,
        notes=tuple(_note_settled(settled)),
    )


def _check_ends_of_names(slashed: str, text: str) -> None:
    """Refuse a name of which nobody knows where it ends: {subject}*flair, {subject}{session}."""
    adjacent = re.search(r"\{[^{}]*\}(?:\*|\{[^{}]*\})|\*\{[^{}]*\}", slashed)
    if adjacent is not None:
        expected = "put a character between them, as in {subject}_*flair*.nii*"
        raise DataError(text, f"nobody knows where one ends in {adjacent.group()}", expected)


def _literal_folders(text: str) -> tuple[str, int]:
    """Return the folders before the first wildcard, and where the rest of the pattern begins."""
    wildcard = re.search(r"[*?\[{]", text)
    end = wildcard.start() if wildcard else len(text)
    # Of raw/sub-*/x.nii the folder is raw: sub- is only the beginning of a name.
    slash = text.rfind("/", 0, end)
    if slash < 0:
        return ".", 0
    return text[:slash] or "/", slash + 1


def _as_regex(token: re.Match[str], names: list[str], text: str) -> str:
    """Translate a piece of a pattern, and note its name."""
    piece = token.group()
    if piece.startswith("**"):
        # **/ may be no folder at all, so that raw/**/x.nii finds raw/x.nii.
        return "(?:[^/]+/)*" if piece.endswith("/") else ".*"
    if piece == "*":
        return "[^/]*"
    if piece == "?":
        return "[^/]"
    if piece.startswith("[") and piece.endswith("]") and len(piece) > 2:
        return piece.replace("[!", "[^", 1).replace("\\", "\\\\")
    if token["name"] is None:
        return re.escape(piece)
    name = _ALIASES.get(token["name"].lower(), token["name"])
    if not _NAME.fullmatch(name):
        raise DataError(text, f"{piece} in a pattern", "expected a name in braces, as {subject}")
    # The second time, it must have the value of the first.
    if name in names:
        return f"(?P={name})"
    names.append(name)
    # Not greedy: {subject}_*.nii ends the subject at the first underscore.
    return f"(?P<{name}>[^/]+?)"


def _all_names(patterns: Sequence[Pattern]) -> tuple[str, ...]:
    """Return the names of the pattern that has most, which must be those of all."""
    richest = max(patterns, key=lambda pattern: len(pattern.names))
    if not {"subject", "case"} & set(richest.names):
        raise DataError(
            f"{richest.column}={richest.text}",
            "no {subject}",
            "write the part that names the subject so, as in raw/{subject}/*flair*.nii*",
        )
    for pattern in patterns:
        for name in pattern.names:
            if name not in richest.names:
                fault = f"has {{{name}}}, which is not in {richest.text}"
                raise DataError(pattern.text, fault, "name the same parts in both")
    return richest.names


def _matches(pattern: Pattern, listings: dict[Path, Listing]) -> list[tuple[dict[str, str], Path]]:
    """List the files of one pattern with their named parts."""
    if not pattern.base.is_dir():
        expected = f"{pattern.column} is looked for there"
        raise DataError(pattern.base, "no such folder", expected)
    if pattern.base not in listings:
        # Folders of results are passed over, unless the pattern names them.
        named = [name for name in RESULT_FOLDERS if name in pattern.text.lower()]
        listings[pattern.base] = list_images(pattern.base, enter=named)
    images = listings[pattern.base].images
    found = []
    for path in images:
        parts = pattern.match(path)
        if parts is not None:
            found.append((parts, path))
    if not found:
        there = "no image lies there"
        if images:
            names = ", ".join(str(path.relative_to(pattern.base)) for path in images[:3])
            there = f"there are {len(images)}, as {names}"
        fault = f"matches no image in {pattern.base}"
        raise DataError(f"{pattern.column}={pattern.text}", fault, there)
    return found


def _hand_out(
    matches: Sequence[tuple[Pattern, dict[str, str], Path]],
    cases: Mapping[tuple[str, ...], FoundCase],
) -> list[Path]:
    """Give each file to the cases whose named parts agree; return the files that suit none."""
    # The cases by the values of each set of names that a pattern has.
    indices: dict[tuple[str, ...], dict[tuple[str, ...], list[FoundCase]]] = {}
    for names in {pattern.names for pattern, _, _ in matches}:
        index = indices.setdefault(names, {})
        for case in cases.values():
            key = tuple(case.names[name] for name in names)
            index.setdefault(key, []).append(case)
    homeless = []
    for pattern, parts, path in matches:
        owners = indices[pattern.names].get(tuple(parts[name] for name in pattern.names), [])
        if not owners:
            homeless.append(path)
        for case in owners:
            files = case.files.setdefault(pattern.column, [])
            if path not in files:
                files.append(path)
    return homeless


def _settle_files_of_two_columns(case: FoundCase) -> list[tuple[Path, str, list[str]]]:
    """Give a file that suits two columns to the one that fewer files of the case suit.

    `*flair*` suits x_flair.nii and x_flair_mask.nii, `*mask*` only the second, which is therefore
    the mask. Where as many suit both, the file stays in both, which is ambiguous.

    Returns:
        Each such file, the column that keeps it, and the columns that lose it.
    """
    columns_of: dict[Path, list[str]] = {}
    for column, files in case.files.items():
        for path in files:
            columns_of.setdefault(path, []).append(column)
    n_files = {column: len(files) for column, files in case.files.items()}
    settled: list[tuple[Path, str, list[str]]] = []
    for path, columns in columns_of.items():
        first, *others = sorted(columns, key=n_files.__getitem__)
        if others and n_files[first] < n_files[others[0]]:
            settled.append((path, first, others))
    for path, _, others in settled:
        for column in others:
            case.files[column].remove(path)
    # A column without files would count as one that the case has.
    for column in [column for column, files in case.files.items() if not files]:
        del case.files[column]
    return settled


def _take_masks_from_images(cases: Iterable[FoundCase]) -> list[tuple[Path, str, list[str]]]:
    """Take a mask of one case out of the images of others, as after T1={subject}.nii.

    Returns:
        As `_settle_files_of_two_columns`.
    """
    all_cases = list(cases)
    owner_of: dict[Path, tuple[FoundCase, str]] = {}
    for case in all_cases:
        for column, files in case.files.items():
            if is_reserved(column):
                owner_of.update(dict.fromkeys(files, (case, column)))
    settled: list[tuple[Path, str, list[str]]] = []
    for case in all_cases:
        for column in [column for column in case.files if not is_reserved(column)]:
            for path in list(case.files[column]):
                owner, mask_column = owner_of.get(path, (case, column))
                # A tie within one case is ambiguous, and stays so.
                if owner is not case and owner.files.keys() - {mask_column}:
                    case.files[column].remove(path)
                    settled.append((path, mask_column, [column]))
            if not case.files[column]:
                del case.files[column]
    return settled


def _note_settled(settled: Sequence[tuple[Path, str, list[str]]]) -> Iterator[str]:
    if settled:
        path, column, others = settled[0]
        more = f" ({len(settled) - 1} more of this kind)" if len(settled) > 1 else ""
        yield (
            f"{path.name} suits {' and '.join([column, *others])}: taken for {column}, "
            f"whose pattern is narrower{more}"
        )
