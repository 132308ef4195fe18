# Every check, as { name, ok, detail }, and the text of every unit, as { FILE = TEXT }.
{
  nixpkgs ? null,
  # a directory of the configurations in the documentation
  snippets,
}:
let
  forms =
    if nixpkgs == null then
      [
        "24.11"
        "25.05"
      ]
    else
      [ "real" ];
  perForm = map (
    form:
    import ./checks {
      inherit form snippets;
      host = import ./host.nix { inherit nixpkgs form; };
    }
  ) forms;
in
{
  checks = builtins.concatLists (map (one: one.checks) perForm) ++ import ./flake-checks.nix { host = import ./host.nix { inherit nixpkgs; }; };
  inherit (builtins.elemAt perForm (builtins.length perForm - 1)) units files hasUsers;
}
