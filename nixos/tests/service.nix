# A plain service with a private store sees the closure of its unit, and runs.
{ pkgs, module }:
pkgs.testers.runNixOSTest {
  name = "service";
  nodes.machine = {
    imports = [ module ];
    virtualisation.additionalPaths = [ pkgs.hello ];
    systemd.services.job = {
      privateStore.enable = true;
      serviceConfig = {
        Type = "oneshot";
        RemainAfterExit = true;
        RuntimeDirectory = "job";
        DynamicUser = true;
      };
      script = ''
        ls /nix/store >/run/job/seen
        for hidden in /nix/var/nix/db /nix/var/nix/daemon-socket /run/nix-store-fs; do
          if ls "$hidden"; then exit 1; fi
        done
      '';
    };
  };
  testScript = ''
    machine.wait_for_unit("multi-user.target")
    machine.succeed("systemctl start job.service")
    seen = machine.succeed("cat /run/job/seen").split()
    roots = machine.succeed("cat /etc/nix-store-fs/services/service-job.roots").split()
    expected = machine.succeed("nix-store -qR " + " ".join(roots)).split()
    assert sorted(f"/nix/store/{name}" for name in seen) == sorted(expected)
    assert "${pkgs.hello}" not in expected

    machine.succeed("systemctl stop job.service")
    machine.wait_until_fails("findmnt --types fuse.nix-store-fs")
  '';
}
