# Packages that are names only: derivations that can be referred to, and are never built.
#
# systemd and containerInit may be given as paths, so that the start script can be run on a machine without Nix' own.
{
  systemd ? null,
  containerInit ? null,
}:
let
  package =
    name: attributes:
    derivation (
      {
        name = builtins.replaceStrings [ "@" ] [ "-" ] name;
        system = "x86_64-linux";
        builder = "/bin/sh";
      }
      // attributes
    )
    // {
      inherit name;
    };
  script = name: text: package name { inherit text; };
in
{
  path = ./.;
  stdenv = {
    buildPlatform.canExecute = _: true;
    hostPlatform = {
      system = "x86_64-linux";
      rust.cargoShortTarget = "x86_64-unknown-linux-gnu";
    };
  };
  runtimeShell = "/bin/sh";
  systemd = if systemd == null then package "systemd-257" { } else systemd;

  writeText = script;
  writeScript =
    name: text: if name == "container-init" && containerInit != null then containerInit else script name text;
  writeShellScript = script;
  linkFarm = name: entries: package name { entries = map (entry: "${entry.name}=${entry.path}") entries; };

  nix-store-fs = package "nix-store-fs-0.1.0" { };
  e2fsprogs = package "e2fsprogs-1" { };
  iproute2 = package "iproute2-6" { };
  shadow = package "shadow-4" { } // {
    su = package "shadow-4-su" { };
  };
  hello = package "hello-2" { };
  nix = package "nix-2" { };
  coreutils = package "coreutils-9" { };
  findutils = package "findutils-4" { };
  gnugrep = package "gnugrep-3" { };
  gnused = package "gnused-4" { };
  linux = version: { kernel.version = version; };
  system = name: package "nixos-system-${name}" { };
  nixos-container = package "nixos-container" { } // {
    override = _: package "nixos-container" { } // { meta.mainProgram = "nixos-container"; };
  };

  runCommand = name: _: script name;
  writeShellScriptBin = name: text: script name text // { overrideAttrs = _: script name text // { meta.mainProgram = name; }; };
  writeShellApplication =
    { name, text }: script name text // { overrideAttrs = _: script name text // { meta.mainProgram = name; }; };
}
