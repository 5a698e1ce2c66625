#!/usr/bin/env python3
"""Runs each command of the `sh` blocks of a page as a user would who has installed the library.

Usage: docs-commands.py PAGE SOURCE_ROOT BUILD_ROOT

The library is installed into a directory of its own; the commands run in an empty one, with the source
tree's examples.
"""

import os
import pathlib
import re
import subprocess
import sys
import tempfile


def commands(page):
    blocks = re.findall(r"^```sh\n(.*?)^```", page.read_text("utf-8"), re.MULTILINE | re.DOTALL)
    return [line for block in blocks for line in block.splitlines()]


def install(build_root, place):
    """Installs below `place`; the directory of vu-server.pc, which names that place."""
    subprocess.run(
        ["meson", "install", "-C", build_root, "--no-rebuild", "--quiet", "--destdir", place],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    (description,) = place.rglob("vu-server.pc")
    text = description.read_text("utf-8")
    description.write_text(re.sub("^prefix=", f"prefix={place}", text, flags=re.MULTILINE), "utf-8")
    return description.parent


def main():
    page, source_root, build_root = map(pathlib.Path, sys.argv[1:])
    lines = commands(page)
    if not lines:
        sys.exit(f"{page}: no commands")
    with tempfile.TemporaryDirectory() as directory:
        place = pathlib.Path(directory)
        environment = dict(os.environ, PKG_CONFIG_PATH=str(install(build_root, place / "installed")))
        (place / "examples").symlink_to(source_root / "examples")
        for line in lines:
            print(f"$ {line}", flush=True)
            subprocess.run(["sh", "-ec", line], cwd=place, env=environment, check=True, timeout=60)


if __name__ == "__main__":
    main()
