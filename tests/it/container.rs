//! A container whose `/nix/store` is the view.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::util::fixture::Fixture;
use crate::util::gate;

/// Runs in a control group tree and mount namespace of its own where the machine's are not what nspawn wants. The namespace holds
/// no views but the container's: those of other tests would outlive their unmounting.
const WRAPPER: &str = r#"
set -e
while read -r source target kind rest; do
    if [ "$kind" = fuse.nix-store-fs ] && [ "$target" != "$STORE" ]; then umount -l "$target" || true; fi
done < /proc/self/mounts
if [ "$(stat -f -c %T /sys/fs/cgroup)" != cgroup2fs ]; then
    umount -R /sys/fs/cgroup
    mount -t cgroup2 none /sys/fs/cgroup
fi
exec "$@"
"#;

/// Makes a root directory for a container that runs one program: nothing is in it.
pub(crate) fn root_directory(root: &Path) {
    for directory in ["etc", "usr", "nix/store", "bin"] {
        fs::create_dir_all(root.join(directory)).unwrap();
    }
    fs::write(root.join("etc/os-release"), "ID=test\n").unwrap();
}

/// `systemd-nspawn` with that root directory and the last of `stores` bound read-only as `/nix/store`, above the others; `options` are
/// those of the binds. What it is to run is added.
pub(crate) fn nspawn(root: &Path, stores: &[&Path], options: &str) -> Command {
    let mut command = Command::new("unshare");
    command
        .args(["-m", "-C", "sh", "-c", WRAPPER, "sh"])
        .args(["systemd-nspawn", "--quiet", "--register=no", "--keep-unit", "--as-pid2", "--pipe", "-D"])
        .arg(root)
        .args(stores.iter().map(|store| format!("--bind-ro={}:/nix/store{options}", store.display())))
        .env("STORE", stores.last().unwrap());
    command
}

/// `systemd-nspawn` runs a program out of the view, and what is outside the closure is not in the container.
#[test]
fn nspawn_runs_a_program_out_of_the_view() {
    need!(Root, Fuse, Nix, Busybox, Nspawn);
    let fixture = Fixture::new();
    let busybox = fixture.store.add("busybox", &[], |path| {
        fs::create_dir_all(path.join("bin")).unwrap();
        fs::copy(gate::find("busybox").unwrap(), path.join("bin/busybox")).unwrap();
    });
    let view = fixture.program().args(["--root", &busybox.path]).mount();

    let root = crate::util::scratch();
    root_directory(root.path());
    let program = format!("{}/bin/busybox", busybox.path);
    std::os::unix::fs::symlink(&program, root.path().join("bin/sh")).unwrap();
    let script = format!(
        "cd /nix/store && {program} ls -1 && {program} cat {data}/text && {program} readlink {system}/sw; \
         {program} ls -d {outside} .links; {program} touch {data}/new",
        data = fixture.data.path,
        system = fixture.system.path,
        outside = fixture.outside.path,
    );
    let output = nspawn(root.path(), &[view.path()], "")
        .args(["/bin/sh", "-c", &script])
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let stdout = String::from_utf8_lossy(&output.stdout);
    let stderr = String::from_utf8_lossy(&output.stderr);
    let mut expected = fixture.members();
    expected.push(busybox.base);
    expected.sort();
    expected.extend(["hello".to_owned(), fixture.data.path.clone()]);
    assert_eq!(stdout.lines().collect::<Vec<_>>(), expected, "{stderr}");
    for refused in
        [&format!("{}: No such file", fixture.outside.path), ".links: No such file", "Read-only file system"]
    {
        assert!(stderr.contains(refused), "{refused}: {stderr}");
    }
    assert!(Path::new(&fixture.store.physical().join(&fixture.outside.base)).exists());
}
