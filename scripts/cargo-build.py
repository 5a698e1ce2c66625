#!/usr/bin/env python3
# SPDX-License-Identifier: MIT OR Apache-2.0
"""What meson asks of cargo: the crate's version, its static library, and what that links to."""

import argparse
import filecmp
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ARTEFACT = "libvu_server.a"


def version(_args):
    """The version in Cargo.toml's [package] section, the only place it is written."""
    manifest = (ROOT / "Cargo.toml").read_text()
    package = manifest.split("[package]", 1)[1].split("\n[", 1)[0]
    print(re.search(r'^version\s*=\s*"([^"]+)"', package, re.MULTILINE).group(1))


def native_libs(args):
    """What a program needs beside a Rust static library, asked of the compiler itself."""
    with tempfile.TemporaryDirectory() as scratch:
        result = subprocess.run(
            [args.rustc, "--crate-type", "staticlib", "--crate-name", "probe",
             "--print", "native-static-libs", "-o", f"{scratch}/probe.a", "-"],
            stdin=subprocess.DEVNULL, capture_output=True, text=True, check=True)
    found = re.search(r"native-static-libs:(.*)", result.stderr)
    if not found:
        sys.exit(f"{args.rustc} names no native-static-libs: {result.stderr.strip()}")
    print(" ".join(dict.fromkeys(found.group(1).split())))


def host(rustc):
    """The target that this compiler runs on."""
    result = subprocess.run([rustc, "-vV"], capture_output=True, text=True, check=True)
    return re.search(r"^host: (.*)$", result.stdout, re.MULTILINE).group(1)


def copy_if_changed(source, target):
    """An untouched target tells ninja that nothing needs linking again."""
    if target.exists() and filecmp.cmp(source, target, shallow=False):
        return
    # Another process may have the old file mapped: it keeps it.
    scratch = target.with_name(target.name + ".new")
    shutil.copyfile(source, scratch)
    os.replace(scratch, target)


def build(args):
    """The static library alone: neither rlib nor cdylib are linked by meson."""
    command = [args.cargo, "rustc", "--locked", "--lib", "--crate-type", "staticlib",
               "--manifest-path", str(ROOT / "Cargo.toml"),
               "--target-dir", args.target_dir, "--profile", args.profile]
    environment = dict(os.environ)
    artefacts = Path(args.target_dir)
    if args.sanitizer:
        # The compiler's own switch for that is unstable. With a target given, build scripts go without.
        target = host(args.rustc)
        command += ["--target", target]
        environment["RUSTC_BOOTSTRAP"] = "1"
        environment["RUSTFLAGS"] = f"-Zsanitizer={args.sanitizer}"
        artefacts /= target
    status = subprocess.run(command, env=environment).returncode
    if status:
        sys.exit(status)
    directory = "debug" if args.profile == "dev" else args.profile
    copy_if_changed(artefacts / directory / ARTEFACT, Path(args.output))


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(required=True)

    commands.add_parser("version").set_defaults(run=version)

    libs = commands.add_parser("native-libs")
    libs.add_argument("--rustc", default="rustc")
    libs.set_defaults(run=native_libs)

    library = commands.add_parser("build")
    library.add_argument("--cargo", default="cargo")
    library.add_argument("--rustc", default="rustc")
    library.add_argument("--sanitizer", choices=["address"])
    library.add_argument("--profile", choices=["dev", "release"], required=True)
    library.add_argument("--target-dir", required=True)
    library.add_argument("--output", required=True)
    library.set_defaults(run=build)

    args = parser.parse_args()
    args.run(args)


if __name__ == "__main__":
    main()
