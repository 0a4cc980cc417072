"""Messages as one line that a terminal can show."""

from __future__ import annotations


def message_lines(error: BaseException) -> list[str]:
    """Return the lines of an error's message that hold text; if none does, the name of its type."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines or [type(error).__name__]


def printable_line(text: str) -> str:
    r"""Make one line of a text, whatever a file name or another library brings along.

    Characters that cannot be printed become their codes, as `\x1b`: a name from a stranger's file
    could otherwise move the cursor of the terminal or rewrite its lines.
    """
    line = " ".join(text.split())
    if line.isprintable():
        return line
    shown = []
    for character in line:
        if character.isprintable():
            shown.append(character)
        else:
            shown.append(character.encode("unicode_escape").decode())
    return "".join(shown)
