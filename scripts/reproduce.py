"""All runs of a paper and its table with ours beside it; the scripts reproduce_*.sh call this.

`python scripts/reproduce.py PAPER [key=value …]`; PAPER is salehi2017, hashemi2018_msseg, hashemi2018_isbi or
shirokikh2020. Further words go to every run (trainer.device=cpu trainer.threads=2). Environment:

DATA     phantom (default): the synthetic cohort of 15 subjects; or the folder of the official download
SCALE    small (default with DATA=phantom): minutes a run on two CPU cores, voxels of 2 mm; full: the paper's, for a GPU
SEEDS    seeds of training, as "0 1 2" (default 0); paired tests take each subject's mean over them
ROWS     rows of the table to run, as "tversky_b05 tversky_b07" (default all)
DATASET  of shirokikh2020: lits (default) or luna16
OUT      where all goes (default runs/reproduce/PAPER_DATA_SCALE)
JOBS     runs side by side (default 1), which share the cores unless OMP_NUM_THREADS or trainer.threads says otherwise
DRY_RUN  1: print the commands, run and write nothing

The same call goes on with what is missing; a run that fails stops no other, and the table then has the complete rows.
OUT gets a run directory for each row, fold and seed; for each row and seed the out-of-fold predictions of all subjects
judged as one cohort; table.{md,csv}, the summary of the sweep and paired tests of each row against the first, with one
precision-recall figure (comparison/).
"""

import csv
import math
import os
import shlex
import signal
import statistics
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tversky_seg.analysis.comparison import compare, write_comparison
from tversky_seg.analysis.cross_validation import evaluate_folds
from tversky_seg.analysis.runs import average_runs, read_runs
from tversky_seg.analysis.sweep import (
    group_runs,
    read_sweep,
    recommend,
    summarize_settings,
    write_summary,
)
from tversky_seg.data.datasets.isbi2015 import find_isbi2015
from tversky_seg.data.errors import DataError
from tversky_seg.data.manifest import write_manifest
from tversky_seg.runtime.files import read_json, write_json
from tversky_seg.runtime.run_settings import is_free

ROOT = Path(__file__).resolve().parents[1]
PHANTOM = ("data=phantom", "data.modalities=[FLAIR,T1,T2]", "data.importer.n_test=0")
PLANNED = {"experiment": "follows from ROWS and SCALE", "data": "follows from DATA", "seed": "follows from SEEDS",
           "output_dir": "follows from OUT", "data.fold": "each fold is run"}  # fmt: skip
Values = Mapping[str, float]


@dataclass(frozen=True)
class Paper:
    """A table of a paper.

    Attributes:
        title: Of the table.
        folder: Below configs/experiment.
        rows: Name of an experiment file -> the numbers that the paper gives, by the headings of `columns`.
        columns: Heading -> where metrics.json has it, and what to multiply it by.
        folds: Of the official data; 0: its split is fixed.
        phantom: Words for DATA=phantom at SCALE=full, where the official data are named by the experiment.
        prefix: Of the experiment files on the official data.
        parts: Further experiment files at SCALE=small -> the rows that go without.
    """

    title: str
    folder: str
    rows: Mapping[str, Values]
    columns: Mapping[str, tuple[str, float]]
    folds: int
    phantom: tuple[str, ...] = ()
    prefix: str = ""
    parts: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class Request:
    """What the environment asks for."""

    data: str = "phantom"
    scale: str = "small"
    seeds: tuple[int, ...] = (0,)
    rows: tuple[str, ...] = ()
    dataset: str = "lits"
    output_dir: Path = Path("runs/reproduce")
    words: tuple[str, ...] = field(default=())


@dataclass(frozen=True)
class Job:
    """One training: its directory and its settings."""

    row: str
    seed: int
    folder: Path
    words: tuple[str, ...]


VOXELS = {"DSC": ("mean.dice", 100), "Sensitivity": ("mean.sensitivity", 100), "Specificity": ("mean.specificity", 100),
          "F2": ("mean.f2", 100), "APR": ("mean.pr_auc", 100)}  # fmt: skip
