# A view outlives its server: nobody in the container sees an error, and the container is not restarted.
{ pkgs, module }:
pkgs.testers.runNixOSTest {
  name = "survival";
  nodes.machine = {
    imports = [ module ];
    boot.kernelPackages = pkgs.linuxPackages_latest;
    containers.web = {
      autoStart = true;
      privateStore.enable = true;
      config = import ./guest { };
    };
  };
  testScript = ''
    view = "nix-store-fs@web.service"
    machine.wait_for_unit("container@web.service")
    machine.wait_until_succeeds("curl --fail --silent localhost:8080")
    container = machine.succeed("systemctl show -P MainPID container@web.service")
    # reads all of the store over and over, and ends at the first error
    machine.succeed("systemd-run --unit reader sh -c 'while find /run/nix-store-fs/web -type f -exec cat {} + >/dev/null; do :; done'")

    def unharmed():
        machine.wait_for_unit(view)
        machine.succeed("curl --fail --silent localhost:8080")
        machine.succeed("systemctl is-active reader.service")
        assert container == machine.succeed("systemctl show -P MainPID container@web.service")

    for _ in range(20):
        machine.succeed(f"systemctl kill --signal KILL --kill-whom main {view}")
        unharmed()
    for _ in range(5):
        machine.succeed(f"systemctl kill --signal KILL --kill-whom all {view}")
        unharmed()
    for _ in range(5):
        machine.succeed(f"systemctl kill --signal USR2 --kill-whom main {view}")
        unharmed()
  '';
}
