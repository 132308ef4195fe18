# Sourced: `evaluate FILE …` prints a Nix value as JSON, in a store of its own, without network and without a Nix
# database of the machine; the same with Nix 2.8 and 2.26. NIXPKGS=DIR is handed on.
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
export NIX_REMOTE="local?root=$scratch/store" NIX_CONFIG="build-users-group =
substitute = false
sandbox = false"
unset NIX_PATH
[ -z "${NIXPKGS:-}" ] || NIXPKGS=$(realpath "$NIXPKGS")

evaluate() {
    nix-instantiate --eval --strict --json --arg nixpkgs "${NIXPKGS:-null}" "$@"
}
