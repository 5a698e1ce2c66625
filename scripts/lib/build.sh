#!/usr/bin/env bash
# Builds everything into build/ with meson; prints the build's output only when it fails.
set -euo pipefail
cd "$(dirname "$(realpath "$0")")/../.."

log=$(mktemp)
trap 'rm -f "$log"' EXIT

quietly() {
    if ! "$@" >"$log" 2>&1; then
        cat "$log" >&2
        printf 'build: failed: %s\n' "$*" >&2
        exit 1
    fi
}

printf 'build: meson compile -C build\n' >&2
if [[ ! -e build/build.ninja ]]; then
    quietly meson setup build --buildtype=release
fi
quietly meson compile -C build
