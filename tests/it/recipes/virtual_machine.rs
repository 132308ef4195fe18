//! The recipe for a virtual machine: virtiofsd, and a guest of qemu, emulated, that boots with a kernel and busybox alone.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};

use super::{Place, section, steps};
use crate::util::gate;
use crate::util::store::NixStore;

/// First process of the guest, with the text of the document for mounting the store. It tells what it sees, and then waits until it sees
/// `next`.
fn guest_init(mount: &str, probe: &str, next: &str) -> String {
    format!(
        "#!/bin/busybox sh
        /bin/busybox mkdir -p /proc /dev /nix/store
        /bin/busybox --install -s /bin
        export PATH=/bin
        mount -t proc proc /proc
        while read -r module; do insmod /modules/$module; done </modules/order
        {mount}
        {probe}
        # The program has unmounted it.
        {mount}
        ls /nix/store
        echo waiting
        for turn in $(seq 300); do
            if ls /nix/store | grep -q {next}; then echo listed; break; fi
            sleep 0.1
        done
        poweroff -f
        "
    )
}

/// Makes what the guest boots with in `dir`: the kernel that `scripts/setup --test` has fetched, and busybox.
fn guest_options(dir: &Path, init: &str) -> String {
    let kernel = crate::util::cache().join("guest-kernel");
    let root = dir.join("initramfs");
    fs::create_dir_all(root.join("bin")).unwrap();
    fs::write(root.join("init"), init).unwrap();
    fs::set_permissions(root.join("init"), fs::Permissions::from_mode(0o755)).unwrap();
    fs::copy(gate::find("busybox").unwrap(), root.join("bin/busybox")).unwrap();
    let packed = Command::new("sh")
        .args([
            "-c",
            "cp -r \"$1\" \"$2/modules\" && cd \"$2\" && find . | busybox cpio -o -H newc >../initramfs.cpio",
            "sh",
        ])
        .args([&kernel.join("modules"), &root])
        .output()
        .unwrap();
    assert!(packed.status.success(), "{packed:?}");
    format!(
        "-machine q35 -accel tcg -m 512 -nodefaults -no-user-config -display none -no-reboot -nic none -serial stdio \
         -kernel {} -initrd {} -append 'console=ttyS0 panic=-1 quiet'",
        kernel.join("vmlinuz").display(),
        dir.join("initramfs.cpio").display(),
    )
}

/// A real guest of qemu, emulated, whose store is the view.
#[test]
fn a_virtual_machine_over_a_view() {
    need!(Root, Fuse, Nix, Busybox, Virtiofsd, GuestKernel, NixDirectory);
    let place = Place::with_view(NixStore::new());
    let [host, guest] = section("A virtual machine");
    let next = place.store.add("next", &[&place.probed.probe], |path| {
        fs::write(path, &place.probed.probe.path).unwrap();
    });
    let init = guest_init(guest.trim(), &place.probed.command(), &next.base);
    let options = guest_options(place.machine.dir.path(), &init);
    let virtiofsd = gate::virtiofsd().unwrap();
    place.install("virtiofsd", &format!("#!/bin/sh\nexec {} \"$@\"\n", virtiofsd.display()));
    let steps = steps(&host.replace("MACHINE", &options));
    let [serve, boot, clean] = &steps[..] else { panic!("{host}") };
    place.do_step(serve);
    place.machine.until("ls /run", |text| text.lines().any(|name| name == "web.sock"));
    let mut machine = place.command(boot).stdout(Stdio::piped()).spawn().unwrap();
    let mut console = BufReader::new(machine.stdout.take().unwrap()).lines().map(Result::unwrap);
    let before: Vec<String> = console.by_ref().take_while(|line| line.trim_end() != "waiting").collect();
    place.probed.assert_private(&before.join("\n"));
    place.prepare(&format!(
        "cd {} && ln -sfn {} result && nix-store-fs reload web",
        place.machine.dir.path().display(),
        next.path
    ));
    assert!(console.any(|line| line.trim_end() == "listed"), "the guest does not see a reload");
    drop(console);
    assert!(machine.wait().unwrap().success());
    place.do_step(clean);
    place.assert_clean();
}
