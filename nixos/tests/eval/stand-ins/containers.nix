# Stand-in for the stock container module: the options that matter here, and a start script with the stock binds in
# one of their two forms. It runs: with a systemd-nspawn, a system and an init it boots a container.
form:
{
  config,
  lib,
  pkgs,
  ...
}:
let
  inherit (lib) mkOption types;
  option = type: default: mkOption { inherit type default; };
  isNew = form == "25.05";

  bind =
    path: if isNew then "--bind-ro=${path}:${path}$NIX_BIND_OPT" else "--bind-ro=${path}";
  ownBind =
    what: "--bind=\"/nix/var/nix/${what}/per-container/$INSTANCE:/nix/var/nix/${what}${lib.optionalString isNew "$NIX_BIND_OPT"}\"";

  init = pkgs.writeScript "container-init" ''
    #! ${pkgs.runtimeShell} -e
    . "$1"
  '';

  startScript = container: ''
    mkdir -p "$root/etc" "$root/var/lib"
    mkdir -p "/nix/var/nix/profiles/per-container/$INSTANCE" "/nix/var/nix/gcroots/per-container/$INSTANCE"

    declare -a extraFlags
    ${lib.optionalString isNew ''
      NIX_BIND_OPT=""
      case "''${PRIVATE_USERS:-no}" in
      no | identity | 0) ;;
      *) NIX_BIND_OPT=":idmap" ;;
      esac
      extraFlags+=("--private-users=''${PRIVATE_USERS:-no}")
    ''}
    # The flags are words of their own.
    # shellcheck disable=SC2086
    exec ${config.systemd.package}/bin/systemd-nspawn \
      --keep-unit \
      -M "$INSTANCE" -D "$root" "''${extraFlags[@]}" \
      --notify-ready=yes \
      --kill-signal=SIGRTMIN+3 \
      ${bind "/nix/store"} \
      ${bind "/nix/var/nix/db"} \
      ${bind "/nix/var/nix/daemon-socket"} \
      ${ownBind "profiles"} \
      ${ownBind "gcroots"} \
      ${lib.optionalString (!container.ephemeral) "--link-journal=try-guest"} \
      --setenv PATH="$PATH" \
      ${lib.optionalString container.ephemeral "--ephemeral"} \
      ${lib.optionalString (container.tmpfs != [ ]) "--tmpfs=${lib.concatStringsSep " --tmpfs=" container.tmpfs}"} \
      ''${EXTRA_NSPAWN_FLAGS-} \
      ${init} "''${SYSTEM_PATH:-/nix/var/nix/profiles/system}/init"
  '';

  service = container: {
    path = [ pkgs.iproute2 ];
    environment = {
      INSTANCE = "%i";
      root = "/var/lib/nixos-containers/%i";
    };
    script = startScript container;
    serviceConfig = {
      Type = "notify";
      ExecReload = "${pkgs.writeScript "reload-container" "reload"}";
      EnvironmentFile = "-/etc/nixos-containers/%i.conf";
      DevicePolicy = "closed";
      DeviceAllow = map (device: "${device.node} ${device.modifier}") container.allowedDevices;
    };
  };
in
{
  options = {
    boot.enableContainers = option types.bool true;
    containers = mkOption {
      default = { };
      type = types.attrsOf (
        types.submodule (
          { name, config, ... }:
          {
            options = {
              config = option types.unspecified null;
              path = mkOption { type = types.path; };
              autoStart = option types.bool false;
              ephemeral = option types.bool false;
              restartIfChanged = option types.bool true;
              tmpfs = option (types.listOf types.str) [ ];
              extraFlags = option (types.listOf types.str) [ ];
              allowedDevices = option (types.listOf types.unspecified) [ ];
              bindMounts = mkOption {
                default = { };
                type = types.attrsOf (
                  types.submodule (
                    { name, ... }:
                    {
                      options = {
                        mountPoint = option types.str name;
                        hostPath = option (types.nullOr types.str) null;
                        isReadOnly = option types.bool true;
                      };
                    }
                  )
                );
              };
            }
            // lib.optionalAttrs isNew {
              privateUsers = option types.unspecified "no";
              flake = option (types.nullOr types.str) null;
            };
            config.path = lib.mkMerge (
              [
                (lib.mkIf (config.config != null) "/nix/store/00000000000000000000000000000000-nixos-system")
              ]
              ++ lib.optional isNew (lib.mkIf (config.flake != null) "/nix/var/nix/profiles/per-container/${name}")
            );
          }
        )
      );
    };
  };

  config = lib.mkIf config.boot.enableContainers {
    systemd.services = {
      "container@" = service {
        ephemeral = false;
        tmpfs = [ ];
        allowedDevices = [ ];
      };
    }
    // lib.mapAttrs' (
      name: container:
      lib.nameValuePair "container@${name}" (
        service container
        // {
          inherit (container) restartIfChanged;
          wantedBy = lib.optional container.autoStart "machines.target";
        }
      )
    ) config.containers;
    environment.etc = lib.mapAttrs' (
      name: container:
      lib.nameValuePair "nixos-containers/${name}.conf" { text = "SYSTEM_PATH=${container.path}\n"; }
    ) config.containers;
  };
}
