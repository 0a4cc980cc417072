"""Imports run one way, and what is slow or rare to import is imported where it is used."""

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "tversky_seg"
LAYERS = (  # each imports from itself and from those above it
    ("masks", "overlap", "lesions", "surface", "ranking", "calibration", "froc", "rules", "cohort",
     "new_lesions", "soft_counts", "losses", "overlap_losses", "voxel_losses",
     "weighting", "deep_supervision", "devices", "progress", "schedules", "settings", "stopping",
     "arguments", "distributed", "averaging", "passes", "operating_point", "trackers", "views", "windows"),
    ("data", "models", "checkpoints", "recording"),
    ("predictions", "saved_predictions", "ensembles", "inference", "trained", "config"),
    ("measures", "summaries", "report", "comparison", "charts", "slices", "viewer", "evaluation", "training",
     "sweeps", "folds"),
    ("validation",),
)  # fmt: skip
CORE_MAY_IMPORT = {"numpy", "scipy", "torch", "cc3d", "tversky_seg"}
CORE = ("masks", "overlap", "lesions", "surface", "ranking", "soft_counts", "losses", "overlap_losses", "voxel_losses",
        "weighting", "calibration", "froc", "rules", "cohort", "new_lesions")  # fmt: skip
ONLY_IN = {"nibabel": {"data/volumes.py"}, "hydra": {"config.py"}, "omegaconf": {"config.py"}}
NEVER_AT_THE_TOP = {"monai", "nilearn", "matplotlib", "tensorboard", "torch.utils.tensorboard", "pandas", "sklearn",
                    "mlflow", "wandb"}  # fmt: skip
FILES = sorted(PACKAGE.rglob("*.py"))


def imported(tree: ast.AST) -> set[str]:
    """Dotted names of the modules that a piece of code imports; `from a import b` counts as a and a.b."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            names |= {str(node.module), *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def at_the_top(tree: ast.Module) -> set[str]:
    """What is imported as soon as the module is."""
    later = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) or is_for_types(node)]
    inside = {id(child) for node in later for child in ast.walk(node)}
    nodes = [
        node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom) and id(node) not in inside
    ]
    return imported(ast.Module(body=nodes, type_ignores=[]))


def is_for_types(node: ast.AST) -> bool:
    """Whether this is `if TYPE_CHECKING:`, which never runs."""
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def lies_in(name: str, packages: set[str]) -> bool:
    return any(name == package or name.startswith(f"{package}.") for package in packages)


def layer_of(module: str) -> int:
    """The layer of `tversky_seg.<name>…`."""
    name = module.split(".")[1]
    return next(rank for rank, names in enumerate(LAYERS) if name in names)


def module_of(file: Path) -> str:
    return ".".join(["tversky_seg", *file.relative_to(PACKAGE).with_suffix("").parts])


def test_every_module_has_a_layer() -> None:
    placed = [name for names in LAYERS for name in names]
    found = {file.relative_to(PACKAGE).parts[0].removesuffix(".py") for file in FILES} - {"__init__"}
    assert found <= set(placed)
    assert len(placed) == len(set(placed))


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_imports_run_from_the_core_to_the_verbs(file: Path) -> None:
    module = module_of(file)
    if module == "tversky_seg.__init__":
        return
    own = {name for name in imported(ast.parse(file.read_text())) if name.startswith("tversky_seg.")}
    assert not [name for name in own if layer_of(name) > layer_of(module)]
    if module.split(".")[1] in CORE:
        assert {name.split(".")[1] for name in own} <= set(CORE), "the core imports nothing else of this package"


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_rare_packages_are_imported_where_they_belong(file: Path) -> None:
    tree, place = ast.parse(file.read_text()), file.relative_to(PACKAGE).as_posix()
    everywhere = imported(tree)
    for package, places in ONLY_IN.items():
        assert place in places or not [name for name in everywhere if lies_in(name, {package})]
    assert not [name for name in at_the_top(tree) if lies_in(name, NEVER_AT_THE_TOP)]


@pytest.mark.parametrize("name", CORE)
def test_the_core_needs_numpy_scipy_torch_alone(name: str) -> None:
    file = PACKAGE / f"{name}.py"
    if not file.exists():
        pytest.skip(f"{name} is not there")
    packages = {module.split(".")[0] for module in imported(ast.parse(file.read_text()))}
    assert packages - set(sys.stdlib_module_names) <= CORE_MAY_IMPORT


def test_no_module_imports_itself_through_others() -> None:
    needs = {
        module_of(file): {name for name in at_the_top(ast.parse(file.read_text())) if name.startswith("tversky_seg.")}
        for file in FILES
    }
    known = {name: {other for other in needed if other in needs} for name, needed in needs.items()}
    while free := [name for name, needed in known.items() if not needed & known.keys()]:
        for name in free:
            del known[name]
    assert not known, f"in a circle: {sorted(known)}"


def test_the_verbs_name_hydra_only_by_the_type_of_a_config() -> None:
    for verb in ("train", "predict", "evaluate"):
        names = imported(ast.parse((ROOT / f"{verb}.py").read_text()))
        assert not [name for name in names if lies_in(name, {"hydra"})]
        assert {name for name in names if lies_in(name, {"omegaconf"})} <= {"omegaconf", "omegaconf.DictConfig"}
