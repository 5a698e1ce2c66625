#!/usr/bin/env python3
# SPDX-License-Identifier: MIT OR Apache-2.0
"""Whether programs that were built with one library work with another: abidiff's report, judged.

New functions are fine, and so are fields at the end of a structure, which says its size or comes from the library.
(abidiff can be told so itself, but then is silent about other changes of the same structure.)

Usage: abi-compatible.py OLD NEW
"""

import re
import subprocess
import sys

HARMLESS = re.compile("|".join((
    r"$",
    r"(Functions|Variables) changes summary:",
    r"\d+ functions? with some indirect sub-type change:",
    r"\[C\] 'function .*' has some indirect sub-type changes:",
    r"\[C\] 'function .*' at .* has some indirect sub-type changes:",
    r"parameter \d+ of type '.*' (has sub-type changes:|changed:)",
    r"in (pointed to|unqualified underlying) type '.*'( at \S+)?( changed)?:",
    r"(pointed to|underlying) type '.*'( at \S+)? changed(:|, as (being )?reported)",
    r"\d+ data member insertions?:",
)))
GROWN = re.compile(r"type size changed from (\d+) to (\d+) \(in bits\)")
INSERTED = re.compile(r"'.*', at offset (\d+) \(in bits\)")


def problem(report):
    """The first line that tells of more than fields at an end; None if there is none."""
    end = None
    for line in map(str.strip, report.splitlines()):
        grown, inserted = GROWN.match(line), INSERTED.match(line)
        if grown and int(grown.group(1)) < int(grown.group(2)):
            end = int(grown.group(1))
        elif inserted and end is not None and int(inserted.group(1)) >= end:
            continue
        elif grown or inserted or not HARMLESS.match(line):
            return line
    return None


def main():
    old, new = sys.argv[1:]
    run = subprocess.run(["abidiff", "--no-added-syms", old, new], capture_output=True, text=True)
    # Bits: 1 and 2 an error, 4 a change, 8 an incompatible one.
    if run.returncode & ~4:
        sys.exit(f"{run.stdout}{run.stderr}abidiff: status {run.returncode}")
    found = problem(run.stdout)
    if found:
        sys.exit(f"{run.stdout}not compatible: {found}")


if __name__ == "__main__":
    main()
