# Every option has what the manual needs.
common:
let
  inherit (common)
    check
    config
    lib
    pkgs
    ;
in
map (
  { name, declared }:
  check "the option ${name} is documented" (
    builtins.isString (declared.description or null) && declared ? type
  ) true
) (import ../documented.nix { inherit config lib pkgs; })
