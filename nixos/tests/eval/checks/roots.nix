# The roots of each view: their paths, and the string context that keeps them alive.
common:
let
  inherit (common)
    check
    config
    containerInit
    contextOf
    evaluate
    has
    linesOf
    pkgs
    refused
    rootsText
    services
    stock
    system
    ;
  inherit (builtins)
    elem
    filter
    head
    unsafeDiscardStringContext
    ;

  rootsTextOf = view: (evaluate [ { services.nix-store-fs.views.test = view; } ]).environment.etc."nix-store-fs/test.roots".text;
  rootsOfService = pkgs.writeText "service-job.roots" "${config.systemd.units."job.service".unit}\n${pkgs.iproute2}\n";
in
[
  (check "the roots of a container are its system, what the host runs in it, and the extra paths"
    (map unsafeDiscardStringContext (linesOf (rootsText "web")))
    (
      map unsafeDiscardStringContext [
        "${system "web"}"
        (containerInit stock)
        "${pkgs.iproute2}"
        "${pkgs.shadow.su}"
        "${pkgs.hello}"
        "/run/opengl-driver"
        ""
      ]
    )
  )
  (check "the roots carry the context of each path, and of no other" (contextOf (rootsText "web")) [
    "container-init.drv"
    "hello-2.drv"
    "iproute2-6.drv"
    "nixos-system-web.drv"
    "shadow-4-su.drv"
  ])
  (check "container-init is the container's own" (
    containerInit services."container@web".script == head (filter (has "container-init") (linesOf (rootsText "web")))
  ) true)
  (refused "a script without container-init" (containerInit "exec true"))
  (check "the roots of nixos-container create's containers are what the host runs in them" (contextOf (
    rootsText "container@"
  )) [
    "container-init.drv"
    "iproute2-6.drv"
    "shadow-4-su.drv"
  ])
  (check "the roots of a view are as given"
    (map unsafeDiscardStringContext (linesOf (rootsText "build")))
    [
      (unsafeDiscardStringContext "${pkgs.hello}")
      "/nix/var/nix/profiles/build"
      "?/nix/var/nix/profiles/later"
      ""
    ]
  )
  (refused "a relative root" (rootsTextOf { roots = [ "hello" ]; }))
  (check "the root of a service is the store path of its unit"
    (linesOf (unsafeDiscardStringContext (rootsOfService).text))
    [
      (unsafeDiscardStringContext "${config.systemd.units."job.service".unit}")
      (unsafeDiscardStringContext "${pkgs.iproute2}")
      ""
    ]
  )
  (check "which holds what the unit names"
    (elem "hello-2.drv" (contextOf config.systemd.units."job.service".text))
    true
  )
  (check "a service's view is reloaded when its roots change"
    (has "X-Reload-Triggers=${rootsOfService}\n" config.systemd.units."nix-store-fs@service-job.service".text)
    true
  )
]
