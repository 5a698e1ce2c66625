"""The commands that users paste: from the README, and from what vu-blk says at its start."""

import shlex
from pathlib import Path
from typing import List

from harness import Failure

ROOT = Path(__file__).resolve().parents[2]
QEMU = "qemu-system-x86_64"
ANNOUNCEMENT = "vu-blk: QEMU: "


def commands(first_word: str) -> List[List[str]]:
    """The README's shell commands that begin with this word, each as its words, without a `&` or `...`."""
    found = []
    in_shell = False
    text = (ROOT / "README.md").read_text().replace("\\\n", " ")
    for line in text.splitlines():
        if line.startswith("```"):
            in_shell = line == "```sh"
        elif in_shell and line.split(maxsplit=1)[:1] == [first_word]:
            words = shlex.split(line, comments=True)
            found.append([word for word in words if word not in ("&", "...")])
    if not found:
        raise Failure(f"README.md has no command that begins with {first_word}")
    return found


def qemu_options(device: str) -> List[str]:
    """The options of the README's QEMU command for this device."""
    for command in commands(QEMU):
        if any(word.startswith(f"{device},") for word in command):
            return command[1:]
    raise Failure(f"README.md has no {QEMU} command with a {device}")


def is_announced(log: Path) -> bool:
    """Whether vu-blk has told its user what to paste, to the line's end."""
    lines = log.read_text().splitlines(keepends=True)
    return any(line.startswith(ANNOUNCEMENT) and line.endswith("\n") for line in lines)


def announced_qemu_options(log: Path) -> List[str]:
    """The options that vu-blk tells its user to paste."""
    for line in log.read_text().splitlines():
        if line.startswith(ANNOUNCEMENT):
            return shlex.split(line[len(ANNOUNCEMENT) :])
    raise Failure(f"no options for QEMU in {log.read_text()!r}")
