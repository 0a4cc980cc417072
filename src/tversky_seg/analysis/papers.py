"""Tables of papers: columns, rows and printed numbers, as commands/papers.yaml holds them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

Metrics = Mapping[str, Any]
"""Content of a metrics.json."""


@dataclass(frozen=True)
class Column:
    """A column of a paper's table.

    Attributes:
        name: Heading.
        metric: Key in metrics.json, as "mean.dice" or "raters.0.isbi_score"; None: only the paper
            has this number.
        factor: Factor from our unit to the table's: 100 for per cent.
    """

    name: str
    metric: str | None
    factor: float

    def value(self, metrics: Metrics) -> float:
        """Look the number up in metrics.json; NaN if it is absent or undefined."""
        if self.metric is None:
            return math.nan
        # "raters.0.isbi_score" is metrics["raters"][0]["isbi_score"].
        # "raters.0.isbi_score" -> metrics["raters"][0]["isbi_score"]
        node: Any = metrics
        for key in self.metric.split("."):
            node = _child(node, key)
        # JSON has no NaN: metrics.json holds null for a metric that is undefined.
        if node is None:
            return math.nan
        return float(node) * self.factor


@dataclass(frozen=True)
class SmallExperiment:
    """An experiment file that makes a row small enough for a CPU, and the rows that go without."""

    experiment: str
    excluded_rows: tuple[str, ...]


@dataclass(frozen=True)
class Paper:
    """A table of a paper. commands/papers.yaml explains each field.

    Attributes:
        printed: The paper's numbers: row -> heading of the column -> number.
    """

    title: str
    experiments: str
    official: str | None
    small: tuple[SmallExperiment, ...]
    phantom: tuple[str, ...]
    folds: int | None
    submission: str | None
    columns: tuple[Column, ...]
    printed: Mapping[str, Mapping[str, float]]
    notes: tuple[str, ...]
    official_notes: tuple[str, ...]

    @property
    def rows(self) -> tuple[str, ...]:
        """Names of the rows, in the order of the table."""
        return tuple(self.printed)


def read_papers(path: Path) -> dict[str, Paper]:
    """Read the tables of a YAML file, by name."""
    contents = yaml.safe_load(path.read_text(encoding="utf-8"))
    return {name: _paper_of(content) for name, content in contents.items()}


def _paper_of(content: Mapping[str, Any]) -> Paper:
    columns = tuple(Column(**column) for column in content["columns"])
    small = []
    for addition in content["small"]:
        # "except" reads well in YAML, but is a keyword in Python.
        excluded_rows = tuple(addition["except"])
        small.append(SmallExperiment(addition["experiment"], excluded_rows))
    return Paper(
        title=content["title"],
        experiments=content["experiments"],
        official=content["official"],
        small=tuple(small),
        phantom=tuple(content["phantom"]),
        folds=content["folds"],
        submission=content["submission"],
        columns=columns,
        printed=content["rows"],
        notes=tuple(content["notes"]),
        official_notes=tuple(content["official_notes"]),
    )


def _child(node: Any, key: str) -> Any:
    """Look up a key of a dict or a position of a list; None if there is none."""
    if isinstance(node, Mapping):
        return node.get(key)
    if isinstance(node, list) and int(key) < len(node):
        return node[int(key)]
    return None
