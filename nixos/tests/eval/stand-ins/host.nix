# What a host's configuration consists of besides containers, as far as it is touched here.
{ lib, ... }:
let
  inherit (lib) mkOption types;
  anything = default: mkOption {
    type = types.unspecified;
    inherit default;
  };
in
{
  options = {
    assertions = mkOption {
      type = types.listOf types.unspecified;
      default = [ ];
    };
    boot.kernelPackages = mkOption { type = types.unspecified; };
    environment.etc = mkOption {
      default = { };
      type = types.attrsOf (
        types.submodule (
          { name, config, ... }:
          {
            options = {
              enable = mkOption {
                type = types.bool;
                default = true;
              };
              text = mkOption {
                type = types.nullOr types.str;
                default = null;
              };
              source = anything (builtins.toFile "etc" "") // {
                default = "/etc-source/${name}";
              };
            };
          }
        )
      );
    };
  };
}
