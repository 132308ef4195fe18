# The units of views, containers and services, apart from their texts.
common:
let
  inherit (common)
    base
    check
    config
    evaluate
    has
    lib
    pkgs
    services
    ;
  inherit (builtins)
    attrNames
    concatMap
    elem
    filter
    head
    unsafeDiscardStringContext
    ;

  # of systemd.exec(5): each of these makes systemd unshare the mount namespace
  namespacing = [
    "BindPaths"
    "BindReadOnlyPaths"
    "DynamicUser"
    "ExecPaths"
    "ExtensionDirectories"
    "ExtensionImages"
    "InaccessiblePaths"
    "LogNamespace"
    "MountAPIVFS"
    "MountFlags"
    "MountImages"
    "NoExecPaths"
    "PrivateDevices"
    "PrivateIPC"
    "PrivateTmp"
    "PrivateUsers"
    "ProcSubset"
    "ProtectControlGroups"
    "ProtectHome"
    "ProtectKernelLogs"
    "ProtectKernelModules"
    "ProtectKernelTunables"
    "ProtectProc"
    "ProtectSystem"
    "ReadOnlyPaths"
    "ReadWritePaths"
    "RootDirectory"
    "RootImage"
    "TemporaryFileSystem"
  ];
  # When a container is started, restarted and left alone by a configuration switch.
  occasions =
    enable: name:
    let
      inherit
        (evaluate [
          base
          { containers.${name}.privateStore.enable = lib.mkForce enable; }
        ])
        containers
        systemd
        ;
      service = systemd.services."container@${name}";
    in
    {
      inherit (containers.${name}) autoStart ephemeral restartIfChanged;
      inherit (service) wantedBy reloadIfChanged stopIfChanged;
      unitRestartIfChanged = service.restartIfChanged;
      restartTriggers = map toString service.restartTriggers;
    };
