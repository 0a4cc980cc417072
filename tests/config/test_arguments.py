"""Arguments read from the source are those of the imported objects."""

import inspect
import subprocess
import sys

from helpers.command_line import CONFIGS
from tversky_seg.config.arguments import argument_names
from tversky_seg.config.checks import nodes_with_target
from tversky_seg.config.config_files import read_yaml
from tversky_seg.config.targets import find_object


def test_the_source_tells_the_arguments_of_every_target() -> None:
    targets = set()
    for file in CONFIGS.rglob("*.yaml"):
        for _, node in nodes_with_target(read_yaml(file)):
            targets.add(node["_target_"])
    ours = {target for target in targets if target.startswith(("tversky_seg.", "torch."))}
    assert len(ours) > 30
    for target in ours:
        expected = list(inspect.signature(find_object(target)).parameters)
        assert argument_names(target) == expected, target


def test_a_name_without_object_has_no_arguments() -> None:
    assert argument_names("tversky_seg.losses.NoLoss") == []
    assert argument_names("no_package.NoLoss") == []
    assert argument_names("plain") == []


def test_a_misspelt_word_needs_no_torch() -> None:
    program = (
        "import sys\nfrom tversky_seg import cli\n"
        "sys.argv = ['tversky-seg', 'train', 'loss.alhpa=1']\n"
        "try: cli.main()\nexcept SystemExit as end: print(end.code)\n"
        "print('torch' in sys.modules)"
    )
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout == "2\nFalse\n"
    assert "did you mean loss.alpha?" in done.stderr
