"""How the user calls the commands: `python train.py` in a clone, or `tversky-seg train`."""

from __future__ import annotations

import re
import sys

INSTALLED_WORDS = {
    "python train.py": "tversky-seg train",
    "python predict.py": "tversky-seg predict",
    "python evaluate.py": "tversky-seg evaluate",
    "python scripts/check_data.py": "tversky-seg check",
    "scripts/check_data.py": "tversky-seg check",
    "python scripts/make_manifest.py": "tversky-seg manifest",
    "python scripts/import_dataset.py": "tversky-seg import",
    "python scripts/summarize.py": "tversky-seg summarize",
    "scripts/summarize.py": "tversky-seg summarize",
    "python scripts/compare.py": "tversky-seg compare",
    "python scripts/reproduce.py": "tversky-seg reproduce",
    "python scripts/isbi_submission.py": "tversky-seg isbi-submission",
    "train.py": "tversky-seg train",
    "predict.py": "tversky-seg predict",
    "evaluate.py": "tversky-seg evaluate",
}
"""A command as a clone has it -> as the installed program has it; longer texts first."""


def as_called(text: str) -> str:
    """Write the commands in a text as the user of this process calls them.

    Texts name the scripts of a clone; who called `tversky-seg` has none of these files.
    """
    if sys.argv[0].startswith("tversky-seg "):
        for script, words in INSTALLED_WORDS.items():
            # Not within a path, such as old/train.py
            text = re.sub(rf"(?<![\w/.-]){re.escape(script)}\b", words, text)
    return text
