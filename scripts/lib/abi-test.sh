#!/usr/bin/env bash
# Compares the ABI of the library with that of the last release, and proves that the comparison finds what breaks
# programs and nothing else. Prints 'ok NAME' or 'FAIL NAME' for each check.
#
# While there is no release, the library is compared with itself.
set -uo pipefail
cd "$(dirname "$(realpath "$0")")/../.."

# Kept, so that the dependencies are built once.
target=$PWD/build/abi-target
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
failed=0
unset DESTDIR CFLAGS

verdict() {
    if [[ $1 == ok ]]; then
        printf 'ok %s\n' "$2"
    else
        printf 'FAIL %s\n' "$2"
        cat "$work/log"
        failed=1
    fi
}

compatible() { scripts/lib/abi-compatible.py "$@" >"$work/log" 2>&1; }

# expect NAME fine|found OLD NEW: what the comparison says.
expect() {
    local got=found
    compatible "$3" "$4" && got=fine
    if [[ $got == "$2" ]]; then verdict ok "$1: $2"; else verdict FAIL "$1: want $2"; fi
}

# --- the comparison itself, on small libraries in C ------------------------------------------------

# small NAME FIELDS DECLARATION BODY: the structure's fields, and the function that takes it.
small() {
    printf '#include <stdint.h>\nstruct stats { uint64_t size; %s };\n%s { %s }\n' "$2" "$3" "$4" >"$work/$1.c"
    cc -g -shared -fPIC -o "$work/$1.so" "$work/$1.c"
}

# case NAME WANTED FIELDS [DECLARATION [BODY]]
case_in_c() {
    small new "$3" "${4:-int get(struct stats *stats, uint32_t index)}" "${5:-return stats && index;}"
    expect "$1" "$2" "$work/old.so" "$work/new.so"
}

cases_in_c() {
    local fields='uint64_t a; uint64_t b;'
    small old "$fields" 'int get(struct stats *stats, uint32_t index)' 'return stats && index;'
    case_in_c 'the same' fine "$fields"
    case_in_c 'a field at the end' fine "$fields uint64_t c;"
    case_in_c 'a field at the end, and a new function' fine "$fields uint64_t c;" \
        'int more(void) { return 1; } int get(struct stats *stats, uint32_t index)'
    case_in_c 'a field before the end' found "uint64_t c; $fields"
    case_in_c 'a field that is gone' found 'uint64_t a;'
    case_in_c 'fields in another order' found 'uint64_t b; uint64_t a;'
    case_in_c 'a field of another type' found 'uint32_t a; uint64_t b;'
    case_in_c 'a field of another type, and one at the end' found 'int64_t a; uint64_t b; uint64_t c;'
    case_in_c 'a parameter of another type' found "$fields" 'int get(struct stats *stats, uint64_t index)'
    case_in_c 'a parameter more' found "$fields" 'int get(struct stats *stats, uint32_t index, int more)' \
        'return stats && index && more;'
    case_in_c 'another type of result' found "$fields" 'void *get(struct stats *stats, uint32_t index)' \
        'return index ? stats : 0;'
    case_in_c 'a function that is gone' found "$fields" 'int got(struct stats *stats, uint32_t index)'
}

# --- the library -------------------------------------------------------------------------------------

# As distributions build it, but with the types in the debug information.
build() {
    local directory=$work/$1
    mkdir -p "$target" "$directory/build"
    ln -sfn "$target" "$directory/build/cargo-target"
    if ! { meson setup "$directory/build" "$directory" --buildtype=debug -Dtests=false -Dexamples=disabled &&
        meson compile -C "$directory/build"; } >"$work/log" 2>&1; then
        verdict FAIL "the library builds ($1)"
        exit 1
    fi
}

library() { printf '%s/%s/build/libvu_server.so' "$work" "$1"; }

last_release() {
    git describe --tags --abbrev=0 --match 'v[0-9]*' 2>/dev/null
}

# Before 1.0 a minor version may break programs.
series() {
    local version=${1#v}
    if [[ $version == 0.* ]]; then cut -d. -f1,2 <<<"$version"; else cut -d. -f1 <<<"$version"; fi
}

compare_with_release() {
    local release
    if ! release=$(last_release); then
        expect 'the ABI beside itself, while there is no release' fine "$(library head)" "$(library head)"
        return
    fi
    mkdir "$work/release" && git archive "$release" | tar -x -C "$work/release" && build release
    if compatible "$(library release)" "$(library head)"; then
        verdict ok "the ABI is that of $release"
    elif [[ $(series "$release") != "$(series "$(scripts/cargo-build.py version)")" ]]; then
        cat "$work/log"
        verdict ok "the ABI differs from that of $release, and so does the series"
    else
        verdict FAIL "the ABI is that of $release"
    fi
}

# mutant NAME WANTED FILE SED-SCRIPT ...: the library with these changes.
mutant() {
    local name=$1 wanted=$2
    shift 2
    rm -rf "$work/mutant"
    scripts/lib/copy-sources.sh "$work/mutant"
    while [[ $# -gt 0 ]]; do
        cp "$work/mutant/$1" "$work/before"
        sed -i -E "$2" "$work/mutant/$1"
        if cmp -s "$work/mutant/$1" "$work/before"; then
            printf '%s: nothing changed in %s\n' "$2" "$1" >"$work/log"
            verdict FAIL "$name"
            return
        fi
        shift 2
    done
    build mutant
    expect "$name" "$wanted" "$(library head)" "$(library mutant)"
}

mutants() {
    mutant 'in the library, a parameter of another type' found \
        src/capi/server.rs '/fn vu_server_vq\(/,/\{/s/index: u32/index: u64/' \
        src/capi/server.rs '/fn vu_server_vq\(/,/^\}/s/\(index\)/(index as u32)/'
    mutant 'in the library, a field before the end of a structure' found \
        src/capi/stats.rs 's/^    pub pops: u64,/    pub early: u64,\n&/' \
        src/capi/stats.rs 's/^            pops: stats.pops,/            early: 0,\n&/' \
        src/capi/stats.rs '/layout!\(vu_vq_stats/,/\);/d'
    mutant 'in the library, a field at the end, and a new function' fine \
        src/capi/stats.rs '/^pub struct vu_vq_stats/,/^\}/s/^\}/    pub late: u64,\n}/' \
        src/capi/stats.rs 's/^            pops: stats.pops,/            late: 0,\n&/' \
        src/capi/stats.rs '/layout!\(vu_vq_stats/,/\);/d' \
        src/capi/version.rs '$a #[unsafe(no_mangle)]\npub extern "C" fn vu_version_late() -> u32 { 0 }'
}

cases_in_c
scripts/lib/copy-sources.sh "$work/head"
build head
compare_with_release
mutants

exit "$failed"
