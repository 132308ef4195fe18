# Containers with a private store, on top of the stock container module, which stays as it is.
#
# Hard points
# 1. `containers` and `systemd.services` are declared a second time, and the module system merges the declarations. That
#    works as long as no attribute is given that the stock declaration gives too.
# 2. The start script is the stock one with its store bind replaced: see rewrite.nix for why nothing less will do.
# 3. Some programs of the host run inside the container's mount namespace and are not in the container's closure.
{
  config,
  lib,
  pkgs,
  ...
}:
let
  inherit (lib) mkEnableOption mkOption types;
  inherit (import ./rewrite.nix { inherit lib; }) containerInit rewrite;
  inherit (import ./binds.nix { inherit lib; })
    bindProblems
    bound
    flagProblems
    isAt
    isIn
    tmpfsProblems
    ;
  directories = import ./directories.nix;
  cfg = config.services.nix-store-fs;
  unit = import ./unit.nix {
    inherit lib pkgs;
    inherit (cfg) package idlePolling prefetch sandbox untrusted;
  };
  systemctl = "${config.systemd.package}/bin/systemctl";

  private = lib.filterAttrs (_: container: container.privateStore.enable) config.containers;

  # `container@NAME` of a declared container, `container@` for all others, null for any other unit
  instanceOf =
    service: if lib.hasPrefix "container@" service then lib.removePrefix "container@" service else null;
  isPrivate =
    instance: if instance == "" then cfg.imperativeContainers.enable else private ? ${instance};
  mountPointOf =
    instance:
    if instance == "" then "/run/nix-store-fs/$INSTANCE" else cfg.views.${instance}.mountPoint;

  hostRoots = service: [
    # what systemd-nspawn starts: named in the stock start script only
    (containerInit config.systemd.services.${service}.script)
    # `ip`, which the above finds through the unit's PATH
    pkgs.iproute2
    # `su`, which `nixos-container run`, and with it a reload of the container, starts inside
    pkgs.shadow.su
  ];

  # A container made from a flake has no system when the configuration is built: its own start script makes a profile.
  systemOf =
    name: container:
    if container.flake or null != null then
      "?/nix/var/nix/profiles/per-container/${name}/system"
    else
      container.path;

  containerService = view: {
    requires = [ view ];
    after = [ view ];
    # Strictly first: if the view cannot show the new system, nothing is switched to it.
    serviceConfig.ExecReload = lib.mkBefore [
      "${systemctl} reload ${view}"
      (pkgs.writeShellScript "nix-store-fs-profile" directories.show)
    ];
  };

  # The container's own mounts that would undo its private store, one sentence each.
  problemsOf =
    name: container:
    map (problem: "containers.${name}.${problem}") (
      lib.concatLists (lib.mapAttrsToList bindProblems container.bindMounts)
      ++ flagProblems container.extraFlags
      ++ lib.concatMap tmpfsProblems container.tmpfs
    );

  # What a container can write, and so must not decide what a view shows. Without private users its root has but to remount
  # what it has read-only. Without a private store it can write its own profiles and garbage collector roots of the host.
  writableOf =
    name: container:
    map (bind: bind.host) (
      lib.filter (bind: !bind.isReadOnly || !mapsUsers (container.privateUsers or "no")) (bound container)
    )
    ++ lib.optionals (!container.privateStore.enable) [
      "/nix/var/nix/profiles/per-container/${name}"
      "/nix/var/nix/gcroots/per-container/${name}"
    ];

  # Bound by all that have it read-only, as many have a link that leads into the store: the link itself stays the host's.
  onlyRead =
    host:
    let
      binds = lib.filter (bind: bind.host == host) (lib.concatMap bound (lib.attrValues config.containers));
    in
    binds != [ ] && lib.all (bind: bind.isReadOnly) binds;

  # What decides what views show: their roots that are no store paths, and the files that hold them.
  deciding =
    lib.concatLists (
      # Those of a container are found in its start script too, which throws if there are problems.
      lib.mapAttrsToList (
        name: view:
        map (root: {
          where = "services.nix-store-fs.views.${name}.roots";
          path = lib.removePrefix "?" (builtins.unsafeDiscardStringContext "${root}");
        }) (lib.optionals (!private ? ${name} || problemsOf name private.${name} == [ ]) view.roots)
      ) cfg.views
    )
    ++ lib.optional (cfg.views != { } || cfg.imperativeContainers.enable) {
      where = "The files of roots";
      path = "/etc/nix-store-fs";
    }
    ++ lib.optional cfg.imperativeContainers.enable {
      where = "services.nix-store-fs.imperativeContainers";
      path = "/nix/var/nix/profiles/per-container";
    };

  # With these values the stock start script maps the owners of its binds.
  mapsUsers = users: users == "pick" || (builtins.isInt users && users > 0);