LESIONS = {"LTPR": ("mean.lesion_tpr", 100), "LFPR": ("mean.lesion_fpr", 100)}
SALEHI = {"05": (53.42, 49.85, 99.93, 51.77, 52.57), "06": (54.57, 55.85, 99.91, 55.47, 54.34),
          "07": (56.42, 56.85, 99.93, 57.32, 56.04), "08": (48.57, 61.00, 99.89, 54.53, 53.31),
          "09": (46.42, 65.57, 99.87, 56.11, 51.65)}  # fmt: skip
SHIROKIKH = {  # object Dice and average recall: LUNA16, LiTS
    "bce": (0.57, 0.45, 0.61, 0.55), "iwbce": (0.56, 0.76, 0.53, 0.68), "dl": (0.76, 0.80, 0.63, 0.70),
    "iwdl": (0.77, 0.83, 0.49, 0.79), "asl": (0.77, 0.81, 0.63, 0.71), "iwasl": (0.76, 0.80, 0.53, 0.78),
    "fl": (0.51, 0.38, 0.58, 0.58), "iwfl": (0.54, 0.65, 0.48, 0.72), "wce": (0.50, 0.82, 0.41, 0.56),
    "gdl": (0.73, 0.79, 0.60, 0.76),
}  # fmt: skip
DATASETS = {"lits": "LiTS", "luna16": "LUNA16"}
PAPERS = {
    "salehi2017": Paper(
        "Salehi et al. 2017, Table 1 (MSSEG 2016, 15 subjects, two folds, %)",
        "salehi2017",
        {f"tversky_b{beta}": dict(zip(VOXELS, row, strict=True)) for beta, row in SALEHI.items()},
        VOXELS | {"APR pooled": ("pooled.pr_auc", 100)} | LESIONS,
        folds=2,
        phantom=("data.importer.spacing_mm=1",),
    ),
    "hashemi2018_msseg": Paper(
        "Hashemi et al. 2018, MSSEG 2016 (15 subjects, five folds, %; of the paper's rows one number is known)",
        "hashemi2018",
        {"asl_b10": {}, "asl_b15": {"DSC": 69.9}, "asl_b20": {}, "asl_b25": {}, "asl_b30": {}, "focal": {}, "gdl": {},
         "unet_asl_b15": {}, "without_selection": {}, "without_fusion": {}, "without_rotations": {}},
        VOXELS | LESIONS | {"Lesion F1": ("mean.lesion_f1", 100), "ASSD (mm)": ("mean.assd_mm", 1)},
        folds=5,
        phantom=("data.importer.spacing_mm=1",),
        prefix="msseg_",
        parts={"small_selection": ("without_selection",), "small_network": ("unet_asl_b15",)},
    ),
    "hashemi2018_isbi": Paper(
        "Hashemi et al. 2018, ISBI 2015 (%; paper: 61 test scans, here: the training subjects left out; SC: mean over "
        "the raters; other columns: by the first label)",
        "hashemi2018",
        {"asl_b10": {}, "asl_b15": {"DSC": 65.74}, "gdl": {}, "unet_asl_b15": {},
         "focal": {"SC": 92.49, "DSC": 58.4, "PPV": 92.1, "TPR": 45.6, "LFPR": 8.7, "LTPR": 41.3, "VD": 49.7}},
        {"SC": ("cohort.isbi_score_over_raters", 100), "SC rater 1": ("raters.0.isbi_score", 100),
         "SC rater 2": ("raters.1.isbi_score", 100), "SC first label": ("cohort.isbi_score", 100),
         "DSC": ("mean.dice", 100), "PPV": ("mean.precision", 100),
         "TPR": ("mean.sensitivity", 100), **LESIONS, "VD": ("mean.volume_difference", 100)},
        folds=5,
        phantom=("data.importer.spacing_mm=1", "data.folds=5", "data.rater=null"),
        prefix="isbi_",
        parts={"small_selection": (), "small_network": ("unet_asl_b15",)},
    ),
    "shirokikh2020": Paper(
        "Shirokikh et al. 2020 (authors' notebooks; their averages are bootstrapped and some 0.02 to 0.03 optimistic)",
        "shirokikh2020",
        {name: {} for name in SHIROKIKH},
        {"Object Dice": ("froc.object_dice", 1), "Average recall": ("froc.average_recall", 1),
         "as they divide": ("froc.recorded.average_recall", 1),
         "Recall of the smallest quarter": ("recall_by_volume.quartiles.0.recall", 1), "DSC": ("mean.dice", 1)},
        folds=0,
        phantom=("data.importer.spacing_mm=1",),
    ),
}  # fmt: skip


