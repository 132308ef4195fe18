# Which of a container's own mounts would undo its private store, and what of the host it can write through them. Pure
# functions over option values.
{ lib }:
let
  # Absent from a container with a private store, or, for the store itself, replaced.
  store = "/nix/store";
  hiddenTrees = [
    "/nix/var/nix/db"
    "/nix/var/nix/daemon-socket"
    # the views of all containers
    "/run/nix-store-fs"
    # profiles and garbage collector roots of all containers
    "/nix/var/nix-store-fs"
  ];

  # As the kernel would walk it, links apart: `.`, `..` and doubled slashes resolved.
  normalise =
    path:
    let
      step =
        done: part:
        if part == "" || part == "." then
          done
        else if part == ".." then
          lib.take (lib.length done - 1) done
        else
          done ++ [ part ];
    in
    "/" + lib.concatStringsSep "/" (lib.foldl' step [ ] (lib.splitString "/" path));

  isAt = path: place: path == place;
  isAbove = path: place: path == "/" || lib.hasPrefix "${path}/" place;
  isBelow = path: place: lib.hasPrefix "${place}/" path;

  # A single store path may be bound by name: that shows what was asked for and no more.
  shows =
    host:
    lib.filter (place: isAt host place || isAbove host place) ([ store ] ++ hiddenTrees)
    ++ lib.filter (isBelow host) hiddenTrees;
  covers = inside: isAt inside store || isAbove inside store || isBelow inside store;

  # the two sides of a flag's `HOST[:CONTAINER[:OPTIONS]]`
  sides =
    value:
    let
      parts = lib.splitString ":" value;
      host = lib.head parts;
    in
    {
      inherit host;
      inside = if lib.length parts > 1 then lib.elemAt parts 1 else host;
    };

  problemsOf =
    where:
    { host, inside }:
    let
      shown = shows (normalise host);
    in
    lib.optional (shown != [ ])
      "${where} would show the container ${lib.head shown} of the host, which privateStore hides. Bind something below it, or disable privateStore."
    ++
      lib.optional (covers (normalise inside))
        "${where} would cover the container's private store at ${store}. Choose another mount point, or disable privateStore.";
  # `extraFlags` are words for a shell: one element may hold several flags, and quotes.
  wordsOf =
    flags:
    lib.filter (word: word != "") (
      lib.splitString " " (lib.replaceStrings [ "\"" "'" "\n" "\t" ] [ "" "" " " " " ] (lib.concatStringsSep " " flags))
    );
  bindOf = word: builtins.match "--(bind|bind-ro|overlay|overlay-ro|tmpfs)=[+]?(.*)" word;

  hostOf =
    bind: lib.head (lib.splitString ":" (if bind.hostPath != null then bind.hostPath else bind.mountPoint));

  # What flags bind: of an overlay the last directory before the place inside, which is the one that is written.
  flagBinds =
    flags:
    let
      join =
        state: word:
        if state.flag != null then
          {
            flag = null;
            words = state.words ++ [ "${state.flag}=${word}" ];
          }
        else if lib.elem word [ "--bind" "--bind-ro" "--overlay" ] then
          state // { flag = word; }
        else
          state // { words = state.words ++ [ word ]; };
      words =
        (lib.foldl' join {
          flag = null;
          words = [ ];
        } (wordsOf flags)).words;
      boundBy =
        word:
        let
          bind = bindOf word;
          parts = lib.splitString ":" (lib.elemAt bind 1);
        in
        # With a plus, it lies in the container's own root.
        if bind == null || builtins.match "[^=]*=[+].*" word != null then
          [ ]
        else if lib.head bind == "bind" || lib.head bind == "bind-ro" then
          [
            {
              host = lib.head parts;
              isReadOnly = lib.head bind == "bind-ro";
            }
          ]
        else if lib.head bind == "overlay" && lib.length parts > 1 then
          [
            {
              host = lib.elemAt parts (lib.length parts - 2);
              isReadOnly = false;
            }
          ]
        else
          [ ];
    in
    lib.concatMap boundBy words;
in
{
  # Whether a path is this place, and whether it lies in it.
  isAt = path: place: normalise path == normalise place;
  isIn = path: place: isAbove (normalise place) (normalise path);

  # The paths of the host that a container's own mounts show it, as { host, isReadOnly }. No root leads through a device, or
  # through what is in the store.
  bound =
    container:
    lib.filter
      (bind: lib.hasPrefix "/" bind.host && bind.host != "/dev/fuse" && !isBelow (normalise bind.host) store)
      (
        map (bind: {
          host = hostOf bind;
          inherit (bind) isReadOnly;
        }) (lib.attrValues container.bindMounts)
        ++ flagBinds container.extraFlags
      );

  bindProblems =
    name: bind:
    problemsOf ''bindMounts."${name}"'' {
      host = hostOf bind;
      inside = bind.mountPoint;
    };

  tmpfsProblems =
    value:
    problemsOf "tmpfs ${value}" {
      host = "/tmpfs";
      inside = lib.head (lib.splitString ":" value);
    };

  flagProblems =
    flags:
    let
      # The root that the start script gives is not the last word on a command line.
      isRoot =
        word:
        builtins.match "--(directory|template|image|oci-bundle|pivot-root|volatile)(=.*)?|-[Di].*" word != null;
    in
    lib.concatMap (
      word:
      let
        bind = bindOf word;
        parts = lib.splitString ":" (lib.elemAt bind 1);
      in
      if isRoot word then
        [ "extraFlags: ${word} would put something else in place of the container's root. Leave it out, or disable privateStore." ]
      else if bind == null then
        lib.optional (lib.elem word [ "--bind" "--bind-ro" "--overlay" "--overlay-ro" "--tmpfs" ])
          "extraFlags: write ${word}=… as one word, so that privateStore can tell what it would show."
      else if lib.head bind == "tmpfs" then
        problemsOf "extraFlags: ${word}" {
          host = "/tmpfs";
          inside = lib.head parts;
        }
      else if lib.hasPrefix "overlay" (lib.head bind) then
        # any number of lower directories, the last part being the place inside
        lib.concatMap (
          host:
          problemsOf "extraFlags: ${word}" {
            inherit host;
            inside = lib.last parts;
          }
        ) parts
      else
        problemsOf "extraFlags: ${word}" (sides (lib.elemAt bind 1))
    ) (wordsOf flags);
}
