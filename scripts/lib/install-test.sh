#!/usr/bin/env bash
# Builds from a read-only copy of the sources, without network, installs into a temporary directory, and uses what
# is installed as distributions and programs do. Prints 'ok NAME' or 'FAIL NAME' for each check.
set -uo pipefail
cd "$(dirname "$(realpath "$0")")/../.."

work=$(mktemp -d)
trap 'chmod -R u+w "$work"; rm -rf "$work"' EXIT
source=$work/source
prefix=$work/prefix
failed=0

# The crates must be there; from here on there are no CFLAGS of the caller's, and no network for cargo.
cargo fetch --quiet --locked || exit 1
export CARGO_NET_OFFLINE=1 LC_ALL=C.UTF-8
unset CFLAGS CXXFLAGS LDFLAGS DESTDIR LD_LIBRARY_PATH

check() {
    local name=$1 status=0
    shift
    "$@" >"$work/log" 2>&1 || status=$?
    if [[ $status -eq 0 ]]; then
        printf 'ok %s\n' "$name"
    else
        printf 'FAIL %s\n' "$name"
        cat "$work/log"
        failed=1
    fi
    return "$status"
}

# Everything else builds on these.
need() { check "$@" || exit 1; }

# Root may write to what is read-only, unless it has given up that right.
without_override() {
    setpriv --bounding-set=-dac_override "$@"
}

# --- building --------------------------------------------------------------------------------------

copy_sources() {
    scripts/lib/copy-sources.sh "$source" && chmod -R a-w "$source" &&
        ! without_override touch "$source/written" 2>/dev/null
}

build() {
    without_override meson setup "$work/build" "$source" --prefix="$prefix" --libdir=lib --buildtype=debug \
        -Dtests=false -Dexamples=enabled &&
        without_override meson compile -C "$work/build"
}

# --- what is installed -------------------------------------------------------------------------------

expected_files() {
    cat <<FILES
bin/vu-blk
include/vu_server.h
include/vu_server/event.h
include/vu_server/glib.h
include/vu_server/uring.h
include/vu_server/uv.h
lib/libvu_server.a
lib/libvu_server.so
lib/libvu_server.so.0
lib/libvu_server.so.$version
lib/pkgconfig/vu-server.pc
share/man/man1/vu-blk.1
share/man/man3/vu_server.3
share/qemu/vhost-user/50-vu-blk.json
FILES
}

files_are() {
    diff <(expected_files | sort) <(cd "$1" && find . -not -type d -printf '%P\n' | sort)
}

destdir() {
    DESTDIR=$work/dest meson install -C "$work/build" --no-rebuild && files_are "$work/dest$prefix" &&
        diff -r "$prefix" "$work/dest$prefix"
}

dynamic_section() {
    local dynamic
    dynamic=$(readelf -dW "$prefix/lib/libvu_server.so.0") || return 1
    grep -q 'Library soname: \[libvu_server.so.0\]' <<<"$dynamic" &&
        grep -q 'Flags: .*NODELETE' <<<"$dynamic" &&
        ! grep -q 'TEXTREL\|RPATH\|RUNPATH' <<<"$dynamic" &&
        [[ $(readlink "$prefix/lib/libvu_server.so.0") == "libvu_server.so.$version" ]]
}

symbols() {
    c-tests/symbols.py nm "$prefix/lib/libvu_server.so.0" "$prefix/include/vu_server.h"
}

# --- programs ------------------------------------------------------------------------------------------

flags=(-Wall -Wextra -Wpedantic -Werror)

pkg() { PKG_CONFIG_PATH=$prefix/lib/pkgconfig pkg-config "$@" vu-server; }

# run PROGRAM: the consumer, wherever it may find the library.
run() {
    LD_LIBRARY_PATH=$prefix/lib "$1" "$1.sock"
}

shared() {
    local compiler=$1 standard=$2 program=$work/shared-$1-$2 code=$3
    # shellcheck disable=SC2046
    "$compiler" -std="$standard" "${flags[@]}" "c-tests/consumer/$code" -o "$program" $(pkg --cflags --libs) &&
        run "$program" && readelf -dW "$program" | grep -q 'NEEDED.*libvu_server.so.0'
}