def main() -> int:
    """Run what is missing; the exit status says whether all is there."""
    if {"-h", "--help"} & {*sys.argv}:
        print(__doc__)
        return 0
    if len(sys.argv) < 2 or sys.argv[1] not in PAPERS:
        return _say(
            f"PAPER: {' '.join(sys.argv[1:2]) or 'none given'}; expected one of {', '.join(PAPERS)}"
        )
    name = sys.argv[1]
    try:
        request = request_of(os.environ, name, sys.argv[2:])
        jobs = list(plan(PAPERS[name], request))
        n_jobs = _count(os.environ.get("JOBS") or "1")
        if os.environ.get("DRY_RUN", "") not in ("", "0"):
            for job in jobs:
                print(shlex.join(command(job)))
            return 0
        keep_plan(jobs, request.output_dir)
        link_training(request)
        if n_jobs > 1:  # runs that each take all cores slow each other down many times
            os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // n_jobs)))
        faults = run_all(jobs, n_jobs=n_jobs)
        lacking = {job.row for job in jobs if not is_finished(job)}
        request = replace(request, rows=tuple(row for row in request.rows if row not in lacking))
        if request.rows:
            jobs = [job for job in jobs if job.row in request.rows]
            report(PAPERS[name], request, jobs)
            if name == "hashemi2018_isbi" and request.data != "phantom":
                submit(request, jobs)
        if faults:
            left = f"; without {', '.join(sorted(lacking))}" if lacking else ""
            line = f"{faults[0].folder}: the run failed ({len(faults)} such in all{left}); repeat to go on"
            return _say(line, 1 if request.rows else 2)
    except (DataError, ValueError) as fault:
        return _say(str(fault))
    except OSError as fault:
        return _say(f"{fault.filename or 'OUT'}: {fault.strerror}; choose another OUT or make room")
    except subprocess.CalledProcessError as fault:
        return _say(
            f"{shlex.join(fault.cmd[1:3])}: ended with status {fault.returncode}; repeat to go on",
            1,
        )
    except KeyboardInterrupt:
        return _say("stopped; repeat to go on", 130)
    return 0


def request_of(environment: Mapping[str, str], name: str, words: Sequence[str]) -> Request:
    """Read the environment.

    Raises:
        ValueError: A value cannot be used.
    """
    paper, data = PAPERS[name], environment.get("DATA") or "phantom"
    if data != "phantom" and not Path(data).is_dir():
        raise ValueError(
            f"DATA: {data} is no folder; expected phantom or the folder of the official download"
        )
    scale = environment.get("SCALE") or ("small" if data == "phantom" else "full")
    rows, dataset = _listed(environment, "ROWS"), environment.get("DATASET") or "lits"
    unknown = [row for row in rows if row not in paper.rows]
    if unknown or scale not in ("small", "full") or dataset not in DATASETS:
        key, found, known = (
            ("ROWS", unknown[0], paper.rows) if unknown
            else ("SCALE", scale, ("small", "full")) if scale not in ("small", "full")
            else ("DATASET", dataset, DATASETS)
        )  # fmt: skip
        raise ValueError(f"{key}: {found}; expected one of {', '.join(known)}")
    seeds = _listed(environment, "SEEDS") or ("0",)
    if not all(seed.isdecimal() for seed in seeds):
        raise ValueError(f'SEEDS: {" ".join(seeds)}; expected whole numbers from 0, as "0 1 2"')
    for word in words:
        key = word.partition("=")[0].lstrip("+")
        if key in PLANNED or "=" not in word:
            raise ValueError(
                f"{word}: {PLANNED.get(key, 'is no setting')}; expected key=value of other keys"
            )
    label = "phantom" if data == "phantom" else dataset if name == "shirokikh2020" else "official"
    return Request(
        data=data,
        scale=scale,
        seeds=tuple(dict.fromkeys(map(int, seeds))),
        rows=rows or tuple(paper.rows),
        dataset=dataset,
        output_dir=Path(environment.get("OUT") or f"runs/reproduce/{name}_{label}_{scale}"),
        words=tuple(words),
    )


