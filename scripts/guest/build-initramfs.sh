#!/usr/bin/env bash
# Builds the guest: DIRECTORY/vmlinuz and DIRECTORY/initramfs.cpio.
# Usage: build-initramfs.sh DIRECTORY
set -euo pipefail

here=$(dirname "$(realpath "$0")")
modules_wanted=(virtio_pci virtio_blk virtio_rng)

die() { printf '%s\n' "build-initramfs: $*" >&2; exit 1; }

# The file of a module; file names may have a dash where the module's name has an underscore.
module_file() {
    local tree=$1 name=$2 file
    file=$(find "$tree/kernel" -regex ".*/${name//_/[-_]}\.ko\(\.[xg]z\)?" -print -quit)
    [[ -n $file ]] || die "no module $name in $tree"
    printf '%s\n' "$file"
}

is_builtin() {
    grep -q "/${2//_/[-_]}\.ko$" "$1/modules.builtin"
}

unpack_module() {
    case $1 in
        *.xz) xz -dc "$1" ;;
        *.gz) gzip -dc "$1" ;;
        *) cat "$1" ;;
    esac
}

# Copies a module after everything it depends on, and appends it to the load order.
# The dependencies come from the module itself: modules.dep exists only once a kernel is installed.
add_module() {
    local tree=$1 name=$2 root=$3 depends dependency
    if [[ -e $root/modules/$name.ko ]] || is_builtin "$tree" "$name"; then
        return
    fi
    unpack_module "$(module_file "$tree" "$name")" >"$root/modules/$name.ko"
    depends=$(tr '\0' '\n' <"$root/modules/$name.ko" | sed -n 's/^depends=//p')
    for dependency in ${depends//,/ }; do
        add_module "$tree" "$dependency" "$root"
    done
    printf '%s\n' "$name" >>"$root/modules/order"
}

[[ $# -eq 1 ]] || die "usage: build-initramfs.sh DIRECTORY"
mkdir -p "$1"
directory=$(realpath "$1")
kernel=$("$here/fetch-kernel.sh" "$directory/kernel")
read -r image tree <<<"$kernel"

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
root=$work/root
mkdir -p "$root"/{bin,dev,proc,sys,tmp,modules}
cp "$(command -v busybox)" "$root/bin/busybox"
install -m 755 "$here/init" "$root/init"
"${CC:-cc}" -std=c11 -O2 -Wall -Wextra -Werror -static -pthread -o "$root/bin/disk-io" "$here/disk-io.c"
for module in "${modules_wanted[@]}"; do
    add_module "$tree" "$module" "$root"
done

# Renamed into place, so that a run beside this one never boots half a file.
(cd "$root" && find . | cpio --quiet -o -H newc -R 0:0) >"$work/initramfs.cpio"
cp "$work/initramfs.cpio" "$directory/.initramfs.$$"
mv "$directory/.initramfs.$$" "$directory/initramfs.cpio"
cp "$image" "$directory/.vmlinuz.$$"
mv "$directory/.vmlinuz.$$" "$directory/vmlinuz"