# The directory has no shared library, as one for static linking: Libs.private must name all that is missing.
static() {
    local compiler=$1 standard=$2 program=$work/static-$1-$2 code=$3 libs
    mkdir -p "$work/static"
    cp -n "$prefix/lib/libvu_server.a" "$work/static/"
    libs=$(pkg --static --libs)
    # shellcheck disable=SC2046,SC2086
    "$compiler" -std="$standard" "${flags[@]}" "c-tests/consumer/$code" -o "$program" $(pkg --cflags) \
        ${libs//"$prefix/lib"/"$work/static"} && "$program" "$program.sock" &&
        ! readelf -dW "$program" | grep -q libvu_server
}

# The headers of GLib and others are not ISO C, and their warnings are not ours.
adapters() {
    local compiler=$1 standard=$2 language=$3 loops
    loops=$(pkg-config --cflags glib-2.0 libuv libevent)
    # shellcheck disable=SC2046,SC2086
    "$compiler" -x "$language" -std="$standard" -D_GNU_SOURCE "${flags[@]}" -c \
        c-tests/consumer/adapters.c -o /dev/null $(pkg --cflags) ${loops//-I/-isystem }
}

consumer() {
    local name=$1
    shift
    PKG_CONFIG_PATH=$prefix/lib/pkgconfig meson setup "$work/$name" c-tests/consumer "$@" &&
        meson compile -C "$work/$name" &&
        LD_LIBRARY_PATH=$prefix/lib meson test -C "$work/$name" --print-errorlogs
}

subproject() {
    mkdir -p "$work/consumer/subprojects" && cp c-tests/consumer/*.* "$work/consumer/" &&
        ln -s "$source" "$work/consumer/subprojects/vu-server" &&
        without_override meson setup "$work/consumer/build" "$work/consumer" --wrap-mode=forcefallback &&
        without_override meson compile -C "$work/consumer/build" &&
        meson test -C "$work/consumer/build" --print-errorlogs
}

# --- vu-blk ------------------------------------------------------------------------------------------

descriptor() {
    LD_LIBRARY_PATH=$prefix/lib python3 - "$prefix/share/qemu/vhost-user/50-vu-blk.json" <<'PYTHON'
import json, os, subprocess, sys

# The members of VhostUserBackend in QEMU's docs/interop/vhost-user.json; a parser of QAPI takes no others.
backend = json.load(open(sys.argv[1]))
assert set(backend) - {"tags"} == {"description", "type", "binary"}, backend
binary = backend["binary"]
assert os.path.isabs(binary) and os.access(binary, os.X_OK), binary
said = json.loads(subprocess.run([binary, "--print-capabilities"], capture_output=True, check=True).stdout)
assert said["type"] == backend["type"] == "block", (said, backend)
# Each feature is the name of an option.
options = subprocess.run([binary, "--help"], capture_output=True, text=True, check=True).stdout
assert set(said["features"]) <= {"read-only", "blk-file"}, said
assert all(f"--{feature}" in options for feature in said["features"]), said
PYTHON
}

manual() {
    local page=$1 complaints
    complaints=$(man --warnings -E UTF-8 -l -Tutf8 -Z "$page" 2>&1 >/dev/null) && [[ -z $complaints ]] &&
        # A page that no release has seen has no date.
        ! mandoc -T lint -W warning "$page" | grep -v 'missing date' || { printf '%s\n' "$complaints"; false; }
}

# --- all of it -------------------------------------------------------------------------------------------

version=$(scripts/cargo-build.py version)

need 'the sources are read-only' copy_sources
export LD_LIBRARY_PATH=$prefix/lib
need 'meson builds from them, without network' build
need 'meson installs' meson install -C "$work/build" --no-rebuild
check 'the installed files are all there, and no others' files_are "$prefix"
check 'DESTDIR is put before the prefix' destdir
check 'soname, NODELETE, no text relocations' dynamic_section
check 'the symbols are the functions of the header, with versions' symbols
check 'the version of the .pc file is that of Cargo.toml' test "$(pkg --modversion)" = "$version"

for compiler in gcc clang; do
    for standard in c99 c11; do
        check "$compiler -std=$standard, shared" shared "$compiler" "$standard" consumer.c
        check "$compiler -std=$standard, static" static "$compiler" "$standard" consumer.c
        check "$compiler -std=$standard, headers for event loops" adapters "$compiler" "$standard" c
    done
done
for compiler in g++ clang++; do
    for standard in c++11 c++17; do
        check "$compiler -std=$standard, shared" shared "$compiler" "$standard" consumer.cc
        check "$compiler -std=$standard, static" static "$compiler" "$standard" consumer.cc
        check "$compiler -std=$standard, headers for event loops" adapters "$compiler" "$standard" c++
    done
done
check 'a meson project finds the installed library' consumer installed
check 'a meson project links the static library' consumer installed-static -Dstatic=true
check 'a meson project has the sources as a subproject' subproject

check 'QEMU finds vu-blk by its JSON file' descriptor
check 'vu-blk(1) has no errors' manual "$prefix/share/man/man1/vu-blk.1"
check 'vu_server(3) has no errors' manual "$prefix/share/man/man3/vu_server.3"

exit "$failed"
