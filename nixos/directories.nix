# What a container gets in the place of its profiles and its garbage collector roots: two directories of its own, which
# nobody on the host reads. Pure text.
#
# Why: the stock start script binds those of the host, writable. They decide what the container's view shows, and what the
# collector of the host keeps. A read-only bind would not do:
#   - root of a container without private users has but to remount it;
#   - the activation script of each system makes a link in gcroots, and of older ones directories in both. It fails if it
#     cannot, and so does a reload of the container (switch-to-configuration), though not its start.
#
# The present system of the container's profile is copied into them, as a link: containers that are not declared boot
# through it. Users of the host cannot enter them, since the container may leave set-user-ID programs there. They lie on the
# file system of what they replace, so that they can be idmapped where that could.
#
# Hard point: what the container left may be anything. Without private users its root can make it immutable (systemd-nspawn
# leaves it CAP_LINUX_IMMUTABLE), and it may be more than can be removed in time. So a start moves it out of the way, which
# needs nothing of it, and then removes what it can. chattr(1) is told each name in its own directory, as paths may be
# longer than the kernel takes, and finds nothing but files and directories of this file system.
let
  parent = "/nix/var/nix-store-fs";
  own = "${parent}/$INSTANCE";
  left = "${parent}/.left.$INSTANCE";
  # Everything in here may be the container's: `-T` keeps it from being taken for a directory.
  show = ''
    if system=$(readlink -e "/nix/var/nix/profiles/per-container/$INSTANCE/system"); then
      ln -sfT "$system" "${own}/profiles/system"
    fi'';
in
{
  inherit own parent show;

  # e2fsprogs: that package.
  make = e2fsprogs: ''
    mkdir -p "${parent}"
    chmod 0700 "${parent}"
    if [ -e "${parent}/''${INSTANCE:?}" ]; then
      mv -T "${own}" "$(mktemp -d "${left}.XXXXXX")"
    fi
    mkdir -p "${own}/profiles" "${own}/gcroots"
    chmod 0755 "${own}" "${own}/profiles" "${own}/gcroots"
    timeout 5 rm -rf --one-file-system "${left}."* 2>/dev/null || {
      PATH="${e2fsprogs}/bin:$PATH" timeout 5 find "${left}."* -xdev "(" -type d -o -type f ")" -execdir chattr -f -i -a {} + || :
      timeout 5 rm -rf --one-file-system "${left}."*
    } 2>/dev/null || echo "nix-store-fs: cannot remove all of what the container left in ${left}.*; its next start tries again" >&2
    ${show}'';
}
