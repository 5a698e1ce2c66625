#!/usr/bin/env bash
# Copies the sources, as they are in the working tree and without what was built, into a directory.
# Usage: copy-sources.sh DIRECTORY
set -euo pipefail
cd "$(dirname "$(realpath "$0")")/../.."

mkdir -p "$1"
if git rev-parse --git-dir >/dev/null 2>&1; then
    git ls-files -z --cached --others --exclude-standard | xargs -0 cp --parents -t "$1"
else
    tar -c --exclude=./build --exclude=./target . | tar -x -C "$1"
fi
