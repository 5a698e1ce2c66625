#!/usr/bin/env python3
# SPDX-License-Identifier: MIT OR Apache-2.0
"""The manual pages: vu_server(3) is made from the header, vu-blk(1) from `vu-blk --help` and man/vu-blk.1.in.

Usage: man-pages.py write|check --program VU_BLK

`write` makes man/*, which are committed, so that nobody needs this script to build; `check` compares.
"""

import argparse
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
HEADER = ROOT / "include/vu_server.h"
TEMPLATE = ROOT / "man/vu-blk.1.in"


# --- roff ----------------------------------------------------------------------------------------


def escape(text):
    """One line of text, or of code."""
    text = text.replace("\\", "\\e").replace("-", "\\-")
    return "\\&" + text if text[:1] in (".", "'") else text


def heading(macro, title):
    return f'.{macro} "{escape(title)}"'


def code(lines):
    return [".PP", ".in +4n", ".nf", *map(escape, lines), ".fi", ".in"]


def entry(term, lines):
    return [".TP", escape(term), *map(escape, lines)]


def paragraph(lines):
    return [".PP", *map(escape, lines)]


def prose(text):
    """Paragraphs, divided by empty lines; what is indented stays as it is."""
    out = []
    for block in re.split(r"\n{2,}", text.strip("\n")):
        lines = block.splitlines()
        if lines[0].startswith("  ") or re.match(r"call +new|\w+ {2,}\w", lines[0]):
            out += code(lines)
        else:
            out += paragraph([line.strip() for line in lines])
    return out


def page(lines):
    """No paragraph begins behind a heading: it has begun already."""
    after_heading = [True, *(line.startswith((".SH", ".SS")) for line in lines)]
    return "".join(f"{line}\n" for line, first in zip(lines, after_heading) if not (first and line == ".PP"))


# --- vu_server(3) --------------------------------------------------------------------------------


def comment_text(comment):
    """The text of a /** */ comment without its frame."""
    lines = comment.strip().removeprefix("/**").removesuffix("*/").splitlines()
    return "\n".join(re.sub(r"^\s*\* ?", "", line).rstrip() for line in lines).strip("\n")


def sections(text):
    """(title, text) of each part whose title is underlined; what comes before has none."""
    parts = re.split(r"^(.+)\n-{3,}\n", text, flags=re.MULTILINE)
    return [("", parts[0])] + list(zip(parts[1::2], parts[2::2]))


def overview(text):
    out = []
    for title, body in sections(text):
        if not title:
            body = body.split("\n\n", 1)[1].replace(" This file is generated; it\nis the reference.", "")
            out += [heading("SH", "DESCRIPTION"), *prose(body)]
            continue
        out.append(heading("SH", title.upper()))
        text, _, example = body.partition("@code\n")
        out += prose(text)
        if example:
            out += code(example.removesuffix("\n").removesuffix("@endcode").rstrip().splitlines())
    return out


def declarations(text):
    """(comment, declaration) of everything documented behind the first include."""
    body = text[text.index("#include <sys/uio.h>"):]
    pattern = r"/\*\*(?:[^*]|\*(?!/))*\*/\n(?:#define [^\n]*|typedef struct \w+ \{.*?^\} \w+;|[^{}]*?;)"
    for match in re.finditer(pattern, body, re.DOTALL | re.MULTILINE):
        comment, declaration = match.group(0).split("*/\n", 1)
        yield comment_text(comment + "*/"), declaration.strip()


def tags(text):
    """The text of a function's comment, and its (tag, name, description) lines."""
    main, *rest = re.split(r"^@(?=param|return|since)", text, flags=re.MULTILINE)
    found = []
    for item in rest:
        tag, tail = item.split(None, 1)
        name = ""
        if tag == "param":
            name, tail = tail.split(None, 1)
        found.append((tag, name, [line.strip() for line in tail.strip().splitlines()]))
    return main, found


def function(comment, declaration):
    declaration = re.sub(r"VU_MUST_USE\s+", "", declaration)
    name = re.search(r"(vu_\w+)\(", declaration).group(1)
    main, found = tags(comment)
    out = [heading("SS", f"{name}()"), *code(declaration.splitlines()), *prose(main)]
    for tag, parameter, lines in found:
        out += entry({"return": "Returns", "since": "Since"}.get(tag, parameter), lines)
    return out


def structure(comment, declaration):
    name = re.search(r"\} (\w+);", declaration).group(1)
    out = [heading("SS", f"struct {name}"), *prose(comment)]
    fields = re.finditer(r"/\*\*((?:[^*]|\*(?!/))*)\*/\s*([^;/]*;)", declaration)
    for field in fields:
        member = " ".join(field.group(2).split())
        lines = [line.strip() for line in comment_text("/**" + field.group(1) + "*/").splitlines()]
        out += [".TP", escape(member), *(escape(line) if line else ".IP" for line in lines)]
    return out