in
{
  options = {
    containers = mkOption {
      type = types.attrsOf (
        types.submodule (
          { config, ... }:
          {
            options.privateStore = {
              enable = mkEnableOption ''
                showing this container its own closure in {file}`/nix/store`, and nothing else of the host's store.
                The database and the daemon's socket are absent from it'';

              extraPaths = mkOption {
                type = types.listOf types.path;
                default = [ ];
                example = lib.literalExpression ''[ pkgs.hello "/run/opengl-driver" ]'';
                description = ''
                  What the container sees besides its system, each with its closure: packages, store paths, or
                  links that lead into the store.
                '';
              };

              io = mkOption {
                type = types.enum [
                  "cached"
                  "passthrough"
                ];
                default = "cached";
                description = "As {option}`services.nix-store-fs.views.<name>.io`.";
              };

              report = mkOption {
                type = types.bool;
                default = false;
                description = "As {option}`services.nix-store-fs.views.<name>.report`.";
              };

              allowFuse = mkOption {
                type = types.bool;
                default = false;
                description = ''
                  Whether the container may use {file}`/dev/fuse` for file systems of its own. Its store does not
                  need it.
                '';
              };
            };

            config = lib.mkIf (config.privateStore.enable && config.privateStore.allowFuse) {
              allowedDevices = [
                {
                  node = "/dev/fuse";
                  modifier = "rw";
                }
              ];
              bindMounts."/dev/fuse" = {
                hostPath = "/dev/fuse";
                isReadOnly = false;
              };
            };
          }
        )
      );
    };

    systemd.services = mkOption {
      type = types.attrsOf (
        types.submodule (
          { name, ... }:
          {
            options.script = mkOption {
              apply =
                text:
                let
                  instance = instanceOf name;
                  # The assertions say the same, but not everybody who evaluates this asks for them: extra-container
                  # takes the unit alone.
                  problems = if instance == "" then [ ] else problemsOf instance private.${instance};
                in
                if instance == null || !isPrivate instance then
                  text
                else if problems != [ ] then
                  throw "nix-store-fs: ${lib.concatStringsSep "\n" problems}"
                else
                  rewrite {
                    where = name;
                    source = mountPointOf instance;
                    inherit (directories) own;
                    # The view's service outlives a restart of the container, and the profile may have moved
                    # meanwhile, or have been made by this very script.
                    beforeExec = ''
                      ${systemctl} reload "nix-store-fs@$INSTANCE.service"
                      ${directories.make pkgs.e2fsprogs}'';
                  } text;
            };
          }
        )
      );
    };
  };

  config = lib.mkIf config.boot.enableContainers {
    assertions = lib.concatLists (
      lib.mapAttrsToList (
        name: container:
        map (message: {
          assertion = false;
          inherit message;
        }) (problemsOf name container)
        ++ [
          {
            assertion =
              mapsUsers (container.privateUsers or "no")
              -> lib.versionAtLeast config.boot.kernelPackages.kernel.version "6.12";
            message = ''
              containers.${name}: privateStore together with privateUsers needs Linux 6.12; boot.kernelPackages has
              ${config.boot.kernelPackages.kernel.version}. Set boot.kernelPackages = pkgs.linuxPackages_latest, or
              containers.${name}.privateUsers = "no".'';
          }
        ]
      ) private
    )
    ++ lib.concatMap (
      { where, path }:
      map (dir: {
        assertion = false;
        message = ''
          ${where}: ${path} lies in ${dir}, which a container can write, and could choose what the view shows. Give a
          store path or a link elsewhere, or do not bind ${dir} into a container: one without private users can remount what it has read-only.'';
      }) (lib.take 1 (lib.filter (dir: isIn path dir || isAt path dir && !onlyRead dir) cfg.untrusted))
    ) (lib.filter (one: !lib.hasPrefix "${builtins.storeDir}/" one.path) deciding);

    services.nix-store-fs.untrusted = [
      directories.parent
    ]
    ++ lib.concatLists (lib.mapAttrsToList writableOf config.containers);

    services.nix-store-fs.views = lib.mapAttrs (name: container: {
      user = "container ${name}";
      roots = [
        (systemOf name container)
      ]
      ++ hostRoots "container@${name}"
      ++ container.privateStore.extraPaths;
      inherit (container.privateStore) io report;
    }) private;

    environment.etc = lib.mkIf cfg.imperativeContainers.enable {
      # no view can have this name
      "nix-store-fs/container@.roots".text = lib.concatMapStrings (root: "${root}\n") (
        hostRoots "container@"
      );
    };

    systemd.services = lib.mkMerge (
      [
        (lib.mkIf cfg.imperativeContainers.enable {
          "nix-store-fs@" =
            unit {
              name = "%i";
              mountPoint = "/run/nix-store-fs/%i";
              description = "Store view %i of container %i";
              roots = [
                "--system"
                "/nix/var/nix/profiles/per-container/%i"
                "--roots-file"
                "/etc/nix-store-fs/container@.roots"
              ];
              onDemand = true;
            }
            // {
              reloadTriggers = [ config.environment.etc."nix-store-fs/container@.roots".source ];
            };
          "container@" = containerService "nix-store-fs@%i.service";
        })
      ]
      ++ lib.mapAttrsToList (name: _: {
        "container@${name}" = containerService "nix-store-fs@${name}.service";
      }) private
    );
  };
}
