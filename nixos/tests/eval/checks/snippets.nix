# The configurations in the documentation: each evaluates, fails no assertion, and says what its text promises.
common:
let
  inherit (common)
    check
    evaluate
    evaluateStock
    has
    lib
    services
    snippets
    ;
  inherit (builtins)
    attrNames
    attrValues
    filter
    head
    isFunction
    readDir
    readFile
    ;

  files = filter (name: lib.hasSuffix ".nix" name) (attrNames (readDir snippets));
  textOf = name: readFile (snippets + "/${name}");
  # As a flake would hand its inputs on.
  withInputs =
    module: arguments:
    let
      inputs.nix-store-fs.nixosModules.default = ../../../module.nix;
    in
    if isFunction module then module (arguments // { inherit inputs; }) else module;
  configOf =
    name:
    # A configuration that imports the module is not given it a second time.
    (if has "imports" (textOf name) then evaluateStock else evaluate) [
      (withInputs (import (snippets + "/${name}")))
      ../stand-ins/nspawn.nix
      # what the text takes as given
      {
        virtualisation.nspawn.containers.web.path = "/nix/store/00000000000000000000000000000000-nixos-system-web";
      }
    ];
  evaluates =
    config:
    [
      (map (one: one.message) (filter (one: !one.assertion) config.assertions))
      (builtins.all builtins.isString (
        map (service: service.script) (attrValues config.systemd.services)
        ++ map (unit: unit.text) (attrValues config.systemd.units)
      ))
    ];

  about =
    what:
    let
      found = filter (name: has what (textOf name)) files;
    in
    if builtins.length found == 1 then
      configOf (head found)
    else
      throw "${toString (builtins.length found)} snippets are about ${what}";
  nspawn = about "virtualisation.nspawn";
  nspawnUnit = nspawn.systemd.services."systemd-nspawn@web";
  extra = about "containers.demo";
  extraHost = about "views.demo";
in
map (name: check "${name} evaluates" (evaluates (configOf name)) [ [ ] true ]) files
++ [
  (check "nixos-nspawn binds the view, and only the view"
    nspawn.virtualisation.nspawn.containers.web.binds."/nix/store"
    {
      hostPath = nspawn.services.nix-store-fs.views.web.mountPoint;
      options = [ "idmap" ];
      readOnly = true;
    }
  )
  # A whole unit in the place of systemd's template would start nothing.
  (check "nixos-nspawn's unit is extended, and needs the view"
    [
      nspawnUnit.overrideStrategy
      nspawnUnit.requires
      nspawnUnit.after
    ]
    [
      "asDropin"
      [ "nix-store-fs@web.service" ]
      [ "nix-store-fs@web.service" ]
    ]
  )
  (check "extra-container's unit needs the view that its host's configuration has"
    [
      (filter (has "nix-store-fs") extra.systemd.services."container@demo".requires)
      (has "--bind-ro=${extraHost.services.nix-store-fs.views.demo.mountPoint}:/nix/store"
        extra.systemd.services."container@demo".script
      )
      extraHost.systemd.services."nix-store-fs@demo".wantedBy
    ]
    [
      [ "nix-store-fs@demo.service" ]
      true
      [ "multi-user.target" ]
    ]
  )
]
