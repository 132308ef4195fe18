# The unit that serves one view, as the attributes of one of `systemd.services`.
#
# Hard points
# 1. The mount has to appear in the host's mount namespace. Every option that gives a unit a mount namespace of its
#    own is therefore out, and with it most of the usual hardening: ProtectSystem=, ProtectHome=, PrivateTmp=,
#    PrivateDevices=, ProtectKernel*=, ProtectControlGroups=, ProtectProc=, ProcSubset=, ReadOnlyPaths=, BindPaths=,
#    RootDirectory=, DynamicUser=. MountFlags=shared does not help: systemd makes the copy a slave first. A network
#    namespace needs one only for /sys, so PrivateNetwork= goes with PrivateMounts=no.
# 2. The units that use the view have Requires= on it, so that it is there before them. systemd passes a restart on
#    to them, also the automatic one after a crash, unless RestartMode=direct. But when the mount itself has ended, they
#    have a dead one, and must be restarted: exit code 11.
# 3. A changed unit must not be restarted by a configuration switch, for the same reason. It is reloaded, and when the
#    command line is no longer that of the running server, the server then hands its mount over to a successor.
# 4. A killed or handed-over server has to be back at once, also after many hand-overs, and a program that cannot start
#    must not be started in a hot loop. Growing pauses (RestartSteps=) do not give that: systemd counts automatic
#    restarts since the last start by hand (NRestarts), and a start that becomes ready does not reset the count. So
#    there is no pause, and the number of starts is limited. The limit leaves the mount and the stored descriptor as they
#    are; readers wait until somebody starts the unit (docs/operation.md).
{
  lib,
  pkgs,
  package,
  idlePolling ? "auto",
  prefetch ? "auto",
  sandbox ? "best",
  untrusted ? [ ],
}:
let
  program = "${package}/bin/nix-store-fs";

  # A path as a word of a command line, which systemd splits and expands (systemd.service(5), "COMMAND LINES").
  word =
    path:
    if builtins.match "[A-Za-z0-9/_.@:+-]+" path != null then
      path
    else
      "\"${
        lib.replaceStrings [ "\\" "\"" "%" "$" "\n" ] [ "\\\\" "\\\"" "%%" "$$" "\\n" ] path
      }\"";

  # Hands over to a successor if the running server was not started with this command line.
  succeed = pkgs.writeShellScript "nix-store-fs-succeed" ''
    mapfile -d "" -t running <"/proc/$MAINPID/cmdline"
    if [ "''${running[*]}" != "$*" ]; then
      kill -s USR2 "$MAINPID"
    fi
  '';

  # Restarts what uses the view, with the view, if its mount has ended.
  ended = pkgs.writeShellScript "nix-store-fs-ended" ''
    if [ "$EXIT_STATUS" = 11 ]; then
      exec ${pkgs.systemd}/bin/systemctl --no-block --job-mode=restart-dependencies start "$1"
    fi
  '';
in
{
  name,
  mountPoint,
  description,
  roots,
  io ? "cached",
  watch ? false,
  prune ? false,
  report ? false,
  gcRoot ? null,
  onDemand ? false,
}:
let
  command = lib.concatStringsSep " " (
    [ program ]
    ++ roots
    ++ [
      "--name"
      name
      "--io"
      io
    ]
    ++ lib.optionals (idlePolling != "auto") [
      "--idle-polling"
      idlePolling
    ]
    ++ lib.optionals (prefetch != "auto") [
      "--prefetch"
      prefetch
    ]
    ++ lib.optionals (sandbox != "best") [
      "--sandbox"
      sandbox
    ]
    ++ lib.concatMap (dir: [
      "--untrusted"
      (word dir)
    ]) untrusted
    ++ lib.optional watch "--watch"
    ++ lib.optional prune "--prune"
    ++ lib.optional report "--report"
    ++ lib.optionals (gcRoot != null) [
      "--gc-root"
      (toString gcRoot)
    ]
    ++ [ mountPoint ]
  );
