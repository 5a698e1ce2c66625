#!/usr/bin/env bash
# Installs the Debian packages the scripts need; quick and silent when nothing is missing.
# Usage: deps.sh build|demo|test ...      (the sets add up)
set -euo pipefail

build_packages=(build-essential pkg-config meson ninja-build liburing-dev python3)
demo_packages=("${build_packages[@]}" qemu-system-x86 busybox-static cpio)
test_packages=("${demo_packages[@]}" qemu-utils valgrind clang libglib2.0-dev libuv1-dev libevent-dev
    systemd abigail-tools man-db mandoc)

say() { printf '%s\n' "deps: $*" >&2; }
die() { say "$*"; exit 1; }

is_installed() {
    [[ $(dpkg-query -W -f '${db:Status-Abbrev}' "$1" 2>/dev/null) == ii* ]]
}

as_root() {
    if [[ $(id -u) -eq 0 ]]; then
        "$@"
    elif command -v sudo >/dev/null; then
        sudo "$@"
    else
        die "root is needed for: $*"
    fi
}

# --no-remove: a package of the user's is never traded for one of ours.
apt_install() {
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends --no-remove \
        -o Dpkg::Use-Pty=0 -o DPkg::Lock::Timeout=120 "$@" >&2
}

candidate() {
    apt-cache policy "$1" | awk '$1 == "Candidate:" { print $2 }'
}

# A qemu-utils from another source (a backport whose source is gone, say) breaks the qemu-system
# packages of this release. Then, and only then, it goes back to the release's own version.
install_missing() {
    if apt_install "$@"; then
        return
    fi
    is_installed qemu-utils || die "apt-get could not install: $*"
    local version
    version=$(candidate qemu-system-x86)
    say "trying again with qemu-utils at the version of qemu-system-x86 ($version)"
    apt_install --allow-downgrades "$@" "qemu-utils=$version" || die "apt-get could not install: $*"
}

main() {
    local -a wanted=() missing=()
    local set_name package
    [[ $# -gt 0 ]] || die "usage: deps.sh build|demo|test ..."
    for set_name in "$@"; do
        case $set_name in
            build) wanted+=("${build_packages[@]}") ;;
            demo) wanted+=("${demo_packages[@]}") ;;
            test) wanted+=("${test_packages[@]}") ;;
            *) die "unknown set of packages: $set_name" ;;
        esac
    done
    command -v dpkg-query >/dev/null || die "this is not a Debian system; install by hand: ${wanted[*]}"
    for package in "${wanted[@]}"; do
        is_installed "$package" || missing+=("$package")
    done
    if [[ ${#missing[@]} -gt 0 ]]; then
        say "installing ${missing[*]}"
        as_root apt-get update -qq >&2 || die "apt-get update failed"
        install_missing "${missing[@]}"
    fi
    command -v cargo >/dev/null || die "cargo is missing: install Rust 1.88 or newer (https://rustup.rs)"
}

main "$@"
