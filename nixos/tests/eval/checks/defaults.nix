# What the options are when nobody sets them, and what values they refuse.
common:
let
  inherit (common)
    base
    check
    config
    evaluate
    failing
    has
    lib
    pkgs
    refused
    services
    views
    ;
  inherit (builtins)
    attrNames
    filter
    ;
in
[
  (check "defaults of a view" (removeAttrs views.small [ "_module" ]) {
    roots = [ pkgs.hello ];
    io = "cached";
    watch = false;
    prune = false;
    report = false;
    gcRoot = null;
    mountPoint = "/run/nix-store-fs/small";
    user = null;
  })
  (check "defaults of a container" (removeAttrs config.containers.plain.privateStore [ "_module" ]) {
    enable = false;
    extraPaths = [ ];
    io = "cached";
    report = false;
    allowFuse = false;
  })
  (check "defaults of a service" (removeAttrs services."container@".privateStore [ "_module" ]) {
    enable = false;
    extraPaths = [ ];
    io = "cached";
    report = false;
  })
  (check "the package is that of nixpkgs" (config.services.nix-store-fs.package == pkgs.nix-store-fs) true)
  (check "imperative containers are left alone" (evaluate [ ]).services.nix-store-fs.imperativeContainers.enable false)
  (check "nothing comes of importing the module"
    (map (set: filter (has "nix-store-fs") (attrNames set)) [
      (evaluate [ ]).systemd.services
      (evaluate [ ]).systemd.units
      (lib.filterAttrs (_: file: file.enable) (evaluate [ ]).environment.etc)
    ])
    [
      [ ]
      [ ]
      [ ]
    ]
  )
  (check "nothing comes of containers that are not enabled"
    (attrNames
      (evaluate [
        base
        { boot.enableContainers = false; services.nix-store-fs.imperativeContainers.enable = lib.mkForce false; }
      ]).services.nix-store-fs.views
    )
    [
      "build"
      "small"
    ]
  )
  (check "a sane configuration fails no assertion" (failing [ base ]) [ ])
  (check "one view for each container and each view" (attrNames views) [
    "build"
    "fleeting"
    "kept"
    "small"
    "web"
  ])
  (refused "an unknown way to read" (
    (evaluate [ { services.nix-store-fs.views.test.io = "fast"; } ]).services.nix-store-fs.views.test.io
  ))
  (refused "an unknown place to keep processors awake" (
    (evaluate [ { services.nix-store-fs.idlePolling = "often"; } ]).services.nix-store-fs.idlePolling
  ))
  (refused "a mount point that a shell would split" (
    (evaluate [ { services.nix-store-fs.views.test.mountPoint = "/a b"; } ]).services.nix-store-fs.views.test.mountPoint
  ))
  (refused "a view claimed by two" (
    (evaluate [
      base
      { services.nix-store-fs.views.web.user = "somebody else"; }
    ]).services.nix-store-fs.views.web.user
  ))
]
