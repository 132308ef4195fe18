# Every option that the module declares, as { name, declared }.
{
  config,
  lib,
  pkgs,
}:
let
  # a module's declarations, submodules included
  load =
    file:
    import file {
      inherit config pkgs;
      lib = lib // {
        # keep what the real types would hide
        types = lib.types // {
          attrsOf = element: element;
          submodule = module: { options = (module { name = "«name»"; config = { }; }).options; };
        };
      };
    };
  walk =
    prefix: tree:
    lib.concatLists (
      lib.mapAttrsToList (
        name: declared:
        let
          here = if prefix == "" then name else "${prefix}.${name}";
        in
        if declared._type or null != "option" then
          walk here declared
        else if declared ? apply then
          # a stock option that is declared again has its documentation there
          [ ]
        else if declared.type ? options then
          lib.optional (declared ? description) {
            name = here;
            inherit declared;
          }
          ++ walk "${here}.<name>" declared.type.options
        else
          [
            {
              name = here;
              inherit declared;
            }
          ]
      ) tree
    );
in
lib.concatMap (file: walk "" (load file).options) [
  ../../options.nix
  ../../containers.nix
  ../../services.nix
]