def _listed(environment: Mapping[str, str], key: str) -> tuple[str, ...]:
    """The words of a list, each once."""
    return tuple(dict.fromkeys((environment.get(key) or "").replace(",", " ").split()))


def plan(paper: Paper, request: Request) -> Iterator[Job]:
    """Every training: seeds outermost, so that a whole table is there soon."""
    folds = (
        2 if request.scale == "small" else paper.folds or (5 if request.data == "phantom" else 0)
    )
    for seed in request.seeds:
        for row in request.rows:
            for fold in range(folds) if folds else (None,):
                words = [experiment(paper, request, row), *data_words(paper, request)]
                words += [] if fold is None else [f"data.fold={fold}"]
                part = f"seed{seed}" if fold is None else f"fold{fold}_seed{seed}"
                folder = request.output_dir / row / part
                yield Job(
                    row,
                    seed,
                    folder,
                    (*words, f"seed={seed}", *request.words, f"output_dir={folder}"),
                )


def experiment(paper: Paper, request: Request, row: str) -> str:
    """The experiment files of a row."""
    files = [paper.prefix + row]
    if paper.folder == "shirokikh2020" and request.data != "phantom":
        files.append(request.dataset)
    if request.scale == "small":
        files += ["small", *(part for part, without in paper.parts.items() if row not in without)]
    named = [f"{paper.folder}/{file}" for file in files]
    return f"experiment={named[0]}" if len(named) == 1 else f"experiment=[{','.join(named)}]"


def data_words(paper: Paper, request: Request) -> tuple[str, ...]:
    """What to read: the synthetic cohort, or a download."""
    if request.data == "phantom":
        return (*PHANTOM, *(paper.phantom if request.scale == "full" else ()))
    return (f"data.root={_training_alone(Path(request.data), request.output_dir)}",)


def _training_alone(root: Path, output_dir: Path) -> Path:
    """The papers cross-validate on the challenges' training subjects: a folder with these alone."""
    if (root / "testdata_website").is_dir() and (root / "training").is_dir():
        return root / "training"
    return output_dir / "msseg2016" if (root / "Testing").is_dir() else root


def link_training(request: Request) -> None:
    """Make that folder where the download has none, also after the download has moved."""
    target = (Path(request.data) / "Training").resolve()
    folder = _training_alone(Path(request.data), request.output_dir)
    if request.data == "phantom" or folder != request.output_dir / "msseg2016":
        return
    folder.mkdir(parents=True, exist_ok=True)
    link = folder / "Training"
    if link.is_symlink() and link.resolve() != target:
        link.unlink()
    if not link.exists():
        link.symlink_to(target, target_is_directory=True)


def command(job: Job) -> list[str]:
    """The command line of a run."""
    return [sys.executable, str(ROOT / "train.py"), *job.words]


def keep_plan(jobs: Sequence[Job], output_dir: Path) -> None:
    """Note each run's settings, and refuse a folder that holds a run with other ones.

    Raises:
        ValueError: naming it.
    """
    path = output_dir / "plan.json"
    try:
        before = dict(read_json(path)) if path.exists() else {}
    except ValueError as fault:
        raise ValueError(
            f"{path}: cannot be read ({fault}); restore it or choose another OUT"
        ) from fault
    now = {str(job.folder.relative_to(output_dir)): list(job.words) for job in jobs}
    for job, (name, words) in zip(jobs, now.items(), strict=True):
        is_begun = (job.folder / "config.yaml").exists()
        if is_begun and name in before and _deciding(before[name]) != _deciding(words):
            raise ValueError(f"OUT: {job.folder} was begun with other settings; choose another OUT")
    output_dir.mkdir(parents=True, exist_ok=True)
    write_json(path, before | now)


