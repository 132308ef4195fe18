# One of `systemd.services` as the text of a unit, whichever module system made it.
{ lib }:
service:
let
  value = one: if builtins.isBool one then lib.boolToString one else toString one;
  lines =
    set:
    lib.concatStrings (
      lib.concatLists (
        lib.mapAttrsToList (key: values: map (one: "${key}=${value one}\n") (lib.toList values)) set
      )
    );
  some =
    key: list:
    lib.optionalAttrs (list != [ ]) { ${key} = lib.concatStringsSep " " (map toString list); };
in
"[Unit]\n"
+ lines (
  service.unitConfig
  // {
    Description = service.description;
  }
  // some "Requires" (service.requires or [ ])
  // some "After" (service.after or [ ])
  // some "X-Reload-Triggers" (service.reloadTriggers or [ ])
)
+ "\n[Service]\n"
+ lines service.serviceConfig
+ (
  if (service.wantedBy or [ ]) == [ ] then "" else "\n[Install]\n" + lines (some "WantedBy" service.wantedBy)
)
