# An ephemeral container starts over its private store again and again.
{ pkgs, module }:
pkgs.testers.runNixOSTest {
  name = "ephemeral";
  nodes.machine = {
    imports = [ module ];
    containers.web = {
      ephemeral = true;
      privateStore.enable = true;
      config = import ./guest { };
    };
  };
  testScript = ''
    machine.wait_for_unit("multi-user.target")
    for _ in range(2):
        machine.succeed("systemctl start container@web.service")
        machine.wait_until_succeeds("curl --fail --silent localhost:8080")
        machine.succeed("nixos-container run web -- touch /root/left-behind")
        machine.succeed("systemctl stop container@web.service")
        machine.wait_until_fails("findmnt --types fuse.nix-store-fs")
    machine.fail("test -e /var/lib/nixos-containers/web/root/left-behind")
  '';
}
