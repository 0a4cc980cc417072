"""Build hook: the wheel carries configs/ as tversky_seg/configs. All else is in pyproject.toml."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

CONFIGS = Path("configs")


class BuildWithConfigs(build_py):
    """Copies the YAML files into the package, but not for an editable install of a clone."""

    def run(self) -> None:
        """Build the package, then add its configs."""
        super().run()
        if not self.editable_mode:
            target = Path(self.build_lib) / "tversky_seg" / "configs"
            shutil.rmtree(target, ignore_errors=True)
            shutil.copytree(CONFIGS, target, ignore=shutil.ignore_patterns("README.md"))

    def get_outputs(self, include_bytecode: bool = True) -> list[str]:
        """List the files of the package, for tools that ask what was built."""
        files = [str(Path(self.build_lib) / "tversky_seg" / path) for path in _yaml_files()]
        return [*super().get_outputs(include_bytecode), *files]


def _yaml_files() -> list[Path]:
    return sorted(CONFIGS.rglob("*.yaml"))


setup(cmdclass={"build_py": BuildWithConfigs})
