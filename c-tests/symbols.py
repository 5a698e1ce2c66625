#!/usr/bin/env python3
# SPDX-License-Identifier: MIT OR Apache-2.0
"""What the library exports is what the header declares, each with a version, and nothing of libvhost-user's.

Usage: symbols.py NM LIBRARY HEADER
"""

import re
import subprocess
import sys

# Exported by libvhost-user, which a program may be linked with as well.
TAKEN = {
    "vu_init", "vu_deinit", "vu_dispatch", "vu_get_queue", "vu_gpa_to_va", "vu_config_change_msg",
    "vu_request_to_string",
}
TAKEN_PATTERN = re.compile(r"vu_(set_)?queue_|vu_\w+_shared_object$")


def main():
    nm, library, header = sys.argv[1:]
    listing = subprocess.run([nm, "-D", "--defined-only", library], capture_output=True, text=True,
                             check=True).stdout
    exported, problems = set(), []
    for line in listing.splitlines():
        kind, name = line.split()[1:3]
        if kind == "A":  # the version's own
            continue
        base, _, version = name.partition("@@")
        exported.add(base)
        if not re.fullmatch(r"LIBVU_SERVER_\d+\.\d+", version):
            problems.append(f"{name}: no version")
    text = re.sub(r"/\*.*?\*/", "", open(header).read(), flags=re.DOTALL)
    declared = set(re.findall(r"\b(vu_\w+)\((?!\*)[^;{]*\);", text))
    problems += [f"{name}: exported, not declared" for name in sorted(exported - declared)]
    problems += [f"{name}: declared, not exported" for name in sorted(declared - exported)]
    problems += [f"{name}: one of libvhost-user's names" for name in sorted(exported)
                 if name in TAKEN or TAKEN_PATTERN.match(name)]
    if len(declared) < 50:
        problems.append(f"only {len(declared)} functions found in the header")
    if problems:
        sys.exit("\n".join(problems))


if __name__ == "__main__":
    main()
