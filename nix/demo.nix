# A closure mounted for an ordinary user, looked at, and unmounted again.
{
  writeShellApplication,
  nix-store-fs,
  hello,
  git,
  coreutils,
  util-linux,
}:
writeShellApplication {
  name = "nix-store-fs-demo";
  runtimeInputs = [
    nix-store-fs
    coreutils
    util-linux
  ];
  # fusermount3 has to be the one that may mount, where the system keeps it.
  text = ''
    PATH=$PATH:/run/wrappers/bin:/usr/bin:/bin
    view=$(mktemp -d)
    nix-store-fs --root ${hello} "$view" &
    server=$!
    trap 'kill "$server"; wait "$server" || true; rmdir "$view"' EXIT
    until findmnt "$view" >/dev/null; do
      kill -0 "$server"
    done

    echo "The closure of ${hello}, and nothing else:"
    ls "$view"
    echo "A program out of it:"
    "$view/$(basename ${hello})/bin/hello"
    echo "A path of the store that is not in it:"
    ls -d ${git}
    ls -d "$view/$(basename ${git})" || true
  '';
}
