#!/usr/bin/env bash
# Stands in for every command with which scripts/setup changes a machine or looks at one; tests/it/setup.rs links it under
# their names. In the directory $STUBS:
#   bin/           the stubs, and links to the harmless commands that the script also uses
#   missing/NAME   the package NAME is not installed
#   works          one line for each piece of work that was begun
#   reached NAME, go   FIFOs: a stub that blocks in the work NAME writes to the first and then reads from the second
# In the environment: $FAIL and $BLOCK name a piece of work, $LOSE makes the library's installation do nothing, $CARGO says
# whose cargo it is, $RUST which version.
set -euo pipefail

work() {
    printf '%s\n' "$1" >>"$STUBS/works"
    if [ "${BLOCK:-}" = "$1" ]; then
        # As ninja does, which does not die of the signal.
        trap 'exit 2' INT
        echo "$1" >"$STUBS/reached $1"
        read -r _ <"$STUBS/go"
    fi
    if [ "${FAIL:-}" = "$1" ]; then
        echo "stub: $1 fails" >&2
        exit 7
    fi
}

link() { ln -s "$STUBS/bin/stub" "$1"; }

name=${0##*/}
case "$name $*" in
"apt-get indextargets "*) echo http://mirror.invalid/debian ;;
"apt-get update "*) work refresh ;;
"apt-get install "*)
    work install
    for package in "$@"; do rm -f "$STUBS/missing/$package"; done
    ;;
"apt-get "*" update") work lists ;;
"apt-get "*" source "*)
    work source
    touch nix_2.26.3.dsc
    ;;
"dpkg-source "*)
    work unpack
    mkdir tree
    echo 2.26.3 >tree/.version
    ;;
"dpkg-query -W "*)
    for package in "$@"; do :; done
    if [ ! -e "$STUBS/missing/$package" ]; then echo installed; fi
    ;;
"dpkg-query -S "*) if [ "$CARGO" = debian ]; then echo "cargo: $2"; else exit 1; fi ;;
"dpkg --configure -a") ;;
"dpkg --print-architecture") echo arm64 ;;
"dpkg --compare-versions "*) printf '%s\n' "$4" "$2" | sort -CV ;;
"debootstrap "*) work debootstrap ;;
"tar "*)
    echo "half of a system"
    work pack
    ;;
"id -u") echo 1000 ;;
"sudo mkdir /nix") ;;
"sudo "*) exec "$@" ;;
"cargo fmt "*) [ ! -e "$STUBS/missing/rustfmt" ] ;;
"cargo install "*" virtiofsd")
    work virtiofsd
    mkdir -p "$5/bin"
    touch "$5/bin/virtiofsd"
    ;;
"cargo clippy "*) [ ! -e "$STUBS/missing/rust-clippy" ] ;;
"rustc --version") echo "rustc ${RUST:-1.97.1}" ;;
"python3 -m venv "*)
    work venv
    mkdir -p "$3/bin"
    link "$3/bin/pip"
    ;;
"pip install "*)
    link "${0%/*}/meson"
    work pip
    ;;
"meson --version") echo 1.0.1 ;;
"meson setup "*)
    work "configure ${2##*/out-}"
    mkdir "$2"
    for argument in "$@"; do
        if [ "${previous:-}" = --prefix ]; then echo "$argument" >"$2/prefix"; fi
        previous=$argument
    done
    ;;
"ninja -C "*)
    work "build ${2##*/out-}"
    if [ -z "${LOSE:-}" ]; then
        prefix=$(cat "$2/prefix")
        mkdir -p "$prefix/lib/pkgconfig"
        if [[ $2 == *libstore ]]; then touch "$prefix/lib/pkgconfig/nix-store.pc"; fi
    fi
    ;;
"pkg-config --modversion "*) echo 2.26.3 ;;
"pkg-config "*)
    IFS=:
    for dir in ${PKG_CONFIG_PATH:-}; do
        if [ -e "$dir/nix-store.pc" ]; then exit; fi
    done
    echo "stub: no nix-store.pc" >&2
    exit 1
    ;;
*)
    echo "stub: unexpected: $name $*" >&2
    exit 99
    ;;
esac
