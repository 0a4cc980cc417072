"""What a sweep says: runs by setting, folds joined to one cohort, and the setting that validation recommends."""

from __future__ import annotations

import csv
import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml

from tversky_seg.analysis.comparison import TEX
from tversky_seg.analysis.runs import OPERATING_POINT, Run, check_alike, read_runs
from tversky_seg.analysis.statistics import bootstrap_interval
from tversky_seg.data.errors import DataError
from tversky_seg.inference.operating_point import check_goal
from tversky_seg.losses.checks import tversky_weights
from tversky_seg.metrics.averages import mean_of_defined
from tversky_seg.report.labels import LABELS, count
from tversky_seg.runtime.run_settings import flatten, is_free

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MEASURES = (
    "dice",
    "sensitivity",
    "precision",
    "f2",
    "pr_auc",
    "lesion_tpr",
    "lesion_fpr",
    "lesion_f1",
)
REPEATED = ("seed", "data.fold")  # what runs of one setting differ in
Settings = Mapping[str, Any]
logger = logging.getLogger("tversky_seg")


@dataclass(frozen=True, eq=False)
class SweepRun:
    """One finished run of a sweep.

    Attributes:
        judged: What its metrics.json says.
        settings: Its config.yaml, by dotted keys.
        validation: Measures on the validation cases, of the checkpoint that was kept; empty without such cases.
    """

    judged: Run
    settings: Settings
    validation: Mapping[str, float]


@dataclass(frozen=True, eq=False)
class Setting:
    """All runs of one setting: folds joined, seeds apart.

    Attributes:
        name: What this setting sets and others set otherwise.
        runs: Its runs.
        cohorts: Seed -> the out-of-fold judgements of all subjects as one run.
    """

    name: str
    runs: Sequence[SweepRun]
    cohorts: Mapping[Any, Run]

    @property
    def weights(self) -> tuple[float, float] | None:
        """Alpha and beta of the loss, where it has them."""
        return loss_weights(self.runs[0].settings)


@dataclass(frozen=True)
class Summary:
    """One measure of one class in one setting.

    Attributes:
        setting: Its name.
        class_name: What was segmented.
        measure: As in metrics.json.
        mean: Over seeds of the mean over subjects; a subject's cases are averaged first.
        sd: Of that mean between seeds; NaN for one seed.
        low: Lower limit of the 95 % interval over subjects, each averaged over seeds; NaN below two subjects.
        high: Upper limit.
        pooled: All voxels, or all lesions, of all subjects together, mean over seeds; NaN where it has no such form.
        n_subjects: Those that define the measure.
        n_seeds: Seeds.
        n_runs: Folds times seeds.
    """

    setting: str
    class_name: str
    measure: str
    mean: float
    sd: float
    low: float
    high: float
    pooled: float
    n_subjects: int
    n_seeds: int
    n_runs: int


def read_sweep(folders: Sequence[Path]) -> list[SweepRun]:
    """Read every finished run in some folders; one that repeats another's settings and cases is left out, and named.

    Raises:
        DataError: There is none, a folder is missing, or a run is damaged.
    """
    missing = [folder for folder in folders if not folder.exists()]
    if missing:
        raise DataError(missing[0], "no such folder", "expected runs, or folders of runs")
    found = list(dict.fromkeys(folder for folder in _runs_in(folders) if _is_finished(folder)))
    if not found:
        raise DataError(
            folders[0],
            "no finished run",
            "expected <run>/evaluation/metrics.json and <run>/config.yaml",
        )
    runs: dict[Any, SweepRun] = {}
    for run in map(_read, found):
        deciding = frozenset(
            (key, repr(value)) for key, value in run.settings.items() if not is_free(key)
        )
        first = runs.setdefault((deciding, *sorted(run.judged.subjects)), run)
        if first is not run:
            logger.warning(
                "%s: has the settings of %s; left out",
                run.judged.folder.parent,
                first.judged.folder.parent,
            )
    return list(runs.values())


