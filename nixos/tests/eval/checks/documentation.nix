# Every option has what the manual needs.
common:
let
  inherit (common)
    check
    config
    evaluateAll
    lib
    pkgs
    ;
  # What the manual is made of, where the real lib makes it.
  rendered = builtins.filter (one: lib.hasInfix "nix-store-fs" one.name || lib.hasInfix "privateStore" one.name) (
    lib.optionAttrSetToDocList (evaluateAll [ ../../../module.nix ]).options
  );
in
lib.optional (lib ? optionAttrSetToDocList) (
  check "the manual renders every option that is declared, with defaults and examples as text"
    (map (one: one.name) (
      builtins.filter (
        one:
        !builtins.isString one.description
        || !builtins.isString one.type
        || !(one.default or { text = ""; }) ? text
        || !(one.example or { text = ""; }) ? text
      ) rendered
    ))
    [ ]
)
++ lib.optional (lib ? optionAttrSetToDocList) (
  check "the manual has the options of views, containers and services"
    (map (name: builtins.elem name (map (one: one.name) rendered)) [
      "services.nix-store-fs.views.<name>.roots"
      "containers.<name>.privateStore.enable"
      "systemd.services.<name>.privateStore.enable"
    ])
    [
      true
      true
      true
    ]
)
++ map (
  { name, declared }:
  check "the option ${name} is documented" (
    builtins.isString (declared.description or null) && declared ? type
  ) true
) (import ../documented.nix { inherit config lib pkgs; })
