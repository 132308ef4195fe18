{
  description = "A read-only /nix/store that holds exactly the closure of one system";

  inputs.nixpkgs.url = "github:NixOS/nixpkgs/nixos-25.11";

  outputs =
    { self, nixpkgs }:
    let
      inherit (nixpkgs) lib;
      forAllSystems =
        f:
        lib.genAttrs [
          "x86_64-linux"
          "aarch64-linux"
        ] (system: f nixpkgs.legacyPackages.${system});
      packageOf = pkgs: pkgs.callPackage ./nix/package.nix { };
      program = file: description: {
        type = "app";
        program = file;
        meta = { inherit description; };
      };
    in
    {
      packages = forAllSystems (pkgs: {
        default = packageOf pkgs;
        nix-store-fs = packageOf pkgs;
      });

      overlays.default = final: _: { nix-store-fs = packageOf final; };

      nixosModules.default =
        { lib, pkgs, ... }:
        {
          imports = [ ./nixos/module.nix ];
          services.nix-store-fs.package =
            lib.mkDefault
              self.packages.${pkgs.stdenv.hostPlatform.system}.default;
        };

      apps = forAllSystems (pkgs: {
        default = program (lib.getExe (packageOf pkgs)) "Serve the closure of a system as a store of its own";
        demo = program (lib.getExe (
          pkgs.callPackage ./nix/demo.nix { nix-store-fs = packageOf pkgs; }
        )) "Mount a small closure and look at it";
      });

      # Every file of nixos/tests is a check, by its name.
      checks = forAllSystems (
        pkgs:
        import ./nix/checks.nix {
          inherit lib nixpkgs pkgs;
          module = self.nixosModules.default;
        }
        // {
          package = packageOf pkgs;
        }
      );

      devShells = forAllSystems (pkgs: {
        default = pkgs.mkShell {
          inputsFrom = [ (packageOf pkgs) ];
          packages = [
            pkgs.cargo
            pkgs.clippy
            pkgs.jq
            pkgs.rustfmt
            pkgs.shellcheck
          ];
        };
      });

      formatter = forAllSystems (pkgs: pkgs.nixfmt-tree);
    };
}