def unfinished(folders: Sequence[Path]) -> str:
    """A sentence that names runs which were begun and not judged; "" where there are none."""
    begun = [folder for folder in _runs_in(folders) if (folder / "train.log").exists()]
    left = [folder for folder in begun if not _is_finished(folder)]
    return f"{count(len(left), 'run')} not finished and left out, as {left[0]}." if left else ""


def _runs_in(folders: Sequence[Path]) -> list[Path]:
    return [file.parent for folder in folders for file in sorted(folder.glob("**/config.yaml"))]


def _is_finished(folder: Path) -> bool:
    return (folder / "evaluation" / "metrics.json").exists()


def group_runs(runs: Sequence[SweepRun]) -> list[Setting]:
    """Runs by setting, those with the loss's weights in the order of beta.

    Raises:
        DataError: Settings were judged on different cases or by different rules, or a case twice with one seed.
    """
    names = _names([run.settings for run in runs])
    by_name: dict[str, list[SweepRun]] = {}
    for name, run in zip(names, runs, strict=True):
        by_name.setdefault(name, []).append(run)
    settings = [
        Setting(name, of_name, _cohorts(name, of_name)) for name, of_name in by_name.items()
    ]
    cohorts = [cohort for setting in settings for cohort in setting.cohorts.values()]
    for cohort in cohorts[1:]:
        check_alike(cohorts[0], cohort)
    beta = {
        setting.name: setting.weights[1] if setting.weights else math.inf for setting in settings
    }
    return sorted(settings, key=lambda setting: beta[setting.name])


def summarize_settings(
    settings: Sequence[Setting],
    *,
    measures: Sequence[str] = MEASURES,
    n_bootstrap: int = 10_000,
    seed: int = 0,
) -> list[Summary]:
    """Mean, spread and interval of each measure.

    Raises:
        DataError: A measure is in no run.
    """
    return [
        _summary(setting, name, measure, n_bootstrap=n_bootstrap, seed=seed)
        for setting in settings
        for name in next(iter(setting.cohorts.values())).rows
        for measure in measures
    ]


def loss_weights(settings: Settings) -> tuple[float, float] | None:
    """Alpha (false positives) and beta (misses) of a loss of the Tversky family; None for another."""
    name = str(settings.get("loss._target_", "")).rpartition(".")[2]
    if name == "DiceLoss":
        return 0.5, 0.5
    if name == "AsymmetricSimilarityLoss":
        b2 = float(settings.get("loss.b", 1.5)) ** 2
        return 1 / (1 + b2), b2 / (1 + b2)
    if name in ("TverskyLoss", "FocalTverskyLoss"):
        return tversky_weights(settings.get("loss.alpha"), settings.get("loss.beta"))
    return None


@dataclass(frozen=True)
class Recommendation:
    """The setting that serves a goal best on the validation cases.

    Attributes:
        setting: None where validation does not tell.
        text: A sentence that says why.
    """

    setting: Setting | None
    text: str


def recommend(settings: Sequence[Setting], goal: str) -> Recommendation:
    """The setting that serves a goal best on the validation cases; the test cases have no say.

    Args:
        settings: Of a sweep.
        goal: "dice", "f2", "lesion_f1"; "recall=r": the best precision where sensitivity reaches r; "lesion_recall=r":
            the best lesion F1 where the share of lesions found reaches r.

    Returns:
        The setting, or None where validation does not tell (some run has no validation cases, or the measure is
        defined in none), and a sentence that says why.

    Raises:
        ValueError: For another goal.
    """
    check_goal(goal)
    lacking = [
        run.judged.folder for setting in settings for run in setting.runs if not run.validation
    ]
    if lacking:
        return Recommendation(
            None,
            f"No setting is recommended: {len(lacking)} runs had no validation cases (as {lacking[0].parent}).",
        )
    kind, _, target = goal.partition("=")
    worth, recall = {
        "recall": ("precision", "sensitivity"),
        "lesion_recall": ("lesion_f1", "lesion_tpr"),
    }.get(kind, (kind, ""))
    means = {setting.name: _validation_means(setting) for setting in settings}
    if all(math.isnan(found.get(worth, math.nan)) for found in means.values()):
        return Recommendation(
            None,
            f"No setting is recommended: {LABELS[worth]} is undefined on the validation cases of all.",
        )
    able = [
        s for s in settings if not target or means[s.name].get(recall, math.nan) >= float(target)
    ]
    best = max(
        able or settings,
        key=lambda s: _low_if_nan(means[s.name].get(worth if able else recall, math.nan)),
    )
    found = means[best.name]
    said = ", ".join(
        f"{LABELS[name]} {found.get(name, math.nan):.3f}"
        for name in dict.fromkeys((worth, recall))
        if name
    )
    short = "" if able else f" No setting reaches {goal}; this one has the highest recall."
    n = sum(len(setting.runs) for setting in settings)
    return Recommendation(
        best,
        f"Recommended for {goal}, by validation alone ({n} runs): {best.name} ({said} there).{short}",
    )


