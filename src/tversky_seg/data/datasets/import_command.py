"""The command that writes the manifest of a public data set."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

from tversky_seg.data.case import Case, files_of
from tversky_seg.data.dataset import Dataset, find_cases, with_modalities
from tversky_seg.data.datasets.bids import find_bids
from tversky_seg.data.datasets.brats_mets import find_brats_mets
from tversky_seg.data.datasets.decathlon import find_decathlon
from tversky_seg.data.datasets.followup import ROWS, find_followup
from tversky_seg.data.datasets.isbi2015 import find_isbi2015
from tversky_seg.data.datasets.isles2022 import find_isles2022
from tversky_seg.data.datasets.lesjak2016 import find_lesjak2016
from tversky_seg.data.datasets.lesjak2017 import PARTS, find_lesjak2017
from tversky_seg.data.datasets.lits import find_lits
from tversky_seg.data.datasets.luna16 import find_luna16
from tversky_seg.data.datasets.mslesseg import find_mslesseg
from tversky_seg.data.datasets.msseg2 import find_msseg2
from tversky_seg.data.datasets.msseg2016 import find_msseg2016
from tversky_seg.data.datasets.nnunet import find_nnunet
from tversky_seg.data.datasets.shifts_ms import find_shifts_ms
from tversky_seg.data.datasets.simvent_ms import LABELS, find_simvent_ms
from tversky_seg.data.datasets.wmh2017 import find_wmh2017
from tversky_seg.data.discovery.summary import count
from tversky_seg.data.errors import DataError
from tversky_seg.data.image_files import check_image_file
from tversky_seg.data.manifest import write_manifest
from tversky_seg.data.split import without_absent_baselines
from tversky_seg.runtime.cli import OneLineParser

DESCRIPTION = """Write the manifest (CSV) of a public data set from its download.

