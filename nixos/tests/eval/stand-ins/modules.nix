# A module system in the small: options declared once or several times, definitions with conditions, priorities and
# order, submodules. It refuses what it does not know, and has no freeform types, no `_module` and no option paths
# in its errors beyond the name.
{ lib }:
let
  inherit (builtins)
    all
    any
    attrNames
    concatMap
    elem
    filter
    foldl'
    head
    isAttrs
    isFunction
    isList
    isString
    listToAttrs
    mapAttrs
    match
    sort
    tail
    ;
  wrap = type: fields: fields // { _type = type; };
  is = type: value: isAttrs value && value._type or null == type;
  show = builtins.concatStringsSep ".";

  # A definition of an attribute set, with conditions and priorities moved to its attributes.
  pushDown =
    value:
    if is "merge" value then
      concatMap pushDown value.contents
    else if is "if" value then
      map (mapAttrs (_: lib.mkIf value.condition)) (pushDown value.content)
    else if is "override" value then
      map (mapAttrs (_: lib.mkOverride value.priority)) (pushDown value.content)
    else
      [ value ];

  # A definition of an option: [ ] or a list of { priority, order, value }.
  discharge =
    value:
    if is "merge" value then
      concatMap discharge value.contents
    else if is "if" value then
      if value.condition then discharge value.content else [ ]
    else if is "override" value then
      map (one: one // { inherit (value) priority; }) (discharge value.content)
    else if is "order" value then
      map (one: one // { inherit (value) order; }) (discharge value.content)
    else
      [
        {
          inherit value;
          priority = 100;
          order = 1000;
        }
      ];

  # The values that count, in their order.
  effective =
    definitions:
    let
      all = concatMap discharge definitions;
      strongest = foldl' (least: one: lib.min least one.priority) 9999 all;
    in
    map (one: one.value) (sort (a: b: a.order < b.order) (filter (one: one.priority == strongest) all));

  mergeType =
    name: a: b:
    if a.name != b.name then
      throw "option ${name} is declared with types ${a.name} and ${b.name}"
    else if a ? modules then
      lib.types.submodule (a.modules ++ b.modules)
    else if a ? element then
      lib.types.${a.name} (mergeType name a.element b.element)
    else
      a;

  mergeDeclarations =
    name: declarations:
    foldl' (
      a: b:
      let
        both = filter (field: field != "_type" && field != "type" && b ? ${field}) (attrNames a);
      in
      if both != [ ] then
        throw "option ${name} is declared twice with ${head both}"
      else
        a // b // lib.optionalAttrs (a ? type && b ? type) { type = mergeType name a.type b.type; }
    ) (head declarations) (tail declarations);

  evalOption =
    location: declarations: definitions:
    let
      option = mergeDeclarations (show location) declarations;
      type = option.type or lib.types.unspecified;
      values = effective (definitions ++ lib.optional (option ? default) (lib.mkOverride 1500 option.default));
      merged =
        if values == [ ] then
          throw "option ${show location} is used but not defined"
        else
          type.merge location values;
    in
    (option.apply or (value: value)) merged;

  # Declarations and definitions below one location, to values.
  evalTree =
    location: declarations: definitions:
    let
      names = lib.unique (concatMap attrNames declarations);
      unknown = filter (name: !elem name names) (concatMap attrNames definitions);
      below = name: sets: map (set: set.${name}) (filter (set: set ? ${name}) sets);
      evalName =
        name:
        let
          declared = below name declarations;
          defined = below name definitions;
          here = location ++ [ name ];
        in
        if all (is "option") declared then
          evalOption here declared defined
        else if any (is "option") declared then
          throw "${show here} is both an option and a set of options"
        else
          evalTree here declared (concatMap pushDown defined);
    in
    if unknown != [ ] then
      throw "option ${show (location ++ [ (head unknown) ])} does not exist"
    else
      lib.genAttrs names evalName;

  scalar = name: check: {
    inherit name check;
    merge =
      location: values:
      if !all check values then
        throw "option ${show location} is not of type ${name}"
      else if any (value: value != head values) values then
        throw "option ${show location} has conflicting definitions"
      else
        head values;
  };
in
rec {
  mkOption = wrap "option";
  mkEnableOption =
    what:
    mkOption {
      type = types.bool;
      default = false;
      description = "Whether to enable ${what}.";
    };
  mkIf = condition: content: wrap "if" { inherit condition content; };
  mkMerge = contents: wrap "merge" { inherit contents; };
  mkOverride = priority: content: wrap "override" { inherit priority content; };
  mkForce = mkOverride 50;
  mkDefault = mkOverride 1000;
  mkOrder = order: content: wrap "order" { inherit order content; };
  mkBefore = mkOrder 500;
  mkAfter = mkOrder 1500;
  literalExpression = text: wrap "literalExpression" { inherit text; };

  evalModules =
    {
      modules,
      specialArgs ? { },
    }:
    let
      arguments = specialArgs // {
        inherit config lib;
      };
      load =
        module:
        let
          content = if builtins.isPath module || isString module then import module else module;
          set = if isFunction content then content arguments else content;
          isLong = set ? options || set ? config;
        in
        concatMap load (set.imports or [ ])
        ++ [
          {
            options = set.options or { };
            config = if isLong then set.config or { } else removeAttrs set [ "imports" ];
          }
        ];
      loaded = concatMap load modules;
      options = map (module: module.options) loaded;
      config = evalTree [ ] options (concatMap (module: pushDown module.config) loaded);
    in
    {
      inherit config options;
    };

  types = {
    unspecified = scalar "unspecified" (_: true);
    bool = scalar "bool" builtins.isBool;
    int = scalar "int" builtins.isInt;
    str = scalar "str" isString;
    package = scalar "package" (value: isAttrs value && value.type or null == "derivation");
    path = scalar "path" (
      value: builtins.isPath value || types.package.check value || (isString value && lib.hasPrefix "/" value)
    );
    strMatching = pattern: scalar "strMatching ${pattern}" (value: isString value && match pattern value != null);
    enum = values: scalar "enum" (value: elem value values);
    lines = {
      name = "lines";
      check = isString;
      merge = _: builtins.concatStringsSep "\n";
    };
    nullOr =
      element:
      scalar "nullOr" (value: value == null || element.check value);
    either = a: b: scalar "either" (value: a.check value || b.check value);
    listOf = element: {
      name = "listOf";
      inherit element;
      check = isList;
      merge =
        location: lists:
        let
          values = concatMap (list: concatMap (one: effective [ one ]) list) lists;
        in
        map (value: element.merge location [ value ]) values;
    };
    attrsOf = element: {
      name = "attrsOf";
      inherit element;
      check = isAttrs;
      merge =
        location: sets:
        let
          pushed = concatMap pushDown sets;
          defined = name: effective (map (set: set.${name}) (filter (set: set ? ${name}) pushed));
          names = filter (name: defined name != [ ]) (lib.unique (concatMap attrNames pushed));
        in
        listToAttrs (
          map (name: lib.nameValuePair name (element.merge (location ++ [ name ]) (defined name))) names
        );
    };
    submodule = modules: {
      name = "submodule";
      modules = lib.toList modules;
      check = isAttrs;
      merge =
        location: values:
        (evalModules {
          modules = lib.toList modules ++ map (value: if isFunction value then value else { config = value; }) values;
          specialArgs.name = lib.last location;
        }).config;
    };
    # an option of a unit: given several times, or once
    unitOption = {
      name = "unitOption";
      check = _: true;
      merge =
        location: values:
        if any isList values then concatMap lib.toList values else types.unspecified.merge location values;
    };
  };
}
