"""Imports run one way, from package to package, and what is slow or rare is imported where used."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "tversky_seg"

# Each package imports from itself and from packages of earlier lines.
LAYERS = (
    ("runtime", "metrics"),
    ("losses", "models", "weighting", "data"),
    ("config",),
    ("inference",),
    ("report", "export"),
    ("evaluation",),
    ("training", "analysis", "data_check"),
    ("commands",),
    ("cli", "__main__"),
)
CORE = {
    "metrics": {"metrics"},
    "losses": {"losses", "metrics"},
    "weighting": {"weighting"},
    "models": {"models"},
}
"""Packages for method people, and what each imports of ours: no files, no Hydra."""

CORE_LIBRARIES = {"numpy", "scipy", "torch", "triton", "cc3d", "tversky_seg"}

ONLY_IN = {
    "nibabel": {"data/nifti.py", "data/affines.py", "data/memory_images.py"},
    "hydra": {"config"},
    "omegaconf": {"config", "commands"},
}
NEVER_AT_THE_TOP = {
    "matplotlib",
    "mlflow",
    "monai",
    "nilearn",
    "pandas",
    "sklearn",
    "tensorboard",
    "torch.utils.tensorboard",
    "wandb",
}
FILES = sorted(PACKAGE.rglob("*.py"))


def imported(tree: ast.AST) -> set[str]:
    """Dotted names that a piece of code imports; `from a import b` counts as a and a.b."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            names.add(str(node.module))
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def imported_at_the_top(tree: ast.Module) -> set[str]:
    """Dotted names that are imported as soon as the module is."""
    later = [node for node in ast.walk(tree) if runs_later(node)]
    inside = {id(child) for node in later for child in ast.walk(node)}
    body: list[ast.stmt] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom) and id(node) not in inside:
            body.append(node)
    return imported(ast.Module(body=body, type_ignores=[]))


def runs_later(node: ast.AST) -> bool:
    """Tell whether this is a function, or `if TYPE_CHECKING:`, which never runs."""
    if isinstance(node, ast.FunctionDef):
        return True
    return (
        isinstance(node, ast.If)
        and isinstance(node.test, ast.Name)
        and node.test.id == "TYPE_CHECKING"
    )


def belongs_to(name: str, packages: set[str]) -> bool:
    return any(name == package or name.startswith(f"{package}.") for package in packages)


def package_of(module: str) -> str:
    """The package of `tversky_seg.<package>…`."""
    return module.split(".")[1]


def layer_of(package: str) -> int:
    return next(rank for rank, packages in enumerate(LAYERS) if package in packages)


def module_of(file: Path) -> str:
    return ".".join(["tversky_seg", *file.relative_to(PACKAGE).with_suffix("").parts])


def own_packages(file: Path) -> set[str]:
    """Packages of ours that a file imports, its own among them."""
    names = imported(ast.parse(file.read_text(encoding="utf-8")))
    return {package_of(name) for name in names if name.startswith("tversky_seg.")}


def test_every_package_has_a_layer() -> None:
    layered = {package for packages in LAYERS for package in packages}
    existing = {file.relative_to(PACKAGE).parts[0].removesuffix(".py") for file in FILES}
    assert existing - {"__init__"} <= layered


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_imports_run_from_the_core_to_the_commands(file: Path) -> None:
    package = package_of(module_of(file))
    if package == "__init__":
        return
    upward = {name for name in own_packages(file) if layer_of(name) > layer_of(package)}
    assert not upward
    if package in CORE:
        assert own_packages(file) <= CORE[package]


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_rare_libraries_are_imported_where_they_belong(file: Path) -> None:
    tree = ast.parse(file.read_text(encoding="utf-8"))
    place = file.relative_to(PACKAGE).as_posix()
    for library, places in ONLY_IN.items():
        if not any(place == allowed or place.startswith(f"{allowed}/") for allowed in places):
            assert not [name for name in imported(tree) if belongs_to(name, {library})]
    assert not [name for name in imported_at_the_top(tree) if belongs_to(name, NEVER_AT_THE_TOP)]


@pytest.mark.parametrize("package", CORE)
def test_the_core_needs_numpy_scipy_torch_alone(package: str) -> None:
    for file in FILES:
        if package_of(module_of(file)) == package:
            names = imported(ast.parse(file.read_text(encoding="utf-8")))
            libraries = {name.split(".")[0] for name in names} - set(sys.stdlib_module_names)
            assert libraries <= CORE_LIBRARIES, file


def test_no_module_imports_itself_through_others() -> None:
    needed: dict[str, set[str]] = {}
    for file in FILES:
        names = imported_at_the_top(ast.parse(file.read_text(encoding="utf-8")))
        needed[module_of(file)] = {name for name in names if name.startswith("tversky_seg.")}
    waiting = {name: others & needed.keys() for name, others in needed.items()}
    # Take away, again and again, the modules that need none of those left.
    while free := [name for name, others in waiting.items() if not others & waiting.keys()]:
        for name in free:
            del waiting[name]
    assert not waiting, f"in a circle: {sorted(waiting)}"


def test_the_commands_name_hydra_only_by_the_type_of_a_config() -> None:
    for file in (PACKAGE / "commands").glob("*.py"):
        names = imported(ast.parse(file.read_text(encoding="utf-8")))
        assert not [name for name in names if belongs_to(name, {"hydra"})]
        omegaconf = {name for name in names if belongs_to(name, {"omegaconf"})}
        assert omegaconf <= {"omegaconf", "omegaconf.DictConfig"}


def test_the_compiler_is_imported_when_something_is_compiled() -> None:
    program = "import sys, tversky_seg.losses, tversky_seg.models; print(*sys.modules)"
    modules = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)
    assert b"torch._dynamo" not in modules.stdout.split()
