# With users of its own, the files in a container's private store belong to its root.
{ pkgs, module }:
pkgs.testers.runNixOSTest {
  name = "private-users";
  nodes.machine = {
    imports = [ module ];
    boot.kernelPackages = pkgs.linuxPackages_latest;
    containers.web = {
      autoStart = true;
      privateUsers = "pick";
      privateStore.enable = true;
      config = import ./guest { };
    };
  };
  testScript = ''
    machine.wait_for_unit("container@web.service")
    machine.wait_until_succeeds("curl --fail --silent localhost:8080")
    inside = "systemd-run --machine web --wait --pipe --quiet /run/current-system/sw/bin/"
    owners = machine.succeed(f"{inside}sh -l -c 'stat --format %u:%g /nix/store/*' | sort -u")
    assert owners.split() == ["0:0"], owners
    assert machine.succeed("stat --format %u /proc/$(machinectl show --property Leader --value web)").strip() != "0"
  '';
}
