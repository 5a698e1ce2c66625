#!/usr/bin/env bash
# Compares the ABI of the library with that of the last release, and proves that the comparison finds what breaks
# programs. Prints 'ok NAME' or 'FAIL NAME' for each check.
#
# While there is no release, the library is compared with itself.
set -uo pipefail
cd "$(dirname "$(realpath "$0")")/../.."

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
failed=0
unset DESTDIR

verdict() {
    if [[ $1 == ok ]]; then
        printf 'ok %s\n' "$2"
    else
        printf 'FAIL %s\n' "$2"
        cat "$work/log"
        failed=1
    fi
}

# As distributions build it, but with the types in the debug information. The dependencies are built once.
build() {
    local directory=$work/$1
    mkdir -p "$work/cargo-target" "$directory/build"
    ln -sfn "$work/cargo-target" "$directory/build/cargo-target"
    if ! { meson setup "$directory/build" "$directory" --buildtype=debug -Dtests=false -Dexamples=disabled &&
        meson compile -C "$directory/build"; } >"$work/log" 2>&1; then
        verdict FAIL "the library builds ($1)"
        exit 1
    fi
}

# What is added at the end is fine, and so is a new function; all else is reported. The types are those of the Rust
# sources, so that abidiff must not be told where the header is: it would take them all for private.
compare() {
    abidiff --no-added-syms --suppressions c-tests/abidiff.supp \
        "$work/$1/build/libvu_server.so" "$work/$2/build/libvu_server.so" >"$work/log" 2>&1
}

last_release() {
    git describe --tags --abbrev=0 --match 'v[0-9]*' 2>/dev/null
}

# Before 1.0 a minor version may break programs.
series() {
    local version=${1#v}
    [[ $version == 0.* ]] && cut -d. -f1,2 <<<"$version" || cut -d. -f1 <<<"$version"
}

compare_with_release() {
    local release
    scripts/lib/copy-sources.sh "$work/head" && build head
    if ! release=$(last_release); then
        compare head head && verdict ok 'the ABI is what it is (there is no release to compare with)' ||
            verdict FAIL 'the ABI is what it is'
        return
    fi
    mkdir "$work/release" && git archive "$release" | tar -x -C "$work/release" && build release
    if compare release head; then
        verdict ok "the ABI is that of $release"
    elif [[ $(series "$release") != "$(series "$(scripts/cargo-build.py version)")" ]]; then
        cat "$work/log"
        verdict ok "the ABI differs from that of $release, and so does the series"
    else
        verdict FAIL "the ABI is that of $release"
    fi
}

# mutant NAME WANTED FILE SED-SCRIPT ...: the change is found (WANTED is 'found') or is none of the ABI's ('fine').
mutant() {
    local name=$1 wanted=$2 got=found
    shift 2
    rm -rf "$work/mutant"
    cp -r "$work/head" "$work/mutant" && rm -rf "$work/mutant/build"
    while [[ $# -gt 0 ]]; do
        sed -i -E "$2" "$work/mutant/$1"
        if cmp -s "$work/mutant/$1" "$work/head/$1"; then
            printf '%s: nothing changed in %s\n' "$2" "$1" >"$work/log"
            verdict FAIL "$name"
            return
        fi
        shift 2
    done
    build mutant
    compare head mutant && got=fine
    [[ $got == "$wanted" ]] && verdict ok "$name: $wanted" || verdict FAIL "$name: want $wanted"
}

compare_with_release

mutant 'a function that is gone' found \
    src/capi/version.rs 's/fn vu_version_string/fn vu_version_text/'
mutant 'a parameter of another type' found \
    src/capi/server.rs '/fn vu_server_vq\(/,/\{/s/index: u32/index: u64/' \
    src/capi/server.rs '/fn vu_server_vq\(/,/^\}/s/\(index\)/(index as u32)/'
mutant 'a field in the middle of a structure' found \
    src/capi/stats.rs 's/^    pub pops: u64,/    pub early: u64,\n&/; s/^            pops: stats.pops,/            early: 0,\n&/' \
    src/capi/stats.rs '/layout!\(vu_vq_stats/,/\);/d'
mutant 'a field at the end of a structure, and a new function' fine \
    src/capi/stats.rs 's/^    pub breaks: u64,/&\n    pub late: u64,/; s/^            breaks: stats.breaks,/&\n            late: 0,/' \
    src/capi/stats.rs '/layout!\(vu_vq_stats/,/\);/d' \
    src/capi/version.rs '$a #[unsafe(no_mangle)]\npub extern "C" fn vu_version_late() -> u32 { 0 }'

exit "$failed"