def check_complete(text, functions):
    declared = set(re.findall(r"^[^*/\n]*\b(vu_\w+)\((?!\*)", text, re.MULTILINE))
    missing = [name for name in sorted(declared) if heading("SS", f"{name}()") not in functions]
    if missing:
        sys.exit(f"{HEADER}: declared without a comment: {', '.join(missing)}")


def library_page():
    text = HEADER.read_text()
    version = re.search(r'VU_SERVER_VERSION_STRING "([^"]+)"', text).group(1)
    first = re.search(r"/\*\*\n \* @file.*?\*/", text, re.DOTALL).group(0)
    constants, structures, functions = [], [], []
    for comment, declaration in declarations(text):
        if declaration.startswith("#define"):
            name, value = declaration.split()[1:3]
            constants += entry(f"{name} ({value})", [line.strip() for line in comment.splitlines()])
        elif "{" in declaration:
            structures += structure(comment, declaration)
        elif "(*" in declaration:
            name = re.search(r"\(\*(\w+)\)", declaration).group(1)
            main, found = tags(comment)
            structures += [heading("SS", name), *code(declaration.splitlines()), *prose(main)]
            for _, parameter, lines in found:
                structures += entry(parameter, lines)
        elif not declaration.startswith("typedef"):
            functions += function(comment, declaration)
    check_complete(text, functions)
    return [
        f'.TH VU_SERVER 3 "" "vu\\-server {version}" "Library Functions Manual"',
        heading("SH", "NAME"),
        "vu_server \\- vhost\\-user device server",
        heading("SH", "SYNOPSIS"),
        *code(["#include <vu_server.h>", "", "cc ... $(pkg-config --cflags --libs vu-server)"]),
        *overview(comment_text(first).removeprefix("@file\n")),
        heading("SH", "FUNCTIONS"),
        *functions,
        heading("SH", "TYPES"),
        *structures,
        heading("SH", "CONSTANTS"),
        *constants,
        heading("SH", "SEE ALSO"),
        ".BR vu\\-blk (1)",
    ]


# --- vu-blk(1) -----------------------------------------------------------------------------------


def two_columns(lines):
    """(left, [right ...]) of lines like '  --option=X  What it is.' and the indented ones that go on."""
    for line in lines:
        match = re.match(r"  (\S.*?)  +(\S.*)$", line)
        if match:
            yield match.group(1), [match.group(2)]
        else:
            raise ValueError(f"not a line of two columns: {line!r}")


def join_columns(lines):
    """Lines that only continue the right column, joined to their entry."""
    out = []
    for line in lines:
        if re.match(r" {10,}\S", line):
            out[-1][1].append(line.strip())
        else:
            out += two_columns([line])
    return out


def program_page(program):
    run = subprocess.run([program, "--help"], capture_output=True, text=True, check=True)
    version = subprocess.run([program, "--version"], capture_output=True, text=True, check=True).stdout.split()[1]
    blocks = run.stdout.rstrip("\n").split("\n\n")
    synopsis, summary = blocks[0].splitlines()
    parts = {"@SYNOPSIS@": [escape(synopsis.removeprefix("Usage: "))], "@SUMMARY@": [escape(summary)], "@HELP@": []}
    for block in blocks[1:]:
        lines = block.splitlines()
        if re.fullmatch(r"[A-Z][a-z ]+:", lines[0]):
            parts["@HELP@"].append(heading("SH", lines[0].removesuffix(":").upper()))
            lines = lines[1:]
        if lines[0].startswith("  "):
            for term, text in join_columns(lines):
                parts["@HELP@"] += entry(term, text)
        else:
            parts["@HELP@"] += paragraph(lines)
    out = []
    for line in TEMPLATE.read_text().splitlines():
        out += parts.get(line, [line.replace("@VERSION@", version)])
    return out


# --- the command ---------------------------------------------------------------------------------


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["write", "check"])
    parser.add_argument("--program", required=True, help="vu-blk, to ask for its help")
    args = parser.parse_args()
    pages = {"vu_server.3": library_page(), "vu-blk.1": program_page(args.program)}
    stale = []
    for name, lines in pages.items():
        path, text = ROOT / "man" / name, page(lines)
        if path.exists() and path.read_text() == text:
            continue
        if args.command == "check":
            stale.append(name)
        else:
            path.write_text(text)
    if stale:
        sys.exit(f"man/{', man/'.join(stale)}: not what the sources say; run: scripts/man-pages.py write --program VU_BLK")


if __name__ == "__main__":
    main()
