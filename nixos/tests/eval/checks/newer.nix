# What stock container modules from 25.05 on have: private users, and containers from flakes.
common:
let
  inherit (common)
    base
    check
    evaluate
    has
    hasUsers
    lib
    linesOf
    onKernel
    system
    ;
  inherit (builtins)
    head
    ;

  users =
    value: version:
    onKernel version {
      containers.web = {
        path = "${system "web"}";
        privateUsers = value;
        privateStore.enable = true;
      };
    };
  flaky =
    (evaluate [
      {
        containers.flaky = {
          flake = "github:example/system";
          privateStore.enable = true;
        };
      }
    ]);
in
lib.optionals hasUsers (
  map
    (
      value:
      check "private users ${toString value} need Linux 6.12" (map (has "needs Linux 6.12") (users value "6.11.9")) [
        true
      ]
    )
    [
      "pick"
      65536
    ]
  ++
    map (value: check "private users ${toString value} need no new kernel" (users value "6.1.0") [ ])
      [
        "no"
        "identity"
        0
      ]
  ++ [
    (check "private users are fine on Linux 6.12" (users "pick" "6.12") [ ])
    (check "the owners of the view are mapped as those of the store were"
      (has "--bind-ro=/run/nix-store-fs/web:/nix/store$NIX_BIND_OPT \\" (
        (evaluate [
          base
          { containers.web.privateUsers = "pick"; }
        ]).systemd.services."container@web".script
      ))
      true
    )
    (check "a container from a flake waits for the profile that its start makes"
      (head (linesOf flaky.environment.etc."nix-store-fs/flaky.roots".text))
      "?/nix/var/nix/profiles/per-container/flaky/system"
    )
    (check "and reloads its view once it is made"
      (has "systemctl reload \"nix-store-fs@$INSTANCE.service\"" flaky.systemd.services."container@flaky".script)
      true
    )
  ]
)
