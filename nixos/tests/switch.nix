# A configuration switch shows a running container what its private store gained, and restarts neither.
{ pkgs, module }:
pkgs.testers.runNixOSTest {
  name = "switch";
  nodes.machine = {
    imports = [ module ];
    system.switch.enable = true;
    containers.web = {
      autoStart = true;
      restartIfChanged = false;
      privateStore.enable = true;
      config = import ./guest { };
    };
    specialisation.more.configuration = {
      containers.web.privateStore.extraPaths = [ pkgs.hello ];
    };
    specialisation.other.configuration = {
      containers.web.privateStore.io = "passthrough";
    };
  };
  testScript = ''
    machine.wait_for_unit("container@web.service")
    machine.wait_until_succeeds("curl --fail --silent localhost:8080")
    container = machine.succeed("systemctl show -P MainPID container@web.service")
    server = machine.succeed("systemctl show -P MainPID nix-store-fs@web.service")
    machine.fail("nixos-container run web -- test -e ${pkgs.hello}")

    with subtest("a new root is reloaded"):
        machine.succeed("/run/booted-system/specialisation/more/bin/switch-to-configuration test")
        machine.succeed("nixos-container run web -- ${pkgs.hello}/bin/hello")
        assert server == machine.succeed("systemctl show -P MainPID nix-store-fs@web.service")

    with subtest("another command line is handed over to"):
        machine.succeed("/run/booted-system/specialisation/other/bin/switch-to-configuration test")
        machine.wait_until_succeeds("tr '\\0' ' ' </proc/$(systemctl show -P MainPID nix-store-fs@web.service)/cmdline | grep passthrough")
        machine.succeed("curl --fail --silent localhost:8080")

    assert container == machine.succeed("systemctl show -P MainPID container@web.service")
  '';
}