def _deciding(words: Sequence[str]) -> set[str]:
    return {
        word
        for word in words
        if not is_free(word.partition("=")[0]) and not word.startswith("data.root=")
    }


def is_finished(job: Job) -> bool:
    """Whether the run was judged."""
    return (job.folder / "evaluation" / "metrics.json").exists()


def run_all(jobs: Sequence[Job], *, n_jobs: int) -> list[Job]:
    """Run what is not finished; gives the runs that failed. SIGTERM is passed on, so that each run keeps its steps."""
    missing = [job for job in jobs if not is_finished(job)]
    print(f"{len(jobs) - len(missing)} of {len(jobs)} runs are there", flush=True)
    running: set[subprocess.Popen[bytes]] = set()

    def run(numbered: tuple[int, Job]) -> int:
        number, job = numbered
        print(f"[{number} of {len(missing)}] {shlex.join(command(job)[1:])}", flush=True)
        with subprocess.Popen(command(job)) as process:
            running.add(process)
            return process.wait()

    def stop(*_: object) -> None:
        for process in running:
            process.terminate()
        raise SystemExit(128 + signal.SIGTERM)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        with ThreadPoolExecutor(max_workers=n_jobs) as pool:
            statuses = list(pool.map(run, enumerate(missing, 1)))
    finally:
        signal.signal(signal.SIGTERM, before)
    return [job for job, status in zip(missing, statuses, strict=True) if status]


def report(paper: Paper, request: Request, jobs: Sequence[Job]) -> None:
    """Judge each row and seed as one cohort; write the table, the summary and the paired tests."""
    judged: dict[str, list[dict[str, Any]]] = {}
    folders: dict[str, list[Path]] = {}
    for seed in request.seeds:
        for row in request.rows:
            runs = [job.folder for job in jobs if (job.row, job.seed) == (row, seed)]
            joined = request.output_dir / "cohorts" / f"seed{seed}" / row
            judged.setdefault(row, []).append(evaluate_folds(runs, joined))
            folders.setdefault(row, []).append(joined)
    text = table(paper, request, judged)
    (request.output_dir / "table.md").write_text(text, encoding="utf-8")
    write_csv(paper, request, judged, request.output_dir / "table.csv")
    settings = group_runs(read_sweep(sorted({job.folder for job in jobs})))
    said = recommend(settings, "f2").text if len(settings) > 1 else ""
    write_summary(
        settings, summarize_settings(settings), said, output_dir=request.output_dir / "summary"
    )
    if len(folders) > 1:
        compared = [average_runs(read_runs(of_row), name=row) for row, of_row in folders.items()]
        write_comparison(compared, compare(compared), output_dir=request.output_dir / "comparison")
    print(f"{text}\n{said}\n{request.output_dir}")


