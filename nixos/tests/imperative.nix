# A container made with nixos-container has a private store, and is reloaded into a new system without a restart.
{ pkgs, module }:
let
  system =
    answer:
    (import (pkgs.path + "/nixos/lib/eval-config.nix") {
      inherit (pkgs.stdenv.hostPlatform) system;
      modules = [
        (import ./guest { inherit answer; })
        { boot.isContainer = true; }
      ];
    }).config.system.build.toplevel;
  old = system "old";
  new = system "new";
in
pkgs.testers.runNixOSTest {
  name = "imperative";
  nodes.machine = {
    imports = [ module ];
    boot.enableContainers = true;
    services.nix-store-fs.imperativeContainers.enable = true;
    virtualisation.additionalPaths = [
      old
      new
    ];
  };
  testScript = ''
    machine.wait_for_unit("multi-user.target")
    machine.succeed("nixos-container create web --system-path ${old}")
    machine.succeed("nixos-container start web")
    machine.wait_until_succeeds("curl --fail --silent localhost:8080 | grep old")
    machine.fail("nixos-container run web -- test -e ${new}")
    before = machine.succeed("systemctl show -P MainPID container@web.service")

    machine.succeed("nix-env --profile /nix/var/nix/profiles/per-container/web/system --set ${new}")
    machine.succeed("systemctl reload container@web.service")
    machine.wait_until_succeeds("curl --fail --silent localhost:8080 | grep new")
    assert before == machine.succeed("systemctl show -P MainPID container@web.service")

    # What the container makes of its profile is for itself alone.
    machine.succeed("nixos-container run web -- ln --symbolic --force --no-dereference ${old} /nix/var/nix/profiles/system")
    machine.succeed("systemctl reload nix-store-fs@web.service", "systemctl restart container@web.service")
    machine.wait_until_succeeds("curl --fail --silent localhost:8080 | grep new")

    machine.succeed("nixos-container destroy web")
    machine.wait_until_fails("findmnt --types fuse.nix-store-fs")
  '';
}
