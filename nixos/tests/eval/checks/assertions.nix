# Configurations that would undo a private store, or need a newer kernel, and those that are fine.
common:
let
  inherit (common)
    check
    evaluate
    failing
    has
    hasUsers
    lib
    onKernel
    refused
    services
    system
    withContainer
    ;
  inherit (builtins)
    length
    ;

  bind = host: inside: withContainer { bindMounts.${inside}.hostPath = host; };
  # The first: some are errors for what they let the container write as well.
  refusesBind =
    host: shown:
    check "a bind of ${host} is an error that names ${shown}"
      (map (has ''containers.web.bindMounts."/inside" would show the container ${shown} of the host'') (
        lib.take 1 (bind host "/inside")
      ))
      [ true ];
  covering =
    inside:
    check "a bind over ${inside} is an error"
      (map (has "would cover the container's private store") (bind "/srv/other" inside))
      [ true ];
  refusesFlag =
    flag: shown:
    check "the extra flag ${flag} is an error that names ${shown}"
      (map (has "would show the container ${shown} of the host") (
        lib.take 1 (withContainer { extraFlags = [ flag ]; })
      ))
      [ true ];
in
[
  (refusesBind "/nix/store" "/nix/store")
  (refusesBind "/nix/store/" "/nix/store")
  (refusesBind "//nix/./store" "/nix/store")
  (refusesBind "/nix/var/../store" "/nix/store")
  (refusesBind "/nix" "/nix/store")
  (refusesBind "/" "/nix/store")
  (refusesBind "/nix/var" "/nix/var/nix/db")
  (refusesBind "/nix/var/nix" "/nix/var/nix/db")
  (refusesBind "/nix/var/nix/db" "/nix/var/nix/db")
  (refusesBind "/nix/var/nix/db/db.sqlite" "/nix/var/nix/db")
  (refusesBind "/nix/var/nix/daemon-socket" "/nix/var/nix/daemon-socket")
  (refusesBind "/nix/var/nix/daemon-socket/socket" "/nix/var/nix/daemon-socket")
  (refusesBind "/run" "/run/nix-store-fs")
  (refusesBind "/run/nix-store-fs/other" "/run/nix-store-fs")
  (refusesBind "/nix/var/nix-store-fs/other" "/nix/var/nix-store-fs")
  (covering "/nix/store")
  (covering "/nix")
  (covering "/nix/store/inner")
  (check "a bind without a host path is judged by its mount point"
    (length (withContainer { bindMounts."/nix/store" = { }; }))
    2
  )
  (check "one store path may be bound by name"
    (bind "/nix/store/00000000000000000000000000000000-page" "/srv/page")
    [ ]
  )
  (check "names that only begin alike are left alone" (bind "/nix/storeroom" "/nix/storeroom" ++ bind "/nix/st" "/nix/st") [ ])
  (check "so is everything in a container without a private store"
    (failing [
      {
        containers.web = {
          path = "${system "web"}";
          bindMounts."/host".hostPath = "/";
        };
      }
    ])
    [ ]
  )
  (refusesFlag "--bind=/nix/store:/store" "/nix/store")
  (refusesFlag "--bind-ro=/nix/var/nix/db:/db" "/nix/var/nix/db")
  (refusesFlag "--quiet --bind-ro=/:/host" "/nix/store")
  (refusesFlag "--bind-ro='/nix/store':/host" "/nix/store")
  (refusesFlag "--overlay=/nix/store:/a:/inside" "/nix/store")
  (check "a flag apart from its value is an error"
    (map (has "as one word") (withContainer { extraFlags = [ "--bind" "/nix/store" ]; }))
    [ true ]
  )
  (check "flags that replace the container's root are errors"
    (map (has "in place of the container's root") (withContainer {
      extraFlags = [
        "--directory=/"
        "-D /"
        "--volatile=overlay"
      ];
    }))
    [
      true
      true
      true
    ]
  )
  # Where nobody asks for the assertions, as extra-container does not.
  (refused "the start script of a container with a bind of the store" (
    (evaluate [
      {
        containers.web = {
          path = "${system "web"}";
          privateStore.enable = true;
          bindMounts."/inside".hostPath = "/nix/store";
        };
      }
    ]).systemd.services."container@web".script
  ))
  (check "a tmpfs over the store is an error"
    (map (has "would cover") (withContainer { tmpfs = [ "/nix:mode=0755" ]; }))
    [ true ]
  )
  (check "other flags are left alone"
    (withContainer {
      extraFlags = [
        "--bind=/srv:/srv"
        "--drop-capability=CAP_SYS_CHROOT"
      ];
      tmpfs = [ "/var" ];
    })
    [ ]
  )
  (check "a root that a container can write is an error, and so is what the roots are read from"
    (map (has "lies in /srv/shared, which a container can write") (failing [
      {
        containers.plain = {
          path = "${system "plain"}";
          bindMounts."/shared" = {
            hostPath = "/srv/shared";
            isReadOnly = false;
          };
        };
        services.nix-store-fs.views.test.roots = [
          "/srv/shared/profile"
          "?/srv/x/../shared"
          "/srv/shared-not/profile"
          "${system "other"}"
        ];
      }
    ]))
    [
      true
      true
    ]
  )
  (check "profiles of containers, and the files of roots, are not for containers to write"
    (map
      (
        host:
        length (
          withContainer {
            bindMounts."/inside" = {
              hostPath = host;
              isReadOnly = false;
            };
          }
        )
      )
      [
        "/etc"
        "/etc/nix-store-fs"
        "/nix/var/nix/profiles"
        "/etc/other"
      ]
    )
    [
      1
      1
      0
      0
    ]
  )
  (check "what a container has read-only it can remount, unless it has users of its own"
    (map
      (
        settings:
        length (
          failing [
            {
              containers.plain = {
                path = "${system "plain"}";
                bindMounts."/inside".hostPath = "/srv/shared";
                bindMounts."/run/opengl-driver" = { };
              }
              // settings;
              services.nix-store-fs.views.test.roots = [
                "/srv/shared/profile"
                # a link that leads into the store
                "/run/opengl-driver"
              ];
            }
          ]
        )
      )
      ([ { } ] ++ lib.optional hasUsers { privateUsers = "pick"; })
    )
    ([ 1 ] ++ lib.optional hasUsers 0)
  )
  (check "profiles are what containers of nixos-container are made from"
    (map (has "/nix/var/nix/profiles/per-container lies in /nix/var/nix/profiles") (failing [
      {
        services.nix-store-fs.imperativeContainers.enable = true;
        containers.plain = {
          path = "${system "plain"}";
          bindMounts."/nix/var/nix/profiles".isReadOnly = false;
        };
      }
    ]))
    [ true ]
  )
  (check "a profile that its container can write is no root"
    (map (has "/nix/var/nix/profiles/per-container/plain/system lies in") (failing [
      {
        containers.plain.path = "${system "plain"}";
        services.nix-store-fs.views.test.roots = [ "/nix/var/nix/profiles/per-container/plain/system" ];
      }
    ]))
    [ true ]
  )
  (check "passthrough needs Linux 6.9, for a view"
    (map (has "needs Linux 6.9") (
      onKernel "6.8.12" { services.nix-store-fs.views.test.io = "passthrough"; }
    ))
    [ true ]
  )
  (check "passthrough needs Linux 6.9, for a container"
    (map (has "views.kept.io") (
      onKernel "6.6.1" {
        containers.kept = {
          path = "${system "kept"}";
          privateStore = {
            enable = true;
            io = "passthrough";
          };
        };
      }
    ))
    [ true ]
  )
  (check "passthrough needs Linux 6.9, for a service"
    (map (has "systemd.services.job.privateStore.io") (
      onKernel "6.6.1" {
        systemd.services.job.privateStore = {
          enable = true;
          io = "passthrough";
        };
      }
    ))
    [ true ]
  )
  (check "an old kernel is enough for the rest"
    (onKernel "5.15.1" {
      containers.web = {
        path = "${system "web"}";
        privateStore.enable = true;
      };
    })
    [ ]
  )
  (check "imperative containers need containers"
    (map (has "boot.enableContainers = true") (
      failing [
        {
          boot.enableContainers = false;
          services.nix-store-fs.imperativeContainers.enable = true;
        }
      ]
    ))
    [ true ]
  )
  (check "a view's name has to be a name"
    (map (has "Choose another name") (
      failing [ { services.nix-store-fs.views."a b".roots = [ ]; services.nix-store-fs.views.".state".roots = [ ]; } ]
    ))
    [
      true
      true
    ]
  )
  (check "two services that would share a view are an error"
    (map (has "would share a view") (
      failing [
        {
          systemd.services."a@b".privateStore.enable = true;
          systemd.services."a-b".privateStore.enable = true;
        }
      ]
    ))
    [ true ]
  )
]
