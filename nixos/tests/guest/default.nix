# A small NixOS system for containers in the tests: it answers over HTTP out of its closure.
{
  port ? 8080,
  answer ? "hello from the closure",
}:
{ pkgs, ... }:
{
  system.stateVersion = "25.05";
  documentation.enable = false;
  systemd.services.answer = {
    wantedBy = [ "multi-user.target" ];
    serviceConfig.ExecStart = "${pkgs.busybox}/bin/busybox httpd -f -p ${toString port} -h ${
      pkgs.writeTextDir "index.html" answer
    }";
  };
}
