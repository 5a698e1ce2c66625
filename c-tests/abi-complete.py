#!/usr/bin/env python3
# SPDX-License-Identifier: MIT OR Apache-2.0
"""Every field and constant of the header is fixed by an assertion: in C by abi-layout.c, in Rust by layout!.

The compilers check the assertions; this checks that none is missing, and that both sides say the same.

Usage: abi-complete.py HEADER ABI_LAYOUT_C RUST_SOURCE ...
"""

import re
import sys
from pathlib import Path


def without_comments(text):
    return re.sub(r"/\*.*?\*/", "", text, flags=re.DOTALL)


def structures(header):
    """{name: [field ...]}"""
    found = {}
    for match in re.finditer(r"typedef struct (\w+) \{(.*?)\} \w+;", header, re.DOTALL):
        fields = []
        for declaration in match.group(2).split(";"):
            field = re.search(r"\(\*(\w+)\)", declaration) or re.search(r"(\w+)(\[\d+\])?\s*$", declaration)
            if field:
                fields.append(field.group(1))
        found[match.group(1)] = fields
    return found


def c_layout(text):
    """{(structure, field): offset}; the size is the one of the field None."""
    found = {(name, field): int(at) for name, field, at in re.findall(r"^AT\((\w+), (\w+), (\d+)\);", text, re.MULTILINE)}
    found |= {(name, None): int(size) for name, size in re.findall(r"^SIZE\((\w+), (\d+)\);", text, re.MULTILINE)}
    return found


def rust_layout(text):
    found = {}
    for name, size, fields in re.findall(r"layout!\(\s*(\w+),\s*(\d+),\s*\{(.*?)\}\s*\);", text, re.DOTALL):
        found[name, None] = int(size)
        found |= {(name, field): int(at) for field, at in re.findall(r"(?:r#)?(\w+): (\d+)", fields)}
    return found


def main():
    header, layout, *rust = [Path(name).read_text() for name in sys.argv[1:]]
    header = without_comments(header)
    known = structures(header)
    wanted = {(name, field) for name, fields in known.items() for field in [None, *fields]}
    in_c, in_rust = c_layout(layout), rust_layout("\n".join(rust))
    problems = []
    for side, found in (("abi-layout.c", in_c), ("layout!", in_rust)):
        problems += [f"{side}: nothing about {name}.{field or 'size'}" for name, field in sorted(wanted - set(found), key=str)]
        problems += [f"{side}: {name}.{field or 'size'} is not in the header"
                     for name, field in sorted(set(found) - wanted, key=str)]
    problems += [f"{name}.{field or 'size'}: {in_c[name, field]} in C, {in_rust[name, field]} in Rust"
                 for name, field in sorted(set(in_c) & set(in_rust), key=str) if in_c[name, field] != in_rust[name, field]]
    constants = re.findall(r"^#define (VU_\w+) (?:0x)?\d", header, re.MULTILINE)
    problems += [f"abi-layout.c: nothing about {name}" for name in constants
                 if not name.startswith("VU_SERVER_VERSION") and not re.search(rf"\b{name} ==", layout)]
    if len(known) < 6 or len(constants) < 15:
        problems.append(f"only {len(known)} structures and {len(constants)} constants found in the header")
    if problems:
        sys.exit("\n".join(problems))


if __name__ == "__main__":
    main()
