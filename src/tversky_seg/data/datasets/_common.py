"""What the importers share: files by their stem, and the command that writes a manifest alone."""

import argparse
import inspect
import logging
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from tversky_seg.data.case import Case
from tversky_seg.data.dataset import Dataset, find_cases, with_modalities
from tversky_seg.data.errors import DataError
from tversky_seg.data.manifest import write_manifest

ENDINGS = (".nii.gz", ".nii")


def nifti(folder: Path, *stems: str) -> Path | None:
    """The first of these files that exists, with either ending of a NIfTI file."""
    names = [f"{stem}{ending}" for stem in stems for ending in ENDINGS]
    return next((folder / name for name in names if (folder / name).is_file()), None)


def stem_of(path: Path) -> str:
    """The name of a file without `.nii` or `.nii.gz`."""
    return next(
        (path.name.removesuffix(end) for end in ENDINGS if path.name.endswith(end)), path.stem
    )


def import_command(importer: Callable[..., list[Case]], words: Sequence[str] | None = None) -> None:
    """Be the command `import_<name>.py ROOT MANIFEST.csv`; settings of the importer become options.

    A fault is one line on stderr and exit status 2.

    Args:
        importer: `importer(root, *, …)` lists the cases of a download.
        words: The command line; None: that of the process.
    """
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        options = vars(_parser(importer).parse_args(words))
        root, manifest, modalities = (
            options.pop(name) for name in ("root", "manifest", "modalities")
        )
        names = tuple(modalities.split(",")) if modalities else ()
        dataset = Dataset(root=root, importer=partial(importer, **options), modalities=names)
        dataset = with_modalities(dataset)
        cases = find_cases(dataset)
        write_manifest(cases, manifest, modalities=dataset.modalities)
    except (DataError, OSError) as fault:
        print(f"error: {fault}", file=sys.stderr)
        sys.exit(2)
    n_labelled = sum(bool(case.labels) for case in cases)
    print(
        f"{manifest}: {len(cases)} cases, {n_labelled} with a label; {', '.join(dataset.modalities)}"
    )


class _Parser(argparse.ArgumentParser):
    """Raises what argparse would print in several lines."""

    def error(self, message: str) -> NoReturn:
        raise DataError("command line", f"{message}", "--help shows what is expected")


def _parser(importer: Callable[..., Any]) -> argparse.ArgumentParser:
    parser = _Parser(
        description=inspect.getdoc(importer), formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("root", type=Path, metavar="ROOT", help="the data set as downloaded")
    parser.add_argument("manifest", type=Path, metavar="MANIFEST.csv", help="the file to write")
    parser.add_argument(
        "--modalities",
        help="as FLAIR,T1; cases without one are left out; default: all that there are",
    )
    for parameter in inspect.signature(importer).parameters.values():
        if parameter.kind is parameter.KEYWORD_ONLY:
            kind = int if isinstance(parameter.default, int) else str
            parser.add_argument(
                f"--{parameter.name.replace('_', '-')}", type=kind, default=parameter.default
            )
    return parser
