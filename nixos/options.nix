# The options of nix-store-fs itself. Those that containers and services gain are declared beside their use.
{
  config,
  lib,
  pkgs,
  ...
}:
let
  inherit (lib) mkEnableOption mkOption types;
  cfg = config.services.nix-store-fs;
in
{
  options.services.nix-store-fs = {
    package = mkOption {
      type = types.package;
      default = pkgs.nix-store-fs or (pkgs.callPackage ../nix/package.nix { });
      defaultText = lib.literalExpression "pkgs.nix-store-fs";
      description = "The package that provides {command}`nix-store-fs`.";
    };

    idlePolling = mkOption {
      type = types.enum [
        "auto"
        "always"
        "never"
      ];
      default = "auto";
      description = ''
        Where idle processors of the host are kept awake while requests to a view flow, so that an answer need not
        wake one: `auto` where a short trial shows that it saves time, as in many virtual machines. It holds for all
        processors, from the eighth request to 20 milliseconds after the last, and costs power.
      '';
    };

    prefetch = mkOption {
      type = types.enum [
        "auto"
        "names"
        "all"
        "off"
      ];
      default = "auto";
      description = ''
        What is asked of a view ahead of who uses it, so that its first use is as fast as the second: `auto` what was
        used at its last starts, which is remembered in {file}`/var/cache/nix-store-fs`, readable by root alone; `names`
        also all names of the closure; `all` also all bytes of it; `off` nothing, and nothing is remembered.
      '';
    };

    sandbox = mkOption {
      type = types.enum [
        "require"
        "best"
        "none"
      ];
      default =
        if
          lib.versionAtLeast config.boot.kernelPackages.kernel.version "5.13"
          && lib.elem pkgs.stdenv.hostPlatform.system [
            "x86_64-linux"
            "aarch64-linux"
            "riscv64-linux"
          ]
        then
          "require"
        else
          "best";
      defaultText = lib.literalMD "`require` where the kernel can, else `best`";
      description = ''
        Whether monitor and servers give up every right that they do not need: with `require` a view does not start
        otherwise, with `best` the log says what is missing, with `none` they keep them. `require` fails where the
        kernel is started without Landlock (`lsm=`).
      '';
    };

    untrusted = mkOption {
      type = types.listOf (types.strMatching "/.*");
      default = [ ];
      apply = lib.unique;
      example = [ "/srv/shared" ];
      description = ''
        Directories, or files, that somebody else than the host's root can write as root: no root of a view is resolved
        through them. Added to these are the root directories of containers and what declared containers have
        bound. To be named here is what the configuration does not show: for example a directory that is
        bound writable into a container made with {command}`nixos-container create`.
      '';
    };

    imperativeContainers.enable = mkEnableOption ''
      a private store for every container made with {command}`nixos-container create`. Declared containers have
      {option}`containers.<name>.privateStore.enable` instead'';

    views = mkOption {
      default = { };
      description = ''
        Views of the Nix store. Each is served by {command}`nix-store-fs@«name».service` and holds the closure
        of its roots, and nothing else.
      '';
      example = lib.literalExpression ''
        {
          build = {
            roots = [ pkgs.hello "/nix/var/nix/profiles/build" ];
            watch = true;
          };
        }
      '';
      type = types.attrsOf (
        types.submodule (
          { name, ... }:
          {
            options = {
              roots = mkOption {
                type = types.listOf (types.either types.path (types.strMatching "[?]/.*"));
                default = [ ];
                example = lib.literalExpression ''[ pkgs.hello "/run/opengl-driver" "?/nix/var/nix/profiles/later" ]'';
                description = ''
                  What the view holds, each with its closure: packages, store paths, profiles, and links that
                  lead into the store. Profiles and links are looked up again at every reload. A path behind a
                  question mark may not exist yet: the view starts without it.
                '';
              };

              io = mkOption {
                type = types.enum [
                  "cached"
                  "passthrough"
                ];
                default = "cached";
                description = ''
                  How file contents reach the reader. `cached` keeps what was read in the page cache of the view,
                  which makes repeated reading of small files fastest. `passthrough` lets the kernel read the
                  store's own files, so that nothing is cached twice; it needs Linux 6.9.
                '';
              };

              watch = mkOption {
                type = types.bool;
                default = false;
                description = ''
                  Whether a changed profile among the roots reloads the view by itself. Without it a view changes
                  at {command}`systemctl reload` only, which containers ask for themselves.
                '';
              };

              prune = mkOption {
                type = types.bool;
                default = false;
                description = ''
                  Whether a reload removes what the roots no longer reach. By default a view only grows, so that
                  programs of the old closure keep running until they are restarted.
                '';
              };

              report = mkOption {
                type = types.bool;
                default = false;
                description = ''
                  Whether the journal of the host tells which store paths were asked for that the host has and the
                  view has not, and by which process. Nothing of it shows in the view.
                '';
              };

              gcRoot = mkOption {
                type = types.nullOr types.path;
                default = null;
                example = "/nix/var/nix/gcroots/nix-store-fs";
                description = ''
                  Directory for garbage collector roots that outlive the server. Whatever is served is protected
                  while it is served, with or without it.
                '';
              };

              mountPoint = mkOption {
                type = types.strMatching "/[A-Za-z0-9/_.@+-]+";
                default = "/run/nix-store-fs/${name}";
                defaultText = lib.literalExpression ''"/run/nix-store-fs/«name»"'';
                description = "Where the view is mounted on the host.";
              };

              user = mkOption {
                type = types.nullOr types.str;
                default = null;
                internal = true;
                description = ''
                  The container that the view belongs to and lives with. A view has one at most: were two to claim
                  the same name, each would see the closure of the other.
                '';
              };
            };
          }
        )
      );
    };
  };

  config.services.nix-store-fs.untrusted = [
    "/var/lib/nixos-containers"
    # the same before 22.05
    "/var/lib/containers"
    # of ephemeral ones
    "/run/nixos-containers"
    "/var/lib/machines"
  ];

  config.assertions = [
    {
      assertion = cfg.imperativeContainers.enable -> config.boot.enableContainers;
      message = ''
        services.nix-store-fs.imperativeContainers.enable has no effect without boot.enableContainers. Set
        boot.enableContainers = true.'';
    }
  ]
  ++ lib.mapAttrsToList (name: _: {
    # The name is part of a unit's name, of a file's and of a mount point; the state directory is `.state`.
    assertion = builtins.match "[A-Za-z0-9][A-Za-z0-9_.-]*" name != null;
    message = ''
      services.nix-store-fs.views."${name}": a view's name consists of letters, digits, `_`, `.` and `-`, and begins
      with a letter or digit. Choose another name.'';
  }) cfg.views;
}
