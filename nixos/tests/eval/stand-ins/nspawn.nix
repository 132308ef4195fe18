# Stand-in for what of nixos-nspawn a view of the store has to do with: the container's system, and its binds.
{ lib, ... }:
let
  inherit (lib) mkOption types;
  option = type: default: mkOption { inherit type default; };
in
{
  options.virtualisation.nspawn.containers = mkOption {
    default = { };
    type = types.attrsOf (
      types.submodule {
        options = {
          path = mkOption { type = types.path; };
          binds = mkOption {
            default = { };
            type = types.attrsOf (
              types.submodule {
                options = {
                  hostPath = option (types.nullOr types.str) null;
                  options = option (types.listOf types.str) [ ];
                  readOnly = option types.bool false;
                };
              }
            );
          };
        };
        config.binds."/nix/store" = {
          hostPath = "/nix/store";
          readOnly = true;
          options = [ "noidmap" ];
        };
      }
    );
  };
}
