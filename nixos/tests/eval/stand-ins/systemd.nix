# Stand-in for nixpkgs' systemd options: services, and the units they become.
{
  config,
  lib,
  pkgs,
  ...
}:
let
  inherit (lib) mkOption types;
  option = type: default: mkOption { inherit type default; };
  units = option (types.listOf types.str) [ ];
  settings = option (types.attrsOf types.unitOption) { };

  lines =
    set:
    lib.concatStrings (
      lib.concatLists (
        lib.mapAttrsToList (key: value: map (one: "${key}=${toString one}\n") (lib.toList value)) set
      )
    );
in
{
  options.systemd = {
    package = option types.unspecified pkgs.systemd;
    services = mkOption {
      default = { };
      type = types.attrsOf (
        types.submodule (
          { name, config, ... }:
          {
            options = {
              description = option types.str "";
              requires = units;
              wants = units;
              after = units;
              wantedBy = units;
              path = option (types.listOf types.unspecified) [ ];
              environment = option (types.attrsOf types.str) { };
              unitConfig = settings;
              serviceConfig = settings;
              restartTriggers = option (types.listOf types.unspecified) [ ];
              reloadTriggers = option (types.listOf types.unspecified) [ ];
              restartIfChanged = option types.bool true;
              reloadIfChanged = option types.bool false;
              stopIfChanged = option types.bool true;
              overrideStrategy = option types.str "asDropinIfExists";
              script = option types.lines "";
            };
            config = lib.mkIf (config.script != "") {
              serviceConfig.ExecStart = "${pkgs.writeShellScript "unit-script-${lib.replaceStrings [ "@" ] [ "_" ] name}-start" config.script}";
            };
          }
        )
      );
    };
    slices = option (types.attrsOf (types.submodule { options.description = option types.str ""; })) { };
    units = mkOption {
      default = { };
      type = types.attrsOf (
        types.submodule (
          { name, config, ... }:
          {
            options = {
              text = mkOption { type = types.str; };
              unit = option types.unspecified (pkgs.writeText "unit-${lib.replaceStrings [ "@" ] [ "-" ] name}" config.text);
            };
          }
        )
      );
    };
  };

  config.systemd.units = lib.mapAttrs' (
    name: service:
    lib.nameValuePair "${name}.service" {
      text = "[Unit]\n${lines service.unitConfig}\n[Service]\n${lines service.serviceConfig}";
    }
  ) config.systemd.services;
}
