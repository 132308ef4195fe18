# The start script: what changes in it, what does not, and what is refused.
common:
let
  inherit (common)
    base
    check
    containerInit
    evaluate
    form
    has
    lib
    linesOf
    pkgs
    refused
    rewritten
    services
    stock
    ;
  inherit (builtins)
    concatMap
    elem
    elemAt
    filter
    getContext
    head
    length
    unsafeDiscardStringContext
    ;
  inherit (import ../../../rewrite.nix { inherit (common) lib; }) problems rewrite;

  bindLine =
    path: head (filter (line: builtins.match " *--bind-ro=${path}[^/].*" line != null) (linesOf stock));
  storeLine = bindLine "/nix/store";
  options = if form == "24.11" || !has ":" storeLine then "" else "$NIX_BIND_OPT";
  without = line: lib.concatStringsSep "\n" (filter (one: one != line) (linesOf stock));
  replacing =
    line: by: lib.concatStringsSep "\n" (concatMap (one: if one == line then by else [ one ]) (linesOf stock));
  ownLines = map (
    what:
    head (filter (has "/nix/var/nix/${what}/per-container/$INSTANCE:/nix/var/nix/${what}") (linesOf stock))
  ) [ "profiles" "gcroots" ];
  directories = import ../../../directories.nix;
  execLine = head (filter (lib.hasPrefix "exec ") (linesOf stock));
  try = rewrite {
    where = "container@test";
    source = "/view";
    own = "/own";
    beforeExec = "reload";
  };

  hidden = [
    "/nix/store"
    "/nix/var/nix/db"
    "/nix/var/nix/daemon-socket"
  ];
in
[
  (check "a container without a private store keeps the stock script" (filter (has "nix-store-fs") (linesOf stock)) [ ])
  (check "the stock script has no problems" (problems stock) [ ])
  (check "the binds of store, database, socket, and of profiles and roots of the host are what goes"
    (filter (line: !elem line (linesOf rewritten)) (
      linesOf (lib.replaceStrings [ "${containerInit stock}" ] [ "${containerInit rewritten}" ] stock)
    ))
    (
      [
        storeLine
        (bindLine "/nix/var/nix/db")
        (bindLine "/nix/var/nix/daemon-socket")
      ]
      ++ ownLines
    )
  )
  (check "the binds of the view and of the container's own directories, and what makes them before, are what comes"
    (map unsafeDiscardStringContext (filter (line: !elem line (linesOf stock)) (
      linesOf (lib.replaceStrings [ "${containerInit rewritten}" ] [ "${containerInit stock}" ] rewritten)
    )))
    (
      [
        (unsafeDiscardStringContext "${pkgs.systemd}/bin/systemctl reload \"nix-store-fs@$INSTANCE.service\"")
      ]
      ++ linesOf (directories.make pkgs.e2fsprogs)
      ++ [ "  --bind-ro=/run/nix-store-fs/web:/nix/store${options} \\" ]
      ++ map (
        what: "  --bind=\"/nix/var/nix-store-fs/$INSTANCE/${what}:/nix/var/nix/${what}${options}\" \\"
      ) [ "profiles" "gcroots" ]
    )
  )
  (check "no line of the exec names profiles or roots of the host"
    (map (script: filter (line: has "--bind" line && has "per-container" line) (linesOf script)) [
      rewritten
      services."container@".script
      (try stock)
    ])
    [
      [ ]
      [ ]
      [ ]
    ]
  )
  (check "the reload comes before the comments of the exec"
    (
      let
        lines = linesOf rewritten;
        at = filter (index: has "systemctl reload" (elemAt lines index)) (lib.imap0 (index: _: index) lines);
      in
      lib.hasPrefix "#" (elemAt lines (head at + 2 + length (linesOf (directories.make pkgs.e2fsprogs))))
    )
    true
  )
  (check "string context survives rewriting" (getContext rewritten) (
    getContext (stock + pkgs.systemd + rewritten)
  ))
  (check "containers of nixos-container create are rewritten"
    (filter (has ":/nix/store") (linesOf services."container@".script))
    [ "  --bind-ro=/run/nix-store-fs/$INSTANCE:/nix/store${options} \\" ]
  )
  (check "they are not unless asked for"
    (has "nix-store-fs" (evaluate [ { boot.enableContainers = true; } ]).systemd.services."container@".script)
    false
  )
  (check "an ephemeral container is rewritten and keeps its flags"
    (map (flag: has flag services."container@fleeting".script) [
      "--ephemeral \\\n"
      "--tmpfs=/tmp --tmpfs=/scratch \\\n"
      "--bind-ro=/run/nix-store-fs/fleeting:/nix/store"
    ])
    [
      true
      true
      true
    ]
  )
  (check "another mount point is taken over"
    (has "--bind-ro=/srv/web:/nix/store"
      (evaluate [
        base
        { services.nix-store-fs.views.web.mountPoint = "/srv/web"; }
      ]).systemd.services."container@web".script
    )
    true
  )
  (check "a fixed :idmap is kept"
    (has "--bind-ro=/view:/nix/store:idmap \\" (
      try (replacing storeLine [ "  --bind-ro=/nix/store:/nix/store:idmap \\" ])
    ))
    true
  )
  (check "the empty script is named" (problems "\n") [ "the script is empty" ])
  (check "a missing bind is named"
    (problems (without storeLine))
    [ "the bind of /nix/store: found 0, expected 1" ]
  )
  (check "a doubled bind is named"
    (problems (replacing storeLine [ storeLine storeLine ]))
    [ "the bind of /nix/store: found 2, expected 1" ]
  )
  (check "an unknown flag is named"
    (problems (replacing storeLine [ storeLine "  --bind-ro=/nix \\" ]))
    [ "a line of unknown effect:   --bind-ro=/nix \\" ]
  )
  (refused "the empty script" (try ""))
]
++ map (path: refused "a script without the bind of ${path}" (try (without (bindLine path)))) hidden
++ map (
  path: refused "a script with two binds of ${path}" (try (replacing (bindLine path) [ (bindLine path) (bindLine path) ]))
) hidden
++ [
  (refused "a script without exec" (try (without execLine)))
  (refused "a script with two execs" (try (replacing execLine [ execLine "  --quiet" execLine ])))
]
++ map (line: refused "a script with the line `${line}'" (try (replacing storeLine [ storeLine line ]))) [
  "  --bind-ro=/nix \\"
  "  --bind=/nix/store \\"
  "  --bind-ro=/nix/store:/host-store \\"
  "  --bind-ro /nix/store \\"
  "  --quiet --bind-ro=/nix/store:/store \\"
  "  --overlay=/nix/store::/nix/store \\"
  "  --overlay-ro=/a:/b \\"
  "  --bind-user=root \\"
  "  --volatile=overlay \\"
  "  --image=/dev/sda \\"
  "  --tmpfs=/tmp --bind=/nix/store \\"
  "extraFlags+=(\"--bind-ro=/nix/store\")"
  "source=/nix/store"
  "source=/nix/store/"
  "mount --rbind /nix/store \"$root/nix/store\""
  "database=/nix/var/nix/db"
  "socket=/nix/var/nix/daemon-socket/socket"
]
++ [
  (refused "a bind of the store with options of unknown form" (
    try (replacing storeLine [ "  --bind-ro=/nix/store:/nix/store:/elsewhere \\" ])
  ))
  (check "a comment may say anything"
    (problems (replacing execLine [ "# not --bind-ro=/nix/store \\" execLine ]))
    [ ]
  )
]
