# The script that start-script prints.
{
  nixpkgs ? null,
  name,
  users,
  imperative,
  profile,
  form,
  systemd,
  init,
}:
let
  host = import ./host.nix {
    inherit nixpkgs form systemd;
    containerInit = if init == "" then null else init;
  };
  config = host.evaluate [
    (
      if imperative then
        {
          boot.enableContainers = true;
          services.nix-store-fs.imperativeContainers.enable = true;
        }
      else
        {
          containers.${name} = {
            path = "/nix/store/00000000000000000000000000000000-nixos-system";
            privateStore.enable = true;
          }
          // (if users == "no" then { } else { privateUsers = users; });
        }
    )
  ];
in
if profile then
  (import ../../directories.nix).show
else
  builtins.unsafeDiscardStringContext
    config.systemd.services."container@${if imperative then "" else name}".script
