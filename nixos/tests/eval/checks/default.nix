# Every check in one host's configuration, and the texts that come of it.
{
  host,
  form,
  snippets,
}:
let
  common = import ./common.nix { inherit host form snippets; };
  inherit (common)
    config
    hasUsers
    lib
    rewritten
    rootsText
    services
    ;
  inherit (builtins) attrNames filter;

  render = import ../render.nix { inherit lib; };
  named = filter (name: lib.hasPrefix "nix-store-fs@" name || lib.hasPrefix "container@" name || name == "job") (attrNames services);
in
{
  inherit hasUsers;
  checks = builtins.concatLists (
    map (file: import file common) [
      ./rewriting.nix
      ./roots.nix
      ./defaults.nix
      ./units.nix
      ./assertions.nix
      ./newer.nix
      ./documentation.nix
      ./snippets.nix
    ]
  );
  units =
    builtins.listToAttrs (map (name: lib.nameValuePair "${name}.service" (render services.${name})) named)
    // {
      "nix-store-fs@service-job.service" = config.systemd.units."nix-store-fs@service-job.service".text;
    };
  files = {
    "start-script" = rewritten;
    "web.roots" = rootsText "web";
    "container@.roots" = rootsText "container@";
  };
}
