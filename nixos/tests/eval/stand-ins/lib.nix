# The part of nixpkgs' `lib` that the module and its tests use, so that they can be evaluated without nixpkgs.
let
  modules = import ./modules.nix { inherit lib; };

  lib = builtins // modules // rec {
    inherit lib;

    # lists
    optional = condition: value: if condition then [ value ] else [ ];
    optionals = condition: values: if condition then values else [ ];
    toList = value: if builtins.isList value then value else [ value ];
    take = count: list: builtins.genList (builtins.elemAt list) (max 0 (min count (builtins.length list)));
    drop =
      count: list:
      builtins.genList (index: builtins.elemAt list (index + count)) (max 0 (builtins.length list - count));
    last = list: builtins.elemAt list (builtins.length list - 1);
    imap0 = f: list: builtins.genList (index: f index (builtins.elemAt list index)) (builtins.length list);
    unique = builtins.foldl' (done: one: if builtins.elem one done then done else done ++ [ one ]) [ ];
    concatLists = builtins.concatLists;
    min = a: b: if a < b then a else b;
    max = a: b: if a > b then a else b;

    # strings
    concatStringsSep = builtins.concatStringsSep;
    concatStrings = builtins.concatStringsSep "";
    concatMapStrings = f: list: concatStrings (map f list);
    optionalString = condition: value: if condition then value else "";
    boolToString = value: if value then "true" else "false";
    hasPrefix = prefix: text: builtins.substring 0 (builtins.stringLength prefix) text == prefix;
    removePrefix =
      prefix: text: if hasPrefix prefix text then builtins.substring (builtins.stringLength prefix) (-1) text else text;
    hasInfix = infix: text: builtins.length (splitString infix text) > 1;
    # keeps the string context, as the real one does
    splitString =
      separator: text:
      map (part: builtins.substring 0 0 text + part) (
        builtins.filter builtins.isString (builtins.split (escapeRegex (builtins.unsafeDiscardStringContext separator)) (builtins.unsafeDiscardStringContext text))
      );
    escapeRegex =
      let
        special = lib.splitCharacters "\\[{()^$?*+|.";
      in
      builtins.replaceStrings special (map (one: "\\${one}") special);
    splitCharacters = text: builtins.genList (index: builtins.substring index 1 text) (builtins.stringLength text);
    versionAtLeast = a: b: builtins.compareVersions a b >= 0;

    hasSuffix = suffix: text: builtins.match ".*${escapeRegex suffix}" text != null;
    removeSuffix =
      suffix: text:
      if hasSuffix suffix text then
        builtins.substring 0 (builtins.stringLength text - builtins.stringLength suffix) text
      else
        text;

    # attribute sets
    nameValuePair = name: value: { inherit name value; };
    optionalAttrs = condition: value: if condition then value else { };
    filterAttrs =
      f: set:
      builtins.listToAttrs (
        map (name: nameValuePair name set.${name}) (builtins.filter (name: f name set.${name}) (builtins.attrNames set))
      );
    mapAttrsToList = f: set: map (name: f name set.${name}) (builtins.attrNames set);
    mapAttrs' = f: set: builtins.listToAttrs (mapAttrsToList f set);
    genAttrs = names: f: builtins.listToAttrs (map (name: nameValuePair name (f name)) names);
    recursiveUpdate =
      a: b:
      a
      // builtins.mapAttrs (
        name: value:
        if builtins.isAttrs value && builtins.isAttrs (a.${name} or null) then recursiveUpdate a.${name} value else value
      ) b;

    # what a package is described with
    importTOML = file: builtins.fromTOML (builtins.readFile file);
    licenses.mit = "MIT";
    platforms.linux = [ ];
    fileset = {
      toSource = { root, ... }: root;
      unions = files: files;
      maybeMissing = file: file;
    };
  };
in
lib
