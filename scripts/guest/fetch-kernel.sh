#!/usr/bin/env bash
# Prints "KERNEL-IMAGE MODULE-DIRECTORY" of a Linux kernel that can be booted as the guest.
# Usage: fetch-kernel.sh CACHE-DIRECTORY
#
# An installed Debian kernel serves as it is. Otherwise the kernel package is downloaded and
# unpacked into the cache, never installed: a test has no business in the machine's boot loader.
set -euo pipefail

die() { printf '%s\n' "fetch-kernel: $*" >&2; exit 1; }

# The newest kernel under a file-system root that we may read and that has the module we need.
find_kernel() {
    local root=$1 modules image
    while read -r modules; do
        image=$root/boot/vmlinuz-${modules##*/}
        if [[ -r $image ]] && compgen -G "$modules/kernel/drivers/block/virtio_blk.ko*" >/dev/null; then
            printf '%s %s\n' "$image" "$modules"
            return 0
        fi
    done < <(compgen -G "$root/lib/modules/*" | sort -rV)
    return 1
}

# The meta package's dependency is the kernel itself; its name changes with every ABI.
kernel_package() {
    apt-cache depends linux-image-cloud-amd64 2>/dev/null | awk '$1 == "Depends:" { print $2; exit }'
}

# Package lists age: the file they name may be gone from the archive. Then they are fetched anew, once.
download_kernel() {
    local package
    package=$(kernel_package)
    [[ -n $package ]] && apt-get download -qq -o APT::Sandbox::User=root "$package" >&2
}

refresh_lists() {
    if [[ $(id -u) -eq 0 ]]; then
        apt-get update -qq >&2
    else
        sudo apt-get update -qq >&2
    fi
}

unpack_kernel() (
    local cache=$1 work
    work=$(mktemp -d "$cache.XXXXXX")
    # shellcheck disable=SC2064  # the value of now, not of then
    trap "rm -rf '$work'" EXIT
    cd "$work"
    download_kernel || { refresh_lists && download_kernel; } || die "cannot download linux-image-cloud-amd64"
    dpkg -x ./*.deb root
    rm -rf "$cache"
    mv root "$cache"
)

[[ $# -eq 1 ]] || die "usage: fetch-kernel.sh CACHE-DIRECTORY"
mkdir -p "$(dirname "$1")"
cache=$(realpath -m "$1")
find_kernel "" || find_kernel "$cache" || { unpack_kernel "$cache" && find_kernel "$cache"; } \
    || die "no usable kernel in $cache"