in
{
  inherit description;

  unitConfig = {
    RequiresMountsFor = "/nix/store /nix/var/nix";
    # Hard point 4. A hundred starts take a few seconds where each fails at once. A server that is killed or hands over
    # every 3 s never reaches the limit.
    StartLimitIntervalSec = "4min";
    StartLimitBurst = 100;
    # A start that fails later than 2.4 s after its beginning does not reach the limit, and is repeated. The job ends all
    # the same, so that `systemctl start` returns. It has to be longer than TimeoutStartSec=, 90 s by default.
    JobRunningTimeoutSec = "4min";
  }
  // lib.optionalAttrs onDemand {
    # Goes when its last user goes, and stays while that is restarted.
    StopWhenUnneeded = true;
  };

  # Hard point 3. And were it to be restarted after all, then in one step: a stop and a start would take its users down
  # and not bring them back.
  reloadIfChanged = true;
  stopIfChanged = false;

  serviceConfig = {
    Type = "notify";
    ExecStart = command;
    # Returns when the new closure is visible, and fails with the server's reason if it cannot be.
    ExecReload = [
      "${program} reload ${name}"
      "${succeed} ${command}"
    ];

    # Hard point 2.
    ExecStopPost = "${ended} %n";

    # Death of the server. Its connection to the kernel lies in systemd's descriptor store, so that the mount
    # outlives it; the next server continues where it ended.
    FileDescriptorStoreMax = 4;
    FileDescriptorStorePreserve = "yes";
    Restart = "always";
    RestartMode = "direct";
    RestartSec = 0;
    # 75: handed over. The others are refusals with a reason, which trying again at once would only repeat. Not 127 (the
    # loader lacks a library) and 203 (the program cannot be executed): both are also the result of a lack of memory or
    # of descriptors, which passes, and to a package that is being replaced. The start limit ends those that last.
    RestartForceExitStatus = 75;
    RestartPreventExitStatus = "2 3 4 5 6 7 9 10";
    SuccessExitStatus = 75;
    # A restart by hand hands over as well; a stop unmounts.
    RestartKillSignal = "SIGUSR2";
    # The monitor is told, and ends its server. It takes some two seconds at most, and two more if the Nix store does not
    # answer; a process that the kernel does not let end (docs/operation.md) is waited for no longer than this, as
    # readers wait for the next server.
    KillMode = "mixed";
    TimeoutStopSec = 5;

    # Mount points and state; another view's are there too, and the own ones are needed by the successor.
    RuntimeDirectory = "nix-store-fs";
    RuntimeDirectoryPreserve = "yes";

    # What was used at the last starts, of all views: what a container does is root's to know.
    CacheDirectory = "nix-store-fs";
    CacheDirectoryMode = "0700";

    # Whoever reads from the view waits for the server: no limit set on containers or on system services should
    # reach it, and nearly everything else is a better victim when memory runs out.
    Slice = "nixstorefs.slice";
    OOMScoreAdjust = -900;

    # What a container can make the view take, with room for honest ones (docs/operation.md, "Memory"). Above it the kernel
    # reclaims what it has cached of the store; nothing is killed. No CPUWeight=: all views have the same one in their
    # slice, so one that is flooded takes nothing from another's share.
    MemoryHigh = "1G";
    # Two processes, of some thirty threads together on a large machine.
    TasksMax = 256;

    # Root, since mounting for all users needs it and so does the store's database. What of root's rights is left. The
    # program keeps the same by itself, and CAP_SYS_PTRACE where it is there (docs/security.md): change both lists.
    CapabilityBoundingSet = [
      # mount and unmount, register files for passthrough, leave the host's mount namespace
      "CAP_SYS_ADMIN"
      # read the store and open its database whatever their modes
      "CAP_DAC_OVERRIDE"
      "CAP_DAC_READ_SEARCH"
      # what the store library does when it opens a local store: owner and mode of its directories
      "CAP_CHOWN"
      "CAP_FOWNER"
    ];
    NoNewPrivileges = true;
    # The program sets a umask of its own for what others may see.
    UMask = "0077";
    DevicePolicy = "closed";
    DeviceAllow = [
      "/dev/fuse rw"
    ]
    # where it is asked for that idle processors poll while requests flow
    ++ lib.optional (idlePolling != "never") "/dev/cpu_dma_latency w";
    # notification, control socket, the daemon of a store that has one
    RestrictAddressFamilies = "AF_UNIX";
    # Sockets that are files are reached from any network namespace.
    PrivateNetwork = true;
    PrivateMounts = false;
    IPAddressDeny = "any";
    # its own mount namespace for opening the store
    RestrictNamespaces = "mnt";
    RestrictRealtime = true;
    ProtectHostname = true;
    ProtectClock = true;
    # not RestrictSUIDSGID=: it answers ENOSYS to openat2, with which the server reads the store
    LockPersonality = true;
    MemoryDenyWriteExecute = true;
    SystemCallArchitectures = "native";
    SystemCallFilter = [
      "@system-service"
      "@mount"
      "~@privileged @resources"
      # what the store library does when it opens a local store, and SQLite when it makes a file
      "@chown"
      # what who asks ahead lets others go first by (CAP_SYS_NICE, which would allow more, is not there), and what tells
      # it, and the server for reading ahead, which pages are cached
      "setpriority ioprio_set cachestat"
      # what a server gives its rights up by
      "landlock_create_ruleset landlock_add_rule landlock_restrict_self seccomp capset"
    ];
    SystemCallErrorNumber = "EPERM";
  };
}
