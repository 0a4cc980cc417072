"""Write a manifest: the CSV that lists the cases of a dataset, from files in folders.

Patterns. A pattern gives the file names of one column; a part in braces has a name. Quote it:

    tversky-seg manifest 'FLAIR=raw/{subject}/*flair*' 'label=raw/{subject}/*mask*' output=my.csv

  FLAIR=, T1=, …     one column for each modality, named as you like
  label=, label_2=   masks to train on, and those of a second rater
  brain_mask=        mask of the brain
  {subject} {session} {site} {split}   columns of the manifest; {case} names the case itself
  {anything}         a column of metadata
  * ? [ab] **        as in a shell, in capitals or not; ** goes over folders

A column may have several patterns. Files whose names in braces agree are one case.

A folder. Modalities and labels are guessed from the names of the files, and shown; --yes writes.
A pattern of file names decides where the guess is wrong, and an empty one leaves a column out:

    tversky-seg manifest raw
    tversky-seg manifest raw 'label=*_lesions.nii.gz' T2= --yes

Nothing is chosen where two files suit one cell: they are named, and the case is left out.
"""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tversky_seg.runtime.cli import OneLineParser
from tversky_seg.runtime.program import as_called

if TYPE_CHECKING:
    from tversky_seg.data.discovery.draft import Draft

OUTPUT = "manifest.csv"


def main(words: Sequence[str] | None = None) -> int:
    """Show what was found, write the manifest, and print the next command.

    Args:
        words: Command line; None: that of the process.

    Returns:
        1 if cases are left out because two files suit one cell, otherwise 0.
    """
    parser = _parser()
    arguments = parser.parse_intermixed_args(words)
    folder, patterns, output = _sort_words(arguments.words, parser)
    # After the arguments: the data need torch, which takes a second to import.
    from tversky_seg.data.discovery.make import make_manifest, write_draft
    from tversky_seg.data.discovery.summary import describe_draft
    from tversky_seg.data.errors import DataError

    try:
        draft = make_manifest(folder, names=patterns) if folder else make_manifest(patterns)
        print(describe_draft(draft, output), end="\n\n")
        draft.require_cases()
        # A guess is looked at first; patterns are the user's own words.
        if folder and not arguments.yes:
            print(f"Nothing is written yet. Add --yes to write {output}.")
        else:
            is_new = write_draft(draft, output)
            print(f"{output} {'written' if is_new else 'is there already, and equal'}")
            print(f"next: {next_command(draft, output)}")
            print(advice_on_gaps(draft), end="")
    except DataError as fault:
        parser.error(str(fault))
    return 1 if draft.ambiguous else 0


def next_command(draft: Draft, output: Path) -> str:
    """Write the command that checks the files of the manifest."""
    words = ["data=manifest", f"data.manifest={output}"]
    if draft.common_modalities != draft.modalities:
        words.append(f"data.modalities=[{','.join(draft.common_modalities)}]")
    return as_called(f"python scripts/check_data.py {shlex.join(words)}")


def advice_on_gaps(draft: Draft) -> str:
    """Tell how to use modalities that some cases lack; nothing where none is lacking."""
    partial = [name for name in draft.modalities if name not in draft.common_modalities]
    required = ",".join(draft.common_modalities)
    if not partial or draft.cases_without(draft.common_modalities[0]):
        return ""
    return (
        f"to use {', '.join(partial)} where a case has it, write data.require=[{required}] "
        "in place of data.modalities\n"
    )


def _sort_words(
    words: Sequence[str], parser: argparse.ArgumentParser
) -> tuple[Path | None, dict[str, list[str]], Path]:
    """Part the words into the folder, the patterns by column, and the file to write."""
    folder: Path | None = None
    patterns: dict[str, list[str]] = {}
    output = Path(OUTPUT)
    for word in words:
        column, equals, text = word.partition("=")
        # A folder may have = in its name.
        if Path(word).expanduser().is_dir() or not equals:
            if folder is not None:
                parser.error(f"{word}: a second folder beside {folder}; expected one")
            folder = Path(word)
        elif column == "output":
            output = Path(text)
        else:
            patterns.setdefault(column, []).append(text)
    if output.suffix.lower() not in (".csv", ".tsv", ".txt"):
        parser.error(f"output: {str(output)!r}; expected a name that ends in .csv")
    return folder, patterns, output


def _parser() -> argparse.ArgumentParser:
    parser = OneLineParser(
        usage="%(prog)s [FOLDER] ['COLUMN=PATTERN' ...] [output=FILE.csv] [--yes]",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="Exit status: 0 done, 1 ambiguous cases were left out, 2 error (one line says why).",
    )
    parser.add_argument(
        "words",
        nargs="+",
        metavar="COLUMN=PATTERN",
        help=f"patterns, or a folder; output=FILE.csv ({OUTPUT})",
    )
    parser.add_argument("--yes", "-y", action="store_true", help="write what was guessed")
    return parser
