#!/usr/bin/env bash
# The licences of everything that is used, by cargo-deny: of the shipped library as deny.toml says, of the rest as
# deny-development.toml says; and that a wrong one is found. Prints 'ok NAME' or 'FAIL NAME' for each check.
set -uo pipefail
cd "$(dirname "$(realpath "$0")")/../.."

# Pinned, as its configuration changes; unoptimised, as it takes longer to build than it ever runs.
version=0.20.2
root=$PWD
tools=$root/build/tools
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
failed=0

# Crates for other systems count as well, so all of them are fetched.
install_tool() {
    cargo fetch --quiet --locked || return
    [[ $("$tools/bin/cargo-deny" --version 2>/dev/null) == "cargo-deny $version" ]] ||
        cargo install --quiet --debug --locked --root "$tools" "cargo-deny@$version"
}

deny() {
    local config=$1
    shift
    "$tools/bin/cargo-deny" --offline --config "$root/$config" "$@"
}

check() {
    local name=$1
    shift
    if "$@" >"$work/log" 2>&1; then
        printf 'ok %s\n' "$name"
    else
        printf 'FAIL %s\n' "$name"
        cat "$work/log"
        failed=1
    fi
}

# with_dependency TABLE LICENCE: what the library would be judged like with one more crate.
with_dependency() {
    local copy=$work/copy
    rm -rf "$copy"
    scripts/lib/copy-sources.sh "$copy"
    mkdir -p "$copy/new/src"
    touch "$copy/new/src/lib.rs"
    printf '[package]\nname = "new"\nversion = "1.0.0"\nlicense = "%s"\n' "$2" >"$copy/new/Cargo.toml"
    sed -i "s|^\[$1\]\$|&\nnew = { version = \"1\", path = \"new\" }|" "$copy/Cargo.toml"
    grep -q '^new = ' "$copy/Cargo.toml" || return 2
    (cd "$copy" && cargo metadata --offline --format-version 1 >/dev/null) || return 2
    (cd "$copy" && deny deny.toml check licenses)
}

# The verdict must be about the licence of the new crate, and not about anything else.
rejects() {
    local status=0
    with_dependency "$@" >"$work/verdict" 2>&1 || status=$?
    cat "$work/verdict"
    [[ $status -ne 0 && $status -ne 2 ]] && grep -q 'license is not explicitly allowed' "$work/verdict" &&
        grep -q 'new v1.0.0' "$work/verdict"
}

with_default_feature() {
    scripts/lib/copy-sources.sh "$work/feature"
    sed -i 's/^\[features\]$/&\ndefault = ["rust-vmm"]/' "$work/feature/Cargo.toml"
    (cd "$work/feature" && deny deny.toml check licenses) >"$work/verdict" 2>&1 && return 1
    grep -q 'virtio-queue v' "$work/verdict"
}

check "cargo-deny $version is there" install_tool
[[ $failed -eq 0 ]] || exit 1
check 'all of the shipped library may be linked to a program under GPLv2' \
    deny deny.toml --locked check licenses bans sources
check 'what builds and tests it, and the features that are off, have known licences' \
    deny deny-development.toml --locked check licenses bans sources
check 'a new crate under MIT OR Apache-2.0 is accepted' with_dependency dependencies 'MIT OR Apache-2.0'
check 'a new crate under Apache-2.0 alone is found' rejects dependencies Apache-2.0
check 'a new crate under GPL-3.0-only is found' rejects dependencies GPL-3.0-only
check 'a crate of the tests is judged apart' with_dependency dev-dependencies Apache-2.0
check 'rust-vmm as a default feature is found' with_default_feature

exit "$failed"