The file lists every case with its images, labels, site and split. Edit it as you like, then train
with data=manifest data.manifest=OUT.csv."""


@dataclass(frozen=True)
class Option:
    """A setting of an importer on the command line.

    Attributes:
        name: Keyword argument of the importer.
        help: One line.
        default: Value if it is not given.
    """

    name: str
    help: str
    default: str | None = None


@dataclass(frozen=True)
class Importer:
    """A public data set that can be imported.

    Attributes:
        find: Function `find(root, *, <options>)` that lists the cases.
        summary: Name of the data set, one line.
        root: Content of the download, one line.
        options: Settings of `find`.
    """

    find: Callable[..., list[Case]]
    summary: str
    root: str
    options: tuple[Option, ...] = ()


SPLIT = Option("split", "shirokikh2020: training, validation and test set of that paper")
IMPORTERS = {
    "bids": Importer(
        find_bids,
        summary="BIDS data set with lesion masks among its derivatives",
        root="folder with sub-01/, … and derivatives/",
        options=(
            Option("lesion", "word in the names of lesion masks (lesion)", "lesion"),
            Option("derivative", "folder below derivatives/ (the one that holds lesion masks)"),
        ),
    ),
    "brats_mets": Importer(
        find_brats_mets,
        summary="BraTS-METS 2023 to 2025, brain metastases, nested regions",
        root="folder with BraTS-MET-00001-000/, … at most three folders deep",
    ),
    "decathlon": Importer(
        find_decathlon,
        summary="one task of the Medical Segmentation Decathlon",
        root="folder of the task: dataset.json, imagesTr/, labelsTr/",
    ),
    "followup": Importer(
        find_followup,
        summary="follow-ups in folders: <subject>/<session>/flair.nii.gz",
        root="folder of the subjects",
        options=(Option("rows", f"a line for each of: {', '.join(ROWS)} (sessions)", "sessions"),),
    ),
    "isbi2015": Importer(
        find_isbi2015,
        summary="ISBI 2015, longitudinal multiple sclerosis",
        root="folder with training/ and, if wanted, testdata_website/",
    ),
    "isles2022": Importer(
        find_isles2022,
        summary="ISLES 2022, ischaemic stroke: DWI, ADC and FLAIR",
        root="folder with sub-strokecase0001/ or rawdata/, and derivatives/",
    ),
    "lesjak2016": Importer(
        find_lesjak2016,
        summary="open_ms_data of Ljubljana, two time points of multiple sclerosis",
        root="the clone of open_ms_data",
    ),
    "lesjak2017": Importer(
        find_lesjak2017,
        summary="open_ms_data of Ljubljana, multiple sclerosis",
        root="the clone of open_ms_data",
        options=(Option("part", f"one of {', '.join(PARTS)} (MNI)", "MNI"),),
    ),
    "lits": Importer(
        find_lits,
        summary="LiTS, liver and liver tumours in CT",
        root="folder with volume-0.nii, segmentation-0.nii, … at any depth",
        options=(
            SPLIT,
            Option("repaired", "folder for masks whose affine is wrong (data/lits)", "data/lits"),
        ),
    ),
    "luna16": Importer(
        find_luna16,
        summary="LUNA16, lung nodules in CT",
        root="folder with subset0/, …, seg-lungs-LUNA16/, annotations.csv and LIDC's XML files",
        options=(
            Option("converted", "folder for the scans as NIfTI (data/luna16)", "data/luna16"),
            SPLIT,
        ),
    ),
    "mslesseg": Importer(
        find_mslesseg,
        summary="MSLesSeg, multiple sclerosis, up to four examinations of a patient",
        root="folder with train/ and test/",
    ),
    "msseg2": Importer(
        find_msseg2,
        summary="MSSEG-2 (2021), new lesions between two time points, four raters",
        root="folder with training/ and, if wanted, testing/",
    ),
    "msseg2016": Importer(
        find_msseg2016,
        summary="MSSEG 2016, multiple sclerosis, seven raters",
        root="folder with Training/ and Testing/, or the archives of the challenge",
    ),
    "nnunet": Importer(
        find_nnunet,
        summary="raw data set of nnU-Net",
        root="folder DatasetXXX_Name: dataset.json, imagesTr/, labelsTr/",
    ),
    "shifts_ms": Importer(
        find_shifts_ms,
        summary="Shifts 2.0, multiple sclerosis of several sites",
        root="folder with msseg/, best/, ljubljana/, or some of them",
    ),
    "simvent_ms": Importer(
        find_simvent_ms,
        summary="Sim-Vent-WMH-Seg, multiple sclerosis in thick slices",
        root="the clone of Sim-Vent-WMH-Seg",
        options=(Option("label", f"one of {', '.join(LABELS)} (abWMHmask)", "abWMHmask"),),
    ),
    "wmh2017": Importer(
        find_wmh2017,
        summary="WMH 2017, hyperintensities of vascular origin, three hospitals",
        root="folder with training/, test/ and additional_annotations/, or some of them",
    ),
}


def main(words: Sequence[str] | None = None) -> None:
    """Write a manifest; a fault is one line on stderr and exit status 2.

    Args:
        words: Command line; None: that of the process.
    """
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    arguments = _parser().parse_args(words)
    importer = IMPORTERS[arguments.name]
    settings = {option.name: getattr(arguments, option.name) for option in importer.options}
    try:
        # As training would list them, so that the manifest holds the same cases. They are asked
        # for twice, and what is left out is to be said once.
        dataset = with_modalities(
            Dataset(
                root=arguments.root,
                importer=cache(partial(importer.find, **settings)),
                modalities=tuple(arguments.modalities),
                require=arguments.require,
            )
        )
        # One whose earlier examination is left out has no baseline.
        cases = without_absent_baselines(find_cases(dataset))
        _check_files(cases)
        write_manifest(cases, arguments.manifest, modalities=dataset.modalities)
    except (DataError, OSError) as fault:
        print(f"error: {fault}", file=sys.stderr)
        sys.exit(2)
    _print_summary(arguments.manifest, cases, dataset.modalities)


def _check_files(cases: Sequence[Case]) -> None:
    """Refuse files that only have the name of an image: pointers of Git LFS, web pages."""
    faults: list[DataError] = []
    for file in files_of(cases):
        try:
            check_image_file(file)
        except DataError as fault:
            faults.append(fault)
    if faults:
        raise DataError.gather(faults, others="")


def _print_summary(manifest: Path, cases: Sequence[Case], modalities: Sequence[str]) -> None:
    # What was found, so that a wrong folder is noticed here and not in training.
    n_labelled = sum(bool(case.labels) for case in cases)
    subjects = {case.subject_id for case in cases}
    print(
        f"{manifest}: {count(cases, 'case')} of {count(subjects, 'subject')}, "
        f"{n_labelled} with a label; modalities {', '.join(modalities)}"
    )


def _parser() -> argparse.ArgumentParser:
    # Listed by hand: argparse breaks the line of a long name.
    listed = [f"  {name:<12}{importer.summary}" for name, importer in IMPORTERS.items()]
    parser = OneLineParser(
        usage="%(prog)s NAME ROOT OUT.csv [options]",
        description=DESCRIPTION,
        epilog="\n".join(["data sets (NAME --help shows the options of one):", *listed]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    names = parser.add_subparsers(
        dest="name", metavar="NAME", required=True, prog=parser.prog, help="one of those below"
    )
    for name, importer in IMPORTERS.items():
        each = names.add_parser(name, description=importer.summary)
        each.add_argument("root", type=Path, metavar="ROOT", help=importer.root)
        each.add_argument("manifest", type=Path, metavar="OUT.csv", help="file to write")
        each.add_argument(
            "--modalities",
            type=_names,
            default=(),
            help="as FLAIR,T1; cases that lack one are left out (all that exist)",
        )
        each.add_argument(
            "--require",
            type=_names,
            help="as FLAIR; cases that lack another one are kept (all modalities)",
        )
        for option in importer.options:
            flag = f"--{option.name.replace('_', '-')}"
            each.add_argument(flag, default=option.default, help=option.help)
    return parser


def _names(text: str) -> list[str]:
    return text.split(",")
