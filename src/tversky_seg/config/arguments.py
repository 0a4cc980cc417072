"""Arguments of classes and functions, read from their source: importing torch takes seconds.

A hint at a misspelt key needs the names of all arguments, and nothing else of these classes.
"""

from __future__ import annotations

import ast
import inspect
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from tversky_seg.config.targets import find_object

Definition = ast.ClassDef | ast.FunctionDef

KNOWN_BASES = {"nn.Module": ["args", "kwargs"]}
"""Arguments of a class of another library, by the name that our modules give it."""


def argument_names(target: str) -> list[str]:
    """List the arguments of a class or function of a dotted name; none where there is no such.

    Where the source does not tell, as of a class whose base is built at run time, it is imported.
    """
    names = _names_in_source(target)
    if names is None:
        found = find_object(target)
        names = [] if found is None else list(inspect.signature(found).parameters)
    return names


@cache
def _names_in_source(target: str) -> list[str] | None:
    """Read the arguments from the source; None where it does not tell."""
    place = _definition(target)
    if place is None:
        return None
    module, node = place
    if isinstance(node, ast.FunctionDef):
        return _parameters(node)
    for statement in node.body:
        if isinstance(statement, ast.FunctionDef) and statement.name == "__init__":
            return _parameters(statement)[1:]  # without self
    inherited = None
    if node.bases:
        base = ast.unparse(node.bases[0])
        inherited = KNOWN_BASES.get(base) or _names_in_source(f"{module}.{base}")
    if not any("dataclass" in ast.unparse(decorator) for decorator in node.decorator_list):
        return inherited
    if node.bases and inherited is None:
        return None
    fields = [
        statement.target.id
        for statement in node.body
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name)
    ]
    return list(dict.fromkeys([*(inherited or ()), *fields]))


def _parameters(node: ast.FunctionDef) -> list[str]:
    """List the parameters of a function in the order of its signature."""
    given = node.args
    parameters = [*given.posonlyargs, *given.args]
    if given.vararg:
        parameters.append(given.vararg)
    parameters += given.kwonlyargs
    if given.kwarg:
        parameters.append(given.kwarg)
    return [parameter.arg for parameter in parameters]


def _definition(target: str) -> tuple[str, Definition] | None:
    """Find the class or function of a dotted name, and the module that defines it."""
    module, _, name = target.rpartition(".")
    file = _source_file(module)
    if file is None:
        return None
    for statement in _statements(file):
        if isinstance(statement, Definition) and statement.name == name:
            return module, statement
        # `from tversky_seg.losses.tversky import TverskyLoss` in an __init__.py
        if isinstance(statement, ast.ImportFrom) and statement.level == 0:
            for alias in statement.names:
                if (alias.asname or alias.name) == name:
                    return _definition(f"{statement.module}.{alias.name}")
    return None


def _source_file(module: str) -> Path | None:
    """Find the file of a module without importing the packages around it."""
    package, *parts = module.split(".")
    spec = find_spec(package) if package else None
    if spec is None or not spec.submodule_search_locations:
        return None
    place = Path(spec.submodule_search_locations[0], *parts)
    for file in (place / "__init__.py", place.with_suffix(".py")):
        if file.is_file():
            return file
    return None


@cache
def _statements(file: Path) -> list[ast.stmt]:
    return ast.parse(file.read_text(encoding="utf-8")).body
