# One check for each file of nixos/tests, and the evaluation of the module over the stand-ins and over nixpkgs.
{
  lib,
  nixpkgs,
  pkgs,
  module,
}:
let
  directory = ../nixos/tests;
  files = lib.filterAttrs (name: kind: kind == "regular" && lib.hasSuffix ".nix" name) (
    builtins.readDir directory
  );
in
lib.mapAttrs' (
  file: _:
  lib.nameValuePair (lib.removeSuffix ".nix" file) (
    import (directory + "/${file}") { inherit module pkgs; }
  )
) files
// {
  evaluation =
    pkgs.runCommand "nix-store-fs-evaluation"
      {
        nativeBuildInputs = [
          pkgs.jq
          pkgs.nix
          pkgs.shellcheck
          pkgs.systemd
        ];
        src = lib.fileset.toSource {
          root = ../.;
          fileset = lib.fileset.unions [
            ../Cargo.toml
            ../README.md
            ../docs
            ../flake.lock
            ../flake.nix
            ../nix
            ../nixos
          ];
        };
        CI = "true";
      }
      ''
        cp -r $src source
        chmod -R u+w source
        bash source/nixos/tests/eval/run
        NIXPKGS=${nixpkgs} bash source/nixos/tests/eval/run
        touch $out
      '';
}
