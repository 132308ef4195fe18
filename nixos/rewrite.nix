# The stock start script of `container@…`, with the view in place of the host's store. Pure text functions.
#
# Why the script is rewritten: a further `--bind-ro=VIEW:/nix/store` would be stacked on top of the stock bind, and root
# in the container has but to unmount it. So the one bind of the store is replaced, the binds of the database and of
# the daemon's socket are dropped, those of the container's profiles and garbage collector roots lead to directories of its
# own (directories.nix), and every other line stays byte for byte what it was.
#
# A script that is not of a known form is refused: evaluation fails, with every difference named, rather than a
# container starting with the whole store in it. Known forms of the bind lines:
#   --bind-ro=/nix/store \                            up to nixpkgs 24.11
#   --bind-ro=/nix/store:/nix/store$NIX_BIND_OPT \    from 25.05
{ lib }:
let
  inherit (builtins) match;
  inherit (lib)
    concatMap
    concatStringsSep
    drop
    elemAt
    filter
    hasPrefix
    head
    imap0
    length
    optional
    optionalString
    splitString
    take
    ;

  # null, or what follows the second path: "", "$NIX_BIND_OPT", ":idmap"
  bindOptions =
    path: line:
    let
      found = match "[[:space:]]*--bind-ro=\"?${path}(:${path})?([:$][^/\"[:space:]]*)?\"?[[:space:]]*\\\\[[:space:]]*" line;
      options = elemAt found 1;
    in
    if found == null then
      null
    else if options == null then
      ""
    else
      options;
  binds = path: line: bindOptions path line != null;

  isStore = binds "/nix/store";
  isDatabase = binds "/nix/var/nix/db";
  isSocket = binds "/nix/var/nix/daemon-socket";
  isComment = line: match "[[:space:]]*#.*" line != null;
  isExec = line: match "exec [^[:space:]]*/bin/systemd-nspawn .*" line != null;

  # Flags that put something of the host into the container.
  bringsIn =
    line:
    match "(.*[^[:alnum:]-])?--(bind|overlay|tmpfs|volatile|image|template|oci-bundle|pivot-root)[a-z-]*([= ].*)?" line
    != null;
  # The container's profiles and garbage collector roots.
  isOwnDirectory =
    line:
    match "[[:space:]]*--bind=\"/nix/var/nix/(profiles|gcroots)/per-container/\\$INSTANCE:/nix/var/nix/(profiles|gcroots)(\\$NIX_BIND_OPT|:idmap)?\"[[:space:]]*\\\\[[:space:]]*" line
    != null;
  # containers.<name>.tmpfs
  isTmpfs =
    line:
    match "[[:space:]]*--tmpfs=[^[:space:]]+( --tmpfs=[^[:space:]]+)*[[:space:]]*\\\\[[:space:]]*" line
    != null;

  # The store as a whole, the database or the socket by any other way, such as a variable.
  mentions =
    line:
    match ".*(/nix/store/?([^/a-z0-9].*)?|/nix/var/nix/(db|daemon-socket).*)" line != null;

  isKnown = line: isStore line || isDatabase line || isSocket line || isComment line;
  unexpected =
    line:
    !isKnown line
    && ((bringsIn line && !isOwnDirectory line && !isTmpfs line) || mentions line);

  plain = builtins.unsafeDiscardStringContext;

  # Where the exec begins, with the comment block in front of it: that may hold a directive for the exec alone.
  beginOfExec =
    lines:
    let
      at = head (filter (index: index != null) (imap0 (index: line: if isExec line then index else null) lines));
      back = index: if index > 0 && hasPrefix "#" (elemAt lines (index - 1)) then back (index - 1) else index;
    in
    back at;
in
rec {
  # What keeps this script from being rewritten, one sentence each.
  problems =
    script:
    let
      lines = splitString "\n" script;
      one =
        what: isIt:
        let
          found = length (filter (line: !isComment line && isIt line) lines);
        in
        optional (found != 1) "${what}: found ${toString found}, expected 1";
    in
    if match "[[:space:]]*" script != null then
      [ "the script is empty" ]
    else
      one "the bind of /nix/store" isStore
      ++ one "the bind of /nix/var/nix/db" isDatabase
      ++ one "the bind of /nix/var/nix/daemon-socket" isSocket
      ++ one "exec of systemd-nspawn" isExec
      ++ map (line: "a line of unknown effect: ${plain line}") (filter unexpected lines);

  # source: what takes the place of the store; own: where the directories are that take the place of the container's
  # profiles and garbage collector roots. beforeExec: lines that run before systemd-nspawn.
  rewrite =
    {
      where,
      source,
      own,
      beforeExec,
    }:
    script:
    let
      found = problems script;
      lines = splitString "\n" script;
      begin = beginOfExec lines;
      ownDirectories =
        builtins.replaceStrings
          [
            "/nix/var/nix/profiles/per-container/$INSTANCE:"
            "/nix/var/nix/gcroots/per-container/$INSTANCE:"
          ]
          [
            "${own}/profiles:"
            "${own}/gcroots:"
          ];
      replaced =
        line:
        if isStore line then
          [ "  --bind-ro=${source}:/nix/store${bindOptions "/nix/store" line} \\" ]
        else if isDatabase line || isSocket line then
          [ ]
        else if isOwnDirectory line then
          [ (ownDirectories line) ]
        else
          [ line ];
    in
    if found == [ ] then
      concatStringsSep "\n" (
        take begin lines
        ++ [
          beforeExec
          ""
        ]
        ++ concatMap replaced (drop begin lines)
      )
    else
      throw ''
        nix-store-fs: the start script of systemd.services."${where}" is not of a form that privateStore knows:
          - ${concatStringsSep "\n  - " found}
        The container would see more than its closure, so this configuration is refused. Disable privateStore for it,
        or use a nixpkgs that nix-store-fs knows, and report the lines above.'';

  # The program that the script has systemd-nspawn start, with the string context of that path alone.
  containerInit =
    script:
    let
      paths = concatMap (
        line:
        let
          found = match "[[:space:]]*\"?(${builtins.storeDir}/[a-z0-9]{32}-container-init)\"? .*" line;
        in
        if found == null then [ ] else found
      ) (splitString "\n" (plain script));
      context = lib.filterAttrs (path: _: match ".*-container-init([.]drv)?" path != null) (
        builtins.getContext script
      );
    in
    if length paths == 1 then
      builtins.appendContext (head paths) context
    else
      throw ''
        nix-store-fs: found ${toString (length paths)} container-init programs in the stock start script, expected 1.
        Disable privateStore, or use a nixpkgs that nix-store-fs knows.'';
}
