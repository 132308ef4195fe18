# nix-store-fs for NixOS: views of the Nix store that hold one closure each, and the containers and services
# that see such a view at /nix/store in place of the host's store.
{
  imports = [
    ./options.nix
    ./views.nix
    ./containers.nix
    ./services.nix
  ];
}
