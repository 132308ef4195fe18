# The flake's outputs with stand-ins for its inputs, and the configurations in the NixOS tests.
{ host }:
let
  inherit (host) lib evaluate;
  inherit (builtins) attrNames elem filter readDir;

  check =
    name: ok:
    let
      got = builtins.tryEval ok;
    in
    {
      name = "flake: ${name}";
      ok = got.success && got.value;
      detail = if got.success then "it does not hold" else "it throws";
    };

  # what the flake takes from nixpkgs, each package being its arguments
  arguments = kind: attributes: attributes // { inherit kind; };
  pkgs = host.pkgs // {
    callPackage =
      file: overrides:
      let
        f = import file;
        wanted = builtins.functionArgs f;
      in
      f (builtins.intersectAttrs wanted (pkgs // { inherit lib; } // overrides));
    rustPlatform.buildRustPackage = attributes: arguments "package" attributes // { outPath = "/nix/store/${attributes.pname}"; };
    mkShell = arguments "shell";
    writeShellApplication = arguments "script";
    runCommand = _: attributes: text: arguments "command" (attributes // { inherit text; });
    testers.runNixOSTest = arguments "test";
    nixVersions.nixComponents_2_31 = {
      nix-store = "nix-store";
      nix-util = "nix-util";
    };
    nixfmt-tree = "nixfmt-tree";
    linuxPackages_latest = host.pkgs.linux "6.18.1";
    writeTextDir = name: text: "/nix/store/${name}";
    inherit lib;
  }
  // lib.genAttrs [ "busybox" "cargo" "clippy" "git" "jq" "pkg-config" "rustfmt" "shellcheck" "util-linux" ] (name: name);

  systems = [
    "x86_64-linux"
    "aarch64-linux"
  ];
  flake = import ../../../flake.nix;
  outputs = flake.outputs {
    self = outputs;
    nixpkgs = {
      lib = lib // {
        getExe = package: "${package.outPath or "/nix/store/${package.name}"}/bin/${package.meta.mainProgram or package.name}";
      };
      legacyPackages = lib.genAttrs systems (_: pkgs);
      outPath = "/nix/store/nixpkgs";
    };
  };
  on = set: set.x86_64-linux;
  package = (on outputs.packages).default;
  checks = on outputs.checks;

  tests = filter (name: builtins.match ".*[.]nix" name != null) (attrNames (readDir ../.));
  nameOf = file: builtins.head (builtins.match "(.*)[.]nix" file);

  # Containers up to 24.11 have no users of their own.
  hasUsers = (evaluate [ { containers.any.path = "/any"; } ]).containers.any ? privateUsers;

  # A test's machine as far as the stand-ins know its options: everything but the container's own system.
  machineOf =
    test:
    let
      node = test.nodes.machine;
      only = names: set: builtins.intersectAttrs (lib.genAttrs names (_: null)) set;
      container = settings: { path = "/nix/store/00000000000000000000000000000000-system"; } // removeAttrs settings ([ "config" ] ++ lib.optional (!hasUsers) "privateUsers");
    in
    map (
      settings:
      only [ "boot" "services" "systemd" ] settings
      // {
        containers = builtins.mapAttrs (_: container) (settings.containers or { });
      }
    ) ([ node ] ++ map (one: lib.recursiveUpdate node one.configuration) (builtins.attrValues (node.specialisation or { })));
  evaluates =
    test:
    builtins.all (
      machine:
      let
        config = evaluate [ machine ];
      in
      builtins.all (one: one.assertion) config.assertions
      && builtins.all (service: builtins.isString service.script) (builtins.attrValues config.systemd.services)
    ) (machineOf test);

  lock = builtins.fromJSON (builtins.readFile ../../../flake.lock);
in
[
  (check "the package is built as Cargo.toml says" (
    package.pname == "nix-store-fs" && builtins.match "[0-9.]+" package.version != null
  ))
  (check "the package is linked with Nix' store library" (elem "nix-store" package.buildInputs))
  (check "there are packages, shells and apps for each system" (
    builtins.all (
      set: builtins.attrNames set == builtins.sort (a: b: a < b) systems && builtins.all (one: one ? default) (builtins.attrValues set)
    ) [
      outputs.packages
      outputs.devShells
      outputs.apps
    ]
  ))
  (check "there is a formatter" (on outputs.formatter == "nixfmt-tree"))
  (check "the demo names a program" (lib.hasInfix "/bin/" (on outputs.apps).demo.program))
  (check "the overlay adds the package" ((outputs.overlays.default pkgs { }).nix-store-fs.pname == "nix-store-fs"))
  (check "every file of nixos/tests is a check" (
    attrNames checks
    == builtins.sort (a: b: a < b) (
      map nameOf tests
      ++ [
        "evaluation"
        "package"
      ]
    )
  ))
  (check "the lock file pins every input" (
    attrNames lock.nodes.root.inputs == attrNames flake.inputs
    && builtins.match "[0-9a-f]{40}" lock.nodes.nixpkgs.locked.rev != null
    && "github:${lock.nodes.nixpkgs.original.owner}/${lock.nodes.nixpkgs.original.repo}/${lock.nodes.nixpkgs.original.ref}" == flake.inputs.nixpkgs.url
  ))
  (check "the flake's module uses the flake's package" (
    (lib.evalModules {
      modules = [
        (
          { lib, ... }@arguments:
          let
            module = outputs.nixosModules.default arguments;
          in
          {
            options.services.nix-store-fs.package = lib.mkOption { type = lib.types.unspecified; };
            config = removeAttrs module [ "imports" ];
          }
        )
      ];
      specialArgs.pkgs = pkgs;
    }).config.services.nix-store-fs.package.pname == "nix-store-fs"
  ))
]
++ builtins.concatLists (
  map (
    file:
    let
      name = nameOf file;
    in
    [
      (check "test ${name} has the name of its file" (checks.${name}.name == name))
      (check "test ${name} has a script" (builtins.isString checks.${name}.testScript))
      (check "test ${name} has a machine that evaluates" (evaluates checks.${name}))
    ]
  ) tests
)