def markdown_table(summaries: Sequence[Summary]) -> str:
    """One line for each setting: mean ± standard deviation between seeds [95 % interval over subjects]."""
    header, rows = _cells(summaries)
    lines = [f"| {' | '.join(header)} |", "|---|" + "---:|" * (len(header) - 1)]
    return "\n".join(
        [
            *lines,
            *(
                f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |"
                for row in rows
            ),
        ]
    )


def latex_table(summaries: Sequence[Summary]) -> str:
    r"""The same for a paper, with `\usepackage{booktabs}`."""
    header, rows = _cells(summaries)
    lines = [" & ".join(map(_tex, row)) + r" \\" for row in (header, *rows)]
    body = [lines[0], r"\midrule", *lines[1:]]
    columns = "l" + "r" * (len(header) - 1)
    parts = [
        r"% needs \usepackage{booktabs}",
        rf"\begin{{tabular}}{{{columns}}}",
        r"\toprule",
        *body,
        r"\bottomrule",
    ]
    return "\n".join([*parts, r"\end{tabular}"]) + "\n"


def reading(settings: Sequence[Setting]) -> str:
    """How the numbers of the table came about, in a sentence or two."""
    cohort = next(iter(settings[0].cohorts.values()))
    n_runs = sorted({(len(s.runs), len(s.cohorts)) for s in settings})
    runs = " or ".join(
        f"{n} runs ({n_seeds} {'seed' if n_seeds == 1 else 'seeds'})" for n, n_seeds in n_runs
    )
    return (
        f"{count(len(cohort.subjects), 'case')} of {count(len(set(cohort.subjects.values())), 'subject')}; {runs} "
        "for each setting, each subject judged by the runs that did not train on it. Mean over subjects ± "
        "standard deviation between seeds [95 % interval, subjects resampled]."
    )


