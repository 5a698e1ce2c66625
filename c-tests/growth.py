#!/usr/bin/env python3
# SPDX-License-Identifier: MIT OR Apache-2.0
"""Programs of other versions with this library, and programs of this version with a newer one.

The headers of two versions before and of two versions after are made from this one's: structures that begin with
their size lose or get fields at their end, and the newer ones declare a function that is not there yet.

Usage: growth.py CC LIBRARY INCLUDE_DIR
"""

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
STRUCTURE = re.compile(r"(typedef struct (\w+) \{\n(?:(?!^\}).*\n)*?\s+size_t struct_size;\n)((?:(?!^\}).*\n)*)(\} \2;)",
                       re.MULTILINE)
FIELD = re.compile(r"    /\*\*(?:[^*]|\*(?!/))*\*/\n(?:(?!    /\*\*).*\n)*", re.MULTILINE)


def older(header, versions):
    """Each version added one field to each structure."""
    def cut(match):
        fields = FIELD.findall(match.group(3))
        return match.group(1) + "".join(fields[:len(fields) - versions]) + match.group(4)
    return change(header, cut)


def newer(header, versions):
    new = "".join(f"    uint64_t new_{number};\n" for number in range(1, versions + 1))
    header = change(header, lambda match: match.group(1) + match.group(3) + new + match.group(4))
    return header.replace("uint32_t vu_version(void);", "uint32_t vu_version(void);\nint vu_version_new(void);")


def change(header, how):
    changed, count = STRUCTURE.subn(how, header)
    assert count == 6, f"{count} structures with struct_size, not 6: growth.py is to be told of the others"
    return changed


class Bench:
    """A directory with a program for each version."""

    def __init__(self, directory, cc, library, include):
        self.directory, self.cc = Path(directory), cc
        self.library, self.header = Path(library).resolve(), (Path(include) / "vu_server.h").read_text()

    def compile(self, name, header, *options, source="growth.c"):
        include = self.directory / name
        include.mkdir()
        (include / "vu_server.h").write_text(header)
        program = include / "program"
        subprocess.run([self.cc, "-std=gnu11", "-Wall", "-Wextra", "-Werror", *options, f"-I{include}", HERE / source,
                        "-o", program, self.library, "-Wl,--enable-new-dtags", f"-Wl,-rpath,{self.library.parent}"], check=True)
        return program

    def run(self, program, library_dir=None):
        environment = dict(os.environ)
        if library_dir:
            environment["LD_LIBRARY_PATH"] = str(library_dir)
            environment["LD_BIND_NOW"] = "1"
        return subprocess.run([program], env=environment, capture_output=True, text=True)

    def works(self, program, library_dir=None):
        result = self.run(program, library_dir)
        if result.returncode:
            sys.exit(f"{program.parent.name}: status {result.returncode}: {result.stderr}")

    def next_library(self):
        """The next release as far as a loader sees it: the same soname, one more node, one more function."""
        place = self.directory / "next-library"
        place.mkdir()
        nodes = (HERE.parent / "src/libvu_server.map").read_text()
        last = re.findall(r"^(LIBVU_SERVER_\S+) \{", nodes, re.MULTILINE)[-1]
        (place / "map").write_text(nodes.replace("vu_*;", "vu_[a-u]*; vu_vq_*; vu_watch_*; vu_version; vu_version_string;")
                                   + f"LIBVU_SERVER_NEXT {{ global: vu_version_new; }} {last};\n")
        (place / "new.c").write_text("int vu_version_new(void); int vu_version_new(void) { return 7; }\n")
        archive = self.library.parent / "libvu_server.a"
        subprocess.run([self.cc, "-shared", "-fPIC", "-Wl,-soname,libvu_server.so.0", f"-Wl,--version-script={place}/map",
                        place / "new.c", "-Wl,--whole-archive", archive, "-Wl,--no-whole-archive",
                        "-o", place / "libvu_server.so.0", "-lgcc_s", "-lpthread", "-ldl", "-lm"], check=True)
        return place


NEW_PROGRAM = """
#include <vu_server.h>
int main(void) { return vu_version_new() != 7; }
"""


def main():
    cc, library, include = sys.argv[1:]
    with tempfile.TemporaryDirectory() as directory:
        bench = Bench(directory, cc, library, include)
        header = bench.header

        bench.works(bench.compile("this version", header))
        for versions in (1, 2):
            old, new = older(header, versions), newer(header, versions)
            assert len(old) < len(header) < len(new)
            bench.works(bench.compile(f"{versions} before", old))
            bench.works(bench.compile(f"{versions} after, nothing new used", new))
        bench.works(bench.compile("2 after, the new fields used", newer(header, 2), "-DUSE_NEW"))

        place = bench.next_library()
        bench.works(bench.directory / "this version" / "program", place)
        source = place / "program.c"
        source.write_text(NEW_PROGRAM)
        program = place / "program"
        subprocess.run([cc, f"-I{bench.directory}/2 after, nothing new used", source, place / "libvu_server.so.0",
                        "-o", program], check=True)
        bench.works(program, place)
        refused = bench.run(program, bench.library.parent)
        if not refused.returncode or "LIBVU_SERVER_NEXT" not in refused.stderr:
            sys.exit(f"an older library is not told from a newer one: {refused}")


if __name__ == "__main__":
    main()
