# What a view serves is not collected while it is served, and can be once it is not.
{ pkgs, module }:
pkgs.testers.runNixOSTest {
  name = "garbage";
  nodes.machine = {
    imports = [ module ];
    virtualisation.writableStore = true;
    services.nix-store-fs.views.test.roots = [ "/nix/var/nix/profiles/test" ];
    # It would fail for want of a root at boot.
    systemd.services."nix-store-fs@test".wantedBy = pkgs.lib.mkForce [ ];
  };
  testScript = ''
    machine.wait_for_unit("multi-user.target")
    path = machine.succeed("date >/tmp/content; nix-store --add /tmp/content").strip()
    name = path.removeprefix("/nix/store/")
    machine.succeed(f"nix-env --profile /nix/var/nix/profiles/test --set {path}")
    machine.succeed("systemctl start nix-store-fs@test.service")
    machine.succeed("rm /nix/var/nix/profiles/test*")
    machine.succeed("nix-collect-garbage")
    machine.succeed(f"cmp /tmp/content /run/nix-store-fs/test/{name}")
    machine.succeed("systemctl stop nix-store-fs@test.service")
    machine.succeed("nix-collect-garbage")
    machine.fail(f"test -e {path}")
  '';
}
