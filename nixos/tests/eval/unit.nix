# What the program `unit` writes, as { FILE = TEXT }.
{
  nixpkgs ? null,
  directory,
  name,
}:
let
  lib = if nixpkgs == null then import ./stand-ins/lib.nix else import (nixpkgs + "/lib");
  render = import ./render.nix { inherit lib; };
  # Scripts lie beside the unit; their texts are taken from the arguments that made them.
  unit =
    writeShellScript:
    import ../../unit.nix {
      inherit lib;
      pkgs = { inherit writeShellScript; };
      package = directory;
    } {
      inherit name;
      mountPoint = "/run/nix-store-fs/${name}";
      description = "Store view ${name}";
      roots = [
        "--roots-file"
        "/etc/nix-store-fs/${name}.roots"
      ];
      onDemand = true;
    };
  service = unit (script: _: "${directory}/${script}");
  succeed = builtins.head (
    builtins.match "(.*) ${builtins.head (builtins.match "([^ ]*) .*" service.serviceConfig.ExecStart)} .*" (
      builtins.elemAt (unit (_: text: text)).serviceConfig.ExecReload 1
    )
  );
in
{
  "nix-store-fs@${name}.service" = render service;
  nix-store-fs-succeed = "#!/usr/bin/env bash\n${succeed}";
}
