# A container whose stock start script is of no known form: evaluating it has to fail.
{
  nixpkgs ? null,
}:
let
  host = import ./host.nix { inherit nixpkgs; };
  config = host.evaluate [
    {
      containers.web = {
        path = "${host.pkgs.system "web"}";
        privateStore.enable = true;
      };
      systemd.services."container@web".script = host.lib.mkAfter ''
        echo after
          --bind-ro=/nix/store:/again \
      '';
    }
  ];
in
config.systemd.services."container@web".script
