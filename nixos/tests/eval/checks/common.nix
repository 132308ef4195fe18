# The host whose configuration is checked, and the words that checks are written in.
{
  host,
  form,
  snippets,
}:
let
  inherit (host)
    evaluate
    evaluateAll
    evaluateStock
    lib
    pkgs
    ;
  inherit (import ../../../rewrite.nix { inherit lib; }) containerInit;
  inherit (builtins)
    attrNames
    deepSeq
    filter
    getContext
    head
    tryEval
    unsafeDiscardStringContext
    ;

  check =
    name: actual: expected:
    let
      got = tryEval (deepSeq actual actual);
      ok = got.success && got.value == expected;
    in
    {
      name = "${form}: ${name}";
      inherit ok;
      detail =
        if ok then
          ""
        else if got.success then
          "got ${builtins.toJSON got.value}, expected ${builtins.toJSON expected}"
        else
          "it throws";
    };
  refused = name: value: {
    name = "${form}: ${name} is refused";
    ok = !(tryEval (deepSeq value value)).success;
    detail = "it evaluates";
  };
  linesOf = lib.splitString "\n";
  has = part: text: lib.hasInfix (unsafeDiscardStringContext part) (unsafeDiscardStringContext text);
  contextOf =
    text:
    builtins.sort (a: b: a < b) (
      map (path: head (builtins.match "/nix/store/[a-z0-9]{32}-(.*)" path)) (attrNames (getContext text))
    );

  system = name: pkgs.system name;
  base = {
    containers = {
      web = {
        path = "${system "web"}";
        autoStart = true;
        privateStore = {
          enable = true;
          extraPaths = [
            pkgs.hello
            "/run/opengl-driver"
          ];
        };
      };
      fleeting = {
        path = "${system "fleeting"}";
        ephemeral = true;
        tmpfs = [
          "/tmp"
          "/scratch"
        ];
        privateStore.enable = true;
      };
      kept = {
        path = "${system "kept"}";
        restartIfChanged = false;
        bindMounts."/data" = {
          hostPath = "/srv/data";
          isReadOnly = false;
        };
        privateStore = {
          enable = true;
          io = "passthrough";
          report = true;
          allowFuse = true;
        };
      };
      plain.path = "${system "plain"}";
    };
    services.nix-store-fs = {
      imperativeContainers.enable = true;
      views.build = {
        roots = [
          pkgs.hello
          "/nix/var/nix/profiles/build"
          "?/nix/var/nix/profiles/later"
        ];
        io = "passthrough";
        watch = true;
        prune = true;
        report = true;
        gcRoot = "/nix/var/nix/gcroots/build";
        mountPoint = "/srv/store";
      };
      views.small.roots = [ pkgs.hello ];
    };
    systemd.services.job = {
      serviceConfig.ExecStart = "${pkgs.hello}/bin/hello";
      privateStore = {
        enable = true;
        extraPaths = [ pkgs.iproute2 ];
        report = true;
      };
    };
  };
  config = evaluate [ base ];
  hasUsers = config.containers.web ? privateUsers;
  services = config.systemd.services;
  views = config.services.nix-store-fs.views;
  stock = services."container@plain".script;
  rewritten = services."container@web".script;
  rootsText = name: config.environment.etc."nix-store-fs/${name}.roots".text;

  # assertions that fail, of a configuration with this added to a container with a private store
  failing = modules: map (one: one.message) (filter (one: !one.assertion) (evaluate modules).assertions);
  withContainer =
    settings:
    failing [
      {
        containers.web = {
          path = "${system "web"}";
          privateStore.enable = true;
        }
        // settings;
      }
    ];
  onKernel =
    version: settings:
    failing [
      { boot.kernelPackages = pkgs.linux version; }
      settings
    ];
in
{
  inherit
    base
    check
    config
    containerInit
    contextOf
    evaluate
    evaluateAll
    evaluateStock
    failing
    form
    has
    hasUsers
    lib
    linesOf
    onKernel
    pkgs
    refused
    rewritten
    rootsText
    services
    snippets
    stock
    system
    views
    withContainer
    ;
}
