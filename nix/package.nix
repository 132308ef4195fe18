# nix-store-fs, against the store library of one release of Nix.
{
  lib,
  rustPlatform,
  stdenv,
  pkg-config,
  nixVersions,
  nixComponents ? nixVersions.nixComponents_2_31 or nixVersions.nixComponents_2_34,
}:
let
  cargo = lib.importTOML ../Cargo.toml;
in
rustPlatform.buildRustPackage {
  pname = cargo.package.name;
  inherit (cargo.package) version;

  src = lib.fileset.toSource {
    root = ../.;
    # Whatever cargo reads, and nothing whose change would only build the same again.
    fileset = lib.fileset.unions (
      [
        ../Cargo.lock
        ../Cargo.toml
        ../src
      ]
      ++ map lib.fileset.maybeMissing [
        ../benches
        ../build.rs
        ../cpp
        ../examples
        ../tests
      ]
    );
  };
  cargoLock.lockFile = ../Cargo.lock;

  nativeBuildInputs = [ pkg-config ];
  buildInputs = [
    nixComponents.nix-store
    nixComponents.nix-util
  ];

  # A build sandbox has neither /dev/fuse nor root: what needs them runs in the NixOS tests.
  doCheck = true;
  cargoTestFlags = [ "--lib" ];

  # Built from the definitions that the command line is parsed with. It runs, so not where another machine's program is built.
  cargoBuildFlags = [
    "--bins"
    "--example"
    "manual"
  ];
  postInstall = ''
    # What mount(8) looks for: the same program by another name.
    for name in mount.fuse.nix-store-fs mount.nix-store-fs; do
      ln -s nix-store-fs "$out/bin/$name"
    done
  ''
  + lib.optionalString (stdenv.buildPlatform.canExecute stdenv.hostPlatform) ''
    target/${stdenv.hostPlatform.rust.cargoShortTarget}/release/examples/manual "$out"
  '';

  meta = {
    inherit (cargo.package) description;
    license = lib.licenses.mit;
    platforms = lib.platforms.linux;
    mainProgram = cargo.package.name;
  };
}
