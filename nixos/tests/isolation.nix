# A container with a private store sees its closure, and nothing else of the host's store, whatever its root does.
{ pkgs, module }:
pkgs.testers.runNixOSTest {
  name = "isolation";
  nodes.machine = {
    imports = [ module ];
    virtualisation.additionalPaths = [ pkgs.hello ];
    containers.web = {
      autoStart = true;
      privateStore.enable = true;
      privateStore.report = true;
      config = import ./guest { };
    };
  };
  testScript = ''
    inside = "nixos-container run web -- "
    secret = "${pkgs.hello}"

    machine.wait_for_unit("container@web.service")
    machine.wait_until_succeeds("curl --fail --silent localhost:8080 | grep 'hello from the closure'")

    with subtest("what is not in the closure does not exist"):
        machine.succeed(f"test -e {secret}")
        machine.fail(f"{inside} ls {secret}")
        roots = machine.succeed("cat /etc/nix-store-fs/web.roots").split()
        expected = machine.succeed("nix-store -qR " + " ".join(roots) + " | sort").split()
        assert [f"/nix/store/{name}" for name in machine.succeed("ls /run/nix-store-fs/web | sort").split()] == expected

    with subtest("but the host is told that it was looked for"):
        name = secret.removeprefix("/nix/store/")
        machine.wait_until_succeeds(f"journalctl --unit nix-store-fs@web.service | grep --fixed-strings {name}")

    with subtest("nor do the database and the daemon's socket"):
        machine.fail(f"{inside} ls /nix/var/nix/db")
        machine.fail(f"{inside} ls /nix/var/nix/daemon-socket")

    with subtest("unmounting the view shows nothing of the host"):
        # Only the shell that is running already can look; in a mount namespace of its own, to keep the container going.
        look = "umount --lazy /nix/store && for path in /nix/store/* /nix/store/.[a-z]*; do echo $path; done"
        left = machine.succeed(f"{inside} unshare --mount sh -c '{look}'").split()
        assert left == ["/nix/store/*", "/nix/store/.[a-z]*"], left

    with subtest("nothing stays mounted"):
        machine.succeed("systemctl stop container@web.service")
        machine.wait_until_fails("findmnt --types fuse.nix-store-fs")
  '';
}