in
map (
  name:
  check "a private store leaves the occasions on which ${name} is started and restarted alone" (occasions true name) (
    occasions false name
  )
) [ "web" "fleeting" "kept" ]
++ [
  (check "a container requires its view, and comes after it"
    (map (elem "nix-store-fs@web.service") [
      services."container@web".requires
      services."container@web".after
    ])
    [
      true
      true
    ]
  )
  (check "a container made by nixos-container requires its view"
    (map (elem "nix-store-fs@%i.service") [
      services."container@".requires
      services."container@".after
    ])
    [
      true
      true
    ]
  )
  (check "no unit binds itself to a view" (concatMap (service: service.bindsTo or [ ]) (lib.attrValues services)) [ ])
  (check "a container without a private store requires none"
    (filter (has "nix-store-fs") services."container@plain".requires)
    [ ]
  )
  (check "the reload of a container reloads its view first"
    (unsafeDiscardStringContext (head services."container@web".serviceConfig.ExecReload))
    (unsafeDiscardStringContext "${pkgs.systemd}/bin/systemctl reload nix-store-fs@web.service")
  )
  (check "and then does what it did"
    (map toString (lib.drop 2 services."container@web".serviceConfig.ExecReload))
    [ (toString services."container@plain".serviceConfig.ExecReload) ]
  )
  (check "between, the container is shown the present system of its profile"
    (has "nix-store-fs-profile" (builtins.elemAt services."container@web".serviceConfig.ExecReload 1))
    true
  )
  (check "a view that belongs to nobody starts at boot" services."nix-store-fs@build".wantedBy [ "multi-user.target" ])
  (check "a view that belongs to a container does not" services."nix-store-fs@web".wantedBy [ ])
  (check "no view is restarted by a configuration switch"
    (map
      (name: [
        services.${name}.reloadIfChanged
        services.${name}.stopIfChanged
      ])
      [
        "nix-store-fs@web"
        "nix-store-fs@build"
        "nix-store-fs@"
      ]
    )
    [
      [
        true
        false
      ]
      [
        true
        false
      ]
      [
        true
        false
      ]
    ]
  )
  (check "no view's unit has a mount namespace of its own"
    (concatMap (
      name: filter (key: elem key namespacing) (attrNames services.${name}.serviceConfig)
    ) (filter (lib.hasPrefix "nix-store-fs@") (attrNames services)))
    [ ]
  )
  (check "a network namespace gives no view's unit a mount namespace"
    (filter (name: services.${name}.serviceConfig.PrivateMounts or true) (
      filter (lib.hasPrefix "nix-store-fs@") (attrNames services)
    ))
    [ ]
  )
  (check "no view's unit is denied openat2, by which the server reads the store"
    (filter (name: services.${name}.serviceConfig ? RestrictSUIDSGID) (
      filter (lib.hasPrefix "nix-store-fs@") (attrNames services)
    ))
    [ ]
  )
  (check "each view is told what is asked of it ahead, and has a cache of root's own to remember it in"
    (map (
      prefetch:
      let
        evaluated = evaluate [
          base
          { services.nix-store-fs.prefetch = prefetch; }
        ];
        units = {
          inherit (evaluated.systemd.services) "nix-store-fs@" "nix-store-fs@small" "nix-store-fs@web";
        };
        service = evaluated.systemd.units."nix-store-fs@service-job.service".text;
      in
      {
        told = map (name: has "--prefetch ${prefetch}" units.${name}.serviceConfig.ExecStart) (attrNames units)
          ++ [ (has "--prefetch ${prefetch}" service) ];
        kept = map (name: units.${name}.serviceConfig.CacheDirectoryMode) (attrNames units)
          ++ [ (if has "CacheDirectoryMode=0700" service then "0700" else "none") ];
      }
    ) [ "off" "names" "all" "auto" ])
    (
      let
        all = told: { told = map (_: told) [ 1 2 3 4 ]; kept = map (_: "0700") [ 1 2 3 4 ]; };
      in
      [ (all true) (all true) (all true) (all false) ]
    )
  )
  (check "each view is told where idle processors are kept awake, and given the device for it"
    (map (polling:
      let
        evaluated = evaluate [
          base
          { services.nix-store-fs.idlePolling = polling; }
        ];
        units = {
          inherit (evaluated.systemd.services) "nix-store-fs@" "nix-store-fs@small" "nix-store-fs@web";
        };
        service = evaluated.systemd.units."nix-store-fs@service-job.service".text;
      in
      {
        told = map (name: has "--idle-polling ${polling}" units.${name}.serviceConfig.ExecStart) (attrNames units)
          ++ [ (has "--idle-polling ${polling}" service) ];
        given = map (name: elem "/dev/cpu_dma_latency w" units.${name}.serviceConfig.DeviceAllow) (attrNames units)
          ++ [ (has "DeviceAllow=/dev/cpu_dma_latency w" service) ];
      }
    ) [ "always" "never" "auto" ])
    (
      let
        all = given: told: { told = map (_: told) [ 1 2 3 4 ]; given = map (_: given) [ 1 2 3 4 ]; };
      in
      [ (all true true) (all false true) (all true false) ]
    )
  )
  (check "each view is told what containers can write"
    (
      let
        evaluated = evaluate [
          base
          {
            services.nix-store-fs.untrusted = [ "/srv/a b%$\"c\\" ];
            containers.plain = {
              bindMounts."/inside" = {
                hostPath = "/srv/plain";
                isReadOnly = false;
              };
              bindMounts."/srv/itself".isReadOnly = false;
              bindMounts."/srv/read".hostPath = "/srv/read";
              extraFlags = [
                "--bind=/srv/flag:/flag --bind-ro=/srv/not:/not"
                "--bind"
                "'/srv/apart'"
                "--overlay=/srv/lower:/srv/upper:/overlay --overlay-ro=/srv/lower:/srv/other:/other"
                "--bind=+/of/the/root --bind=/nix/store/00000000000000000000000000000000-page:/page"
              ];
            };
          }
        ];
        units = {
          inherit (evaluated.systemd.services) "nix-store-fs@" "nix-store-fs@small" "nix-store-fs@web";
        };
        commands = map (unit: unit.serviceConfig.ExecStart) (lib.attrValues units) ++ [
          (head (
            filter (lib.hasPrefix "ExecStart=") (
              lib.splitString "\n" evaluated.systemd.units."nix-store-fs@service-job.service".text
            )
          ))
        ];
        told = command: lib.tail (lib.splitString " --untrusted " (unsafeDiscardStringContext command));
        word = part: head (builtins.match "(\".*\"|[^ ]+).*" part);
      in
      map (command: builtins.sort (a: b: a < b) (map word (told command))) commands
    )
    (
      map
        (_: [
          "\"/srv/a b%%$$\\\"c\\\\\""
          "/nix/var/nix-store-fs"
          "/nix/var/nix/gcroots/per-container/plain"
          "/nix/var/nix/profiles/per-container/plain"
          "/run/nixos-containers"
          "/srv/apart"
          "/srv/data"
          "/srv/flag"
          "/srv/itself"
          "/srv/not"
          "/srv/plain"
          "/srv/read"
          "/srv/upper"
          "/var/lib/containers"
          "/var/lib/machines"
          "/var/lib/nixos-containers"
        ])
        [
          1
          2
          3
          4
        ]
    )
  )
  (check "/dev/fuse is not for containers"
    (filter (has "fuse") services."container@web".serviceConfig.DeviceAllow)
    [ ]
  )
  (check "unless they ask for it"
    [
      services."container@kept".serviceConfig.DeviceAllow
      config.containers.kept.bindMounts."/dev/fuse".isReadOnly
    ]
    [
      [ "/dev/fuse rw" ]
      false
    ]
  )
  (check "a service sees its view, and neither database nor socket"
    [
      services.job.serviceConfig.BindReadOnlyPaths
      services.job.serviceConfig.InaccessiblePaths
      (filter (has "nix-store-fs") services.job.requires)
      (filter (has "nix-store-fs") services.job.after)
    ]
    [
      [ "/run/nix-store-fs/service-job:/nix/store" ]
      [
        "-/nix/var/nix/db"
        "-/nix/var/nix/daemon-socket"
        "-/run/nix-store-fs"
      ]
      [ "nix-store-fs@service-job.service" ]
      [ "nix-store-fs@service-job.service" ]
    ]
  )
]