def write_summary(
    settings: Sequence[Setting],
    summaries: Sequence[Summary],
    recommendation: str,
    *,
    output_dir: Path,
) -> None:
    """Write summary.{md,csv,tex}, and frontier and beta figures (png, pdf) where settings differ in alpha and beta.

    Raises:
        DataError: `output_dir` cannot be written.
    """
    try:
        output_dir.mkdir(parents=True, exist_ok=True)
        text = f"{markdown_table(summaries)}\n\n{reading(settings)} {recommendation}\n"
        (output_dir / "summary.md").write_text(text, encoding="utf-8")
        (output_dir / "summary.tex").write_text(latex_table(summaries), encoding="utf-8")
        with (output_dir / "summary.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(Summary.__dataclass_fields__)
            writer.writerows(["" if v != v else v for v in vars(s).values()] for s in summaries)
        for name, figure in figures(settings).items():
            for ending in ("png", "pdf"):
                kept = {"CreationDate": None} if ending == "pdf" else None
                figure.savefig(output_dir / f"{name}.{ending}", dpi=150, metadata=kept)
    except OSError as fault:
        raise DataError(
            "output", f"{output_dir} cannot be written ({fault.strerror})", "choose another"
        ) from fault


def figures(settings: Sequence[Setting]) -> dict[str, Figure]:
    """Precision against recall with alpha and beta along it, and measures over beta.

    A line joins settings that differ in alpha and beta alone; {} where no two do.
    """
    lines = _lines([setting for setting in settings if setting.weights])
    weighed = [setting for line in lines.values() for setting in line]
    if not weighed:
        return {}
    shown = ("sensitivity", "precision", "dice", "f2", "lesion_tpr")
    found = {
        (s.setting, s.class_name, s.measure): s for s in summarize_settings(weighed, measures=shown)
    }
    return {"frontier": _frontier(lines, found), "beta": _over_beta(lines, found)}


def _read(folder: Path) -> SweepRun:
    try:
        settings = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
        return SweepRun(
            read_runs([folder])[0],
            dict(flatten(settings)),
            _validation(folder / "metrics.csv", settings),
        )
    except (OSError, yaml.YAMLError, ValueError, KeyError, TypeError, AttributeError) as fault:
        if isinstance(fault, DataError):
            raise
        raise DataError(folder, f"cannot be read ({fault})", "run it again") from fault


def _validation(path: Path, settings: Mapping[str, Any]) -> dict[str, float]:
    """The measures of the step that the monitor found best, the first of equals."""
    by_step: dict[int, dict[str, float]] = {}
    if path.exists():
        with path.open(newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                if row["name"].startswith("val_"):
                    measures = by_step.setdefault(int(row["step"]), {})
                    measures[row["name"].removeprefix("val_")] = float(row["value"])
    monitor = settings["trainer"]["monitor"]
    return max(by_step.values(), key=lambda measures: _low_if_nan(measures[monitor]), default={})


def _names(settings: Sequence[Settings]) -> list[str]:
    """What tells each from the others: classes of objects, then the values that differ among objects of one class."""
    flat = [_telling(each) for each in settings]
    groups = list(dict.fromkeys(key.split(".")[0] for each in flat for key in each))
    words: list[list[str]] = [[] for _ in flat]
    for name in groups:
        classes = [_class_of(each, name) for each in flat]
        for number, each in enumerate(flat):
            alike = [
                other
                for other, found in zip(flat, classes, strict=True)
                if found == classes[number]
            ]
            if len(set(classes)) > 1:
                words[number].append(classes[number])
            for key in sorted(
                {key for other in alike for key in other if key.split(".")[0] == name}
            ):
                if (
                    not key.endswith("_target_")
                    and len({repr(other.get(key)) for other in alike}) > 1
                ):
                    words[number].append(f"{key}={_shown(each.get(key))}")
    return [", ".join(each) or "all runs" for each in words]


def _telling(settings: Settings) -> dict[str, Any]:
    """Without what may differ within a setting; alpha and beta as they act."""
    kept = {
        key: value for key, value in settings.items() if key not in REPEATED and not is_free(key)
    }
    weights = loss_weights(settings)
    if weights and "loss.beta" in kept:
        kept |= dict(zip(("loss.alpha", "loss.beta"), weights, strict=True))
    return kept


def _class_of(settings: Settings, name: str) -> str:
    target = settings.get(f"{name}._target_")
    if target:
        return str(target).rpartition(".")[2]
    return f"no {name}" if name in settings and settings[name] is None else ""


def _shown(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else "none" if value is None else str(value)


def _cohorts(name: str, runs: Sequence[SweepRun]) -> dict[Any, Run]:
    by_seed: dict[Any, list[Run]] = {}
    for run in runs:
        by_seed.setdefault(run.settings.get("seed"), []).append(run.judged)
    return {
        seed: _joined(of_seed, name)
        for seed, of_seed in sorted(by_seed.items(), key=lambda item: str(item[0]))
    }


def _joined(runs: Sequence[Run], name: str) -> Run:
    """Folds as one run.

    Raises:
        DataError: They share a case, or differ in classes or rule.
    """
    subjects: dict[str, str] = {}
    rows: dict[str, dict[str, Mapping[str, float]]] = {
        class_name: {} for class_name in runs[0].rows
    }
    rules = [
        {k: v for k, v in run.metrics["lesion_rule"].items() if k != OPERATING_POINT}
        for run in runs
    ]
    for run, rule in zip(runs, rules, strict=True):
        if set(run.rows) != set(rows) or rule != rules[0]:
            raise DataError(
                run.folder,
                "judged on other classes or by another rule",
                f"expected those of {runs[0].folder}",
            )
        twice = sorted(subjects.keys() & run.subjects.keys())
        if twice:
            raise DataError(
                run.folder,
                f"case {twice[0]} was judged by another run of the same setting and seed ({name})",
                "expected each case in one fold",
            )
        subjects |= run.subjects
        for class_name, of_class in run.rows.items():
            rows[class_name] |= of_class
    return replace(runs[0], name=name, subjects=subjects, rows=rows)


def _summary(setting: Setting, name: str, measure: str, *, n_bootstrap: int, seed: int) -> Summary:
    cohorts = list(setting.cohorts.values())
    for cohort in cohorts:
        if any(measure not in row for row in cohort.rows[name].values()):
            known = ", ".join(next(iter(cohort.rows[name].values())))
            raise DataError(
                "measures", f"{measure!r} is not in {cohort.folder}", f"expected some of {known}"
            )
    subjects = sorted(set(cohorts[0].subjects.values()))
    values = np.array(
        [_by_subject(cohort, name, measure, subjects) for cohort in cohorts]
    )  # (seeds, subjects)
    of_seeds = [mean_of_defined(row) for row in values]
    of_subjects = np.array([mean_of_defined(column) for column in values.T])
    defined = of_subjects[~np.isnan(of_subjects)]
    low, high = bootstrap_interval(
        defined, n_bootstrap=n_bootstrap, rng=np.random.default_rng(seed)
    )
    return Summary(
        setting=setting.name,
        class_name=name,
        measure=measure,
        mean=mean_of_defined(of_seeds),
        sd=float(np.std(of_seeds, ddof=1)) if len(of_seeds) > 1 else math.nan,
        low=low,
        high=high,
        pooled=mean_of_defined(
            [_pooled(cohort.rows[name].values()).get(measure, math.nan) for cohort in cohorts]
        ),
        n_subjects=len(defined),
        n_seeds=len(cohorts),
        n_runs=len(setting.runs),
    )


def _by_subject(cohort: Run, name: str, measure: str, subjects: Sequence[str]) -> list[float]:
    values: dict[str, list[float]] = {subject: [] for subject in subjects}
    for case, row in cohort.rows[name].items():
        values[cohort.subjects[case]].append(row[measure])
    return [mean_of_defined(of_subject) for of_subject in values.values()]


def _pooled(rows: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """Rates of the volumes and lesions of all cases together, from their own rates and totals."""
    keys = ("sensitivity", "reference_volume_mm3", "predicted_volume_mm3", "lesion_tpr", "n_reference_lesions",
            "lesion_fpr", "n_predicted_lesions")  # fmt: skip
    table = np.array([[row.get(key, math.nan) for key in keys] for row in rows])
    share, reference, predicted, tpr, n_reference, fpr, n_predicted = np.nan_to_num(table).T
    tp, found, false = (
        (share * reference).sum(),
        (tpr * n_reference).sum(),
        (fpr * n_predicted).sum(),
    )
    total, marked = reference.sum(), predicted.sum()
    return {
        "dice": _ratio(2 * tp, total + marked),
        "sensitivity": _ratio(tp, total),
        "precision": _ratio(tp, marked),
        "f2": _ratio(5 * tp, 4 * total + marked),
        "lesion_tpr": _ratio(found, n_reference.sum()),
        "lesion_fpr": _ratio(false, n_predicted.sum()),
    }


def _ratio(part: float, whole: float) -> float:
    return float(part / whole) if whole else math.nan


def _low_if_nan(value: float) -> float:
    return -math.inf if math.isnan(value) else value


def _validation_means(setting: Setting) -> dict[str, float]:
    names = set.intersection(*(set(run.validation) for run in setting.runs))
    return {name: mean_of_defined([run.validation[name] for run in setting.runs]) for name in names}


def _cells(summaries: Sequence[Summary]) -> tuple[list[str], list[list[str]]]:
    measures = list(dict.fromkeys(summary.measure for summary in summaries))
    several = len({summary.class_name for summary in summaries}) > 1
    rows: dict[tuple[str, str], list[str]] = {}
    for summary in summaries:
        name = f"{summary.setting}: {summary.class_name}" if several else summary.setting
        rows.setdefault((summary.setting, summary.class_name), [name]).append(_value(summary))
    return ["Setting", *(LABELS.get(measure, measure) for measure in measures)], list(rows.values())


def _value(summary: Summary) -> str:
    if math.isnan(summary.mean):
        return "–"
    spread = "" if math.isnan(summary.sd) else f" ± {summary.sd:.3f}"
    interval = "" if math.isnan(summary.low) else f" [{summary.low:.3f}, {summary.high:.3f}]"
    return f"{summary.mean:.3f}{spread}{interval}"


def _tex(text: str) -> str:
    return "".join(TEX.get(character, character) for character in text)


Found = Mapping[tuple[str, str, str], Summary]
Lines = Mapping[str, Sequence[Setting]]


def _lines(weighed: Sequence[Setting]) -> dict[str, list[Setting]]:
    """Settings by all that they set beside alpha and beta; those of one value of these are left out."""
    lines: dict[str, list[Setting]] = {}
    for name, setting in zip(_names(_beside_weights(weighed)), weighed, strict=True):
        lines.setdefault(name, []).append(setting)
    kept = [line for line in lines.values() if len({setting.weights for setting in line}) > 1]
    names = _names(_beside_weights([line[0] for line in kept]))
    return dict(zip(names, kept, strict=True))


def _beside_weights(weighed: Sequence[Setting]) -> list[Settings]:
    """Their settings without alpha and beta, and without the names that one formula has for some values of them."""
    unsaid = {"loss._target_", "loss.alpha", "loss.beta", "loss.b"}
    return [
        {
            k: v
            for k, v in setting.runs[0].settings.items()
            if k not in unsaid and not (k == "loss.squared" and not v)
        }
        for setting in weighed
    ]


def _frontier(lines: Lines, found: Found) -> Figure:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.2, 4.4), layout="constrained")
    axes = figure.subplots()
    classes = list(dict.fromkeys(key[1] for key in found))
    for name in classes:
        for line, settings in lines.items():
            points = [
                [found[s.name, name, measure].mean for s in settings]
                for measure in ("sensitivity", "precision")
            ]
            words = [name] * (len(classes) > 1) + [line] * (len(lines) > 1)
            axes.plot(*points, marker="o", label=", ".join(words))
            for x, y, setting in zip(*points, settings, strict=True):
                if setting.weights:
                    text = f"α {setting.weights[0]:.2g}, β {setting.weights[1]:.2g}"
                    axes.annotate(
                        text, (x, y), xytext=(5, 5), textcoords="offset points", fontsize="small"
                    )
    axes.set(xlabel="Recall (sensitivity)", ylabel="Precision")
    axes.margins(x=0.3, y=0.15)  # the labels stand to the right
    axes.grid(alpha=0.3)
    if len(axes.lines) > 1:
        axes.legend(fontsize="small")
    return figure


def _over_beta(lines: Lines, found: Found) -> Figure:
    from matplotlib.figure import Figure

    classes = list(dict.fromkeys(key[1] for key in found))
    figure = Figure(figsize=(5.2 * len(classes), 4.2 * len(lines)), layout="constrained")
    panels = [(line, name) for line in lines for name in classes]
    for axes, (line, name) in zip(
        figure.subplots(len(lines), len(classes), squeeze=False).flat, panels, strict=True
    ):
        for place, measure in enumerate(("f2", "dice", "sensitivity", "lesion_tpr")):
            rows = [found[setting.name, name, measure] for setting in lines[line]]
            x = [
                setting.weights[1] + 0.006 * (place - 1.5)
                for setting in lines[line]
                if setting.weights
            ]
            y = np.array([row.mean for row in rows])
            ends = np.nan_to_num(
                [[row.mean - row.low, row.high - row.mean] for row in rows]
            ).T.clip(min=0)
            axes.errorbar(x, y, yerr=ends, marker="o", capsize=2, label=LABELS[measure])
        title = ", ".join([name] * (len(classes) > 1) + [line] * (len(lines) > 1))
        axes.set(xlabel="β, weight of misses", ylim=(0, 1), title=title)
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small")
    return figure
