//! The view as the lower layer of an overlay, and programs that run out of either.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::util::fixture::Fixture;
use crate::util::gate;
use crate::util::mounts::Own;
use crate::util::store::Member;
use crate::util::tree;

/// Adds a static busybox, and a system that refers to it.
fn with_busybox(fixture: &Fixture) -> (Member, PathBuf) {
    let busybox = fixture.store.add("busybox", &[], |path| {
        fs::create_dir_all(path.join("bin")).unwrap();
        fs::copy(gate::find("busybox").unwrap(), path.join("bin/busybox")).unwrap();
    });
    let program = Path::new(&busybox.base).join("bin/busybox");
    (busybox, program)
}

fn echo(program: &Path) -> String {
    let output = Command::new(program).args(["echo", "it runs"]).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// Executing maps the program out of the view; so does the loader with a program that is linked dynamically.
#[test]
fn programs_run_out_of_the_view() {
    need!(Root, Fuse, Nix, Busybox);
    let fixture = Fixture::new();
    let (busybox, program) = with_busybox(&fixture);
    let dynamic = fixture.store.add("dynamic", &[], |path| {
        fs::create_dir(path).unwrap();
        fs::copy("/bin/cat", path.join("cat")).unwrap();
    });
    let view = fixture.program().args(["--root", &busybox.path, "--root", &dynamic.path]).mount();
    assert_eq!(echo(&view.path().join(program)), "it runs\n");
    let text = view.path().join(&fixture.data.base).join("text");
    let cat = Command::new(view.path().join(&dynamic.base).join("cat")).arg(&text).output().unwrap();
    assert_eq!(cat.stdout, b"hello\n", "{cat:?}");
    let script = Command::new(view.path().join(&fixture.data.base).join("program")).output().unwrap();
    assert_eq!(script.stdout, b"ran\n", "{script:?}");
}

/// A writable store on top of the view: everything below shows, everything may be changed, the view stays as it is.
#[test]
fn an_overlay_on_the_view_is_writable() {
    need!(Root, Fuse, Nix, Busybox);
    let fixture = Fixture::new();
    let (busybox, program) = with_busybox(&fixture);
    let view = fixture.program().args(["--root", &busybox.path]).mount();
    let before = tree::walk(view.path(), &fixture.data.base);

    let dir = crate::util::scratch();
    // The upper layer is a file system of its own, since the scratch directory may itself be on an overlay.
    let _upper = Own::mount("tmpfs", dir.path(), "mode=0755");
    let [upper, work, merged] = ["upper", "work", "merged"].map(|name| dir.path().join(name));
    for path in [&upper, &work, &merged] {
        fs::create_dir(path).unwrap();
    }
    let options =
        format!("lowerdir={},upperdir={},workdir={}", view.path().display(), upper.display(), work.display());
    let _overlay = Own::mount("overlay", &merged, &options);

    assert_eq!(tree::list(&merged).unwrap(), tree::list(view.path()).unwrap());
    tree::assert_same(&before, &tree::walk(&merged, &fixture.data.base));
    assert_eq!(echo(&merged.join(&program)), "it runs\n");

    let data = merged.join(&fixture.data.base);
    fs::write(merged.join("new-path"), "built inside\n").unwrap();
    rustix::fs::chmod(&data, rustix::fs::Mode::RWXU).unwrap();
    fs::write(data.join("new"), "new\n").unwrap();
    rustix::fs::chmod(data.join("text"), rustix::fs::Mode::RWXU).unwrap();
    fs::write(data.join("text"), "changed\n").unwrap();
    fs::remove_file(data.join("empty")).unwrap();
    fs::rename(data.join("same"), data.join("renamed")).unwrap();
    fs::copy(merged.join(&program), merged.join("busybox")).unwrap();
    assert_eq!(echo(&merged.join("busybox")), "it runs\n");

    assert_eq!(fs::read_to_string(merged.join("new-path")).unwrap(), "built inside\n");
    assert_eq!(fs::read_to_string(data.join("text")).unwrap(), "changed\n");
    assert_eq!(fs::read_to_string(data.join("renamed")).unwrap(), "shared contents\n");
    assert!(!data.join("empty").exists());
    tree::assert_same(&before, &tree::walk(view.path(), &fixture.data.base));
}
