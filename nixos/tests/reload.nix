# A container whose profile moves is reloaded into its new system: what is new can be run in it, and nothing restarts.
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
  profile = "/nix/var/nix/profiles/web";
in
pkgs.testers.runNixOSTest {
  name = "reload";
  nodes.machine = {
    imports = [ module ];
    virtualisation.additionalPaths = [
      old
      new
    ];
    containers.web = {
      path = profile;
      privateStore.enable = true;
    };
  };
  testScript = ''
    machine.wait_for_unit("multi-user.target")
    machine.succeed("nix-env --profile ${profile} --set ${old}")
    machine.succeed("systemctl start container@web.service")
    machine.wait_until_succeeds("curl --fail --silent localhost:8080 | grep old")
    before = machine.succeed("systemctl show -P MainPID container@web.service")
    machine.fail("nixos-container run web -- test -e ${new}")

    machine.succeed("nix-env --profile ${profile} --set ${new}")
    machine.succeed("systemctl reload container@web.service")
    machine.wait_until_succeeds("curl --fail --silent localhost:8080 | grep new")
    machine.succeed("nixos-container run web -- test -e ${new}/init")
    assert before == machine.succeed("systemctl show -P MainPID container@web.service")

    with subtest("a reload that cannot be leaves everything as it is"):
        machine.succeed("ln --symbolic --force --no-dereference /absent ${profile}")
        machine.fail("systemctl reload container@web.service")
        machine.succeed("curl --fail --silent localhost:8080 | grep new")
  '';
}