def table(paper: Paper, request: Request, judged: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """Markdown: for each row the paper's line, then ours."""
    lines = [f"| Row | | {' | '.join(paper.columns)} |", "|---|---|" + "---:|" * len(paper.columns)]
    for row, metrics in judged.items():
        printed = paper_values(paper, request, row)
        if printed:
            cells = (f"{printed[c]:g}" if c in printed else "" for c in paper.columns)
            lines.append(f"| {row} | paper | {' | '.join(cells)} |")
        ours = (_spread([_at(m, *where) for m in metrics]) for where in paper.columns.values())
        lines.append(f"| {row} | ours | {' | '.join(ours)} |")
    of_data = f", {DATASETS[request.dataset]}" if paper.folder == "shirokikh2020" else ""
    return f"**{paper.title}{of_data}**\n\n" + "\n".join(lines) + f"\n\n{_scale(request, judged)}\n"


def write_csv(
    paper: Paper, request: Request, judged: Mapping[str, Sequence[Mapping[str, Any]]], path: Path
) -> None:
    """The same numbers, one a line."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("row", "column", "seed", "ours", "paper"))
        for row, metrics in judged.items():
            printed = paper_values(paper, request, row)
            for column, where in paper.columns.items():
                for seed, one in zip(request.seeds, metrics, strict=True):
                    value = _at(one, *where)
                    writer.writerow(
                        (
                            row,
                            column,
                            seed,
                            "" if math.isnan(value) else value,
                            printed.get(column, ""),
                        )
                    )


def paper_values(paper: Paper, request: Request, row: str) -> Values:
    """The numbers that the paper, or its authors' notebooks, give for a row."""
    if paper.folder != "shirokikh2020":
        return paper.rows[row]
    first = 2 if request.dataset == "lits" else 0
    return dict(
        zip(("Object Dice", "Average recall"), SHIROKIKH[row][first : first + 2], strict=True)
    )


def _scale(request: Request, judged: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    n = next(iter(judged.values()))[0]["n_cases"]
    data = "the synthetic cohort" if request.data == "phantom" else "the official data"
    size = {
        "small": "SCALE=small: 400 or 600 steps with patches of 32, another recipe than the paper's (its small.yaml)",
        "full": "SCALE=full: the paper's settings as far as they are known (docs/conformance.md)",
    }[request.scale]
    of = (
        "numbers on other data: compare the order of rows, not the values. "
        if request.data == "phantom"
        else ""
    )
    spread = (
        f"mean ± standard deviation of {len(request.seeds)} seeds"
        if len(request.seeds) > 1
        else "one seed"
    )
    return f"Ours: {data}, {n} cases, each judged by a network that never saw its subject, {spread}; {of}{size}."


def _at(metrics: Mapping[str, Any], path: str, factor: float) -> float:
    """The value at a dotted place, NaN where there is none."""
    found: Any = metrics
    for key in path.split("."):
        try:
            found = found[int(key)] if isinstance(found, list) else found[key]
        except (KeyError, IndexError, TypeError):
            return math.nan
    return math.nan if found is None else float(found) * factor


def _spread(values: Sequence[float]) -> str:
    defined = [value for value in values if not math.isnan(value)]
    if not defined:
        return "–"
    mean = f"{statistics.fmean(defined):.4g}"
    n_decimals = max(1, len(mean.partition(".")[2]))
    return mean if len(defined) < 2 else f"{mean} ± {statistics.stdev(defined):.{n_decimals}f}"


def submit(request: Request, jobs: Sequence[Job]) -> None:
    """Predict the challenge's test scans by the folds' networks together, and pack what its site takes."""
    scans = [case for case in find_isbi2015(Path(request.data)) if not case.labels]
    if not scans:
        print("the download holds no test scans: no submission")
        return
    manifest = request.output_dir / "test_scans.csv"
    write_manifest(scans, manifest)
    for row in request.rows:
        members = [
            _quoted(job.folder) for job in jobs if (job.row, job.seed) == (row, request.seeds[0])
        ]
        masks = request.output_dir / "submissions" / row
        words = [f"checkpoint=[{','.join(members)}]", f"input={manifest}", f"output_dir={masks}"]
        subprocess.run([sys.executable, str(ROOT / "predict.py"), *words], check=True)
        name = row.replace("_", "-")
        pack = [
            sys.executable,
            str(ROOT / "scripts" / "isbi_submission.py"),
            str(masks),
            "--method",
            name,
        ]
        subprocess.run([*pack, "--output", str(masks.with_suffix(".zip"))], check=True)


def _quoted(folder: Path) -> str:
    """A name for a list on Hydra's command line, whatever signs it has."""
    escaped = str(folder).replace("'", r"\'")
    return f"'{escaped}'"


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise ValueError(f"JOBS: {text}; expected a number from 1")
    return int(text)


def _say(line: str, status: int = 2) -> int:
    print(f"error: {line}", file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())
