//! What a test needs of the machine.
//!
//! A test that cannot have it says so and passes, so that a developer without root can still run the rest. With
//! `CI` set it fails instead: there, a test that does not run is a promise that nobody checks. The line goes to
//! standard error past the test harness, which would keep it to itself, and to a file that `scripts/test` shows.

use std::io::Write;
use std::path::Path;

/// Something that not every machine has.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Need {
    Root,
    Fuse,
    Nix,
    Busybox,
    Nspawn,
    Bubblewrap,
    /// The daemon in Rust, which has other options than the one that came with qemu 7.
    Virtiofsd,
    /// qemu, and the kernel for a small guest that `scripts/setup --test` makes, both for amd64.
    GuestKernel,
    Fusermount,
    Jq,
    Graphviz,
    /// A browser without a window.
    Chromium,
    Cgroup2,
    /// What `scripts/setup --test` makes: a small system to boot, and the directory `/nix`.
    Guest,
    /// Linux 6.9, which no promise of the program's depends on.
    Passthrough,
    /// Linux 5.13, started with Landlock: a line in the log says where it is missing.
    Landlock,
    /// Linux 6.16, which can be told to ask for every name again.
    Epoch,
    /// Linux 6.15, which tells whoever has a pidfd of a process how it has ended.
    ProcessEnd,
    /// Linux 6.9, which gives back what a killed server had taken.
    Resend,
    /// Scratch files that the page cache can let go of, and read again.
    Disk,
    /// Linux 6.14 for `RWF_DONTCACHE`, which spares memory and is no promise.
    DontCache,
    /// Linux 6.12, without which the module refuses private users.
    Idmap,
    /// A control group whose memory can be limited.
    MemoryGroup,
    /// Image files mounted as file systems.
    LoopDevice,
    /// ext4 for scratch files, or what a file system in an image file needs.
    Ext4,
    Btrfs,
    Xfs,
    /// A compiler of 32-bit programs, and a kernel that runs them.
    Compiler32,
    /// Ordinary users who make namespaces.
    UserNamespaces,
    /// Linux 5.11: their overlays.
    UserOverlay,
    /// Linux 6.6: such overlays in memory.
    UserOverlayInMemory,
    /// A directory `/nix`, on which a store is mounted in a namespace.
    NixDirectory,
    /// Podman with crun, and ids for an ordinary user's containers.
    Podman,
    /// The shells that completions are made for, and what shows manual pages.
    Shells,
}

impl Need {
    pub(crate) fn missing(self) -> Option<&'static str> {
        let (there, what) = match self {
            Self::Root => (rustix::process::geteuid().is_root(), "to run as root"),
            Self::Fuse => (
                std::fs::OpenOptions::new().read(true).write(true).open("/dev/fuse").is_ok(),
                "/dev/fuse, readable and writable",
            ),
            Self::Nix => (in_path("nix-store"), "the command nix-store"),
            Self::NixDirectory => (Path::new("/nix").is_dir(), "a directory /nix to mount on"),
            Self::UserNamespaces => (ordinary_users_make_namespaces(), "user namespaces for ordinary users"),
            Self::UserOverlay => (kernel_release() >= (5, 11), "Linux 5.11 for overlays of ordinary users"),
            Self::UserOverlayInMemory => {
                (kernel_release() >= (6, 6), "Linux 6.6 for overlays of ordinary users in memory")
            }
            Self::Shells => (
                ["bash", "zsh", "fish", "groff"].iter().all(|name| in_path(name)),
                "the commands bash, zsh, fish and groff",
            ),
            Self::Podman => (
                ["podman", "crun", "newuidmap"].iter().all(|name| in_path(name)),
                "the commands podman, crun and newuidmap",
            ),
            Self::Busybox => (in_path("busybox"), "a static busybox"),
            Self::Nspawn => (in_path("systemd-nspawn"), "the command systemd-nspawn"),
            Self::Bubblewrap => (in_path("bwrap"), "the command bwrap"),
            Self::Virtiofsd => (virtiofsd().is_some(), "virtiofsd 1.0 or newer"),
            Self::GuestKernel => (
                in_path("qemu-system-x86_64") && super::cache().join("guest-kernel/vmlinuz").is_file(),
                "qemu-system-x86_64, and the kernel that scripts/setup --test makes",
            ),
            Self::Fusermount => (in_path("fusermount3"), "the command fusermount3"),
            Self::Jq => (in_path("jq"), "the command jq"),
            Self::Graphviz => (in_path("dot"), "the command dot of Graphviz"),
            Self::Chromium => (
                super::browser::NAMES.iter().any(|name| in_path(name)),
                "the command chromium-headless-shell or chromium",
            ),
            Self::Cgroup2 => (
                super::mounts::all().iter().any(|mount| {
                    mount.kind == "cgroup2" && mount.options.iter().any(|option| option == "rw")
                }),
                "a control group tree of version 2, writable",
            ),
            Self::Guest => (
                super::guest().is_file() && Path::new("/nix").is_dir(),
                "the system to boot that scripts/setup --test makes",
            ),
            Self::Epoch => (kernel_release() >= (6, 16), "Linux 6.16 for FUSE_NOTIFY_INC_EPOCH"),
            Self::ProcessEnd => {
                (kernel_release() >= (6, 15), "Linux 6.15 to be told how a process has ended")
            }
            Self::Landlock => (nix_store_fs::sandbox::confines_files(), "Linux 5.13 with Landlock"),
            Self::Passthrough => (kernel_release() >= (6, 9), "Linux 6.9 for passthrough"),
            Self::Resend => (kernel_release() >= (6, 9), "Linux 6.9 to be given back what was taken"),
            Self::Disk => (is_on_disk(&std::env::temp_dir()), "ext4 or XFS for scratch files"),
            Self::DontCache => (kernel_release() >= (6, 14), "Linux 6.14 to read without caching"),
            Self::Idmap => (kernel_release() >= (6, 12), "Linux 6.12 for private users"),
            Self::MemoryGroup => (
                super::memory::MemoryGroup::new().is_some(),
                "control groups with the memory controller, writable",
            ),
            Self::LoopDevice => (
                std::fs::OpenOptions::new().read(true).write(true).open("/dev/loop-control").is_ok(),
                "loop devices",
            ),
            Self::Ext4 => (
                super::image::scratch_is_on_ext4()
                    || Self::LoopDevice.missing().is_none() && in_path("mkfs.ext4") && kernel_mounts("ext4"),
                "ext4 for scratch files, or mkfs.ext4 and loop devices",
            ),
            Self::Btrfs => {
                (in_path("mkfs.btrfs") && kernel_mounts("btrfs"), "mkfs.btrfs, and btrfs in the kernel")
            }
            Self::Xfs => (in_path("mkfs.xfs") && kernel_mounts("xfs"), "mkfs.xfs, and XFS in the kernel"),
            Self::Compiler32 => {
                (runs_32_bit_programs(), "a compiler of 32-bit programs, and a kernel that runs them")
            }
        };
        (!there).then_some(what)
    }

    /// Continuous integration runs on the kernel and the disk that it is given.
    fn is_excused(self) -> bool {
        match self {
            Self::Disk
            | Self::Landlock
            | Self::Epoch
            | Self::Passthrough
            | Self::ProcessEnd
            | Self::Resend
            | Self::DontCache
            | Self::Idmap
            | Self::UserOverlay
            | Self::UserOverlayInMemory
            | Self::LoopDevice => true,
            // A missing mkfs is not excused.
            Self::Ext4 => Self::LoopDevice.missing().is_some(),
            Self::Btrfs => !kernel_mounts("btrfs"),
            Self::Xfs => !kernel_mounts("xfs"),
            Self::Compiler32 | Self::GuestKernel => !cfg!(target_arch = "x86_64"),
            _ => false,
        }
    }
}

fn ordinary_users_make_namespaces() -> bool {
    let mut command = std::process::Command::new("setpriv");
    command.args(super::store::as_user(super::user::NOBODY)).args(["unshare", "-Urm", "true"]);
    command.output().is_ok_and(|output| output.status.success())
}

/// Where a command is.
pub(crate) fn find(command: &str) -> Option<std::path::PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|dir| dir.join(command)).find(|file| file.is_file())
}

/// Where virtiofsd is: `scripts/setup --test` builds it, and Debian has it outside of PATH.
pub(crate) fn virtiofsd() -> Option<std::path::PathBuf> {
    let places = [super::cache().join("virtiofsd/bin/virtiofsd"), "/usr/libexec/virtiofsd".into()];
    places.into_iter().find(|file: &std::path::PathBuf| file.is_file()).or_else(|| find("virtiofsd"))
}

/// Major and minor number of the running kernel.
pub(crate) fn kernel_release() -> (u32, u32) {
    let system = rustix::system::uname();
    let release = system.release().to_string_lossy();
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|number| number.parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

/// Whether files in `dir` lie on ext4 or XFS (`linux/magic.h`).
fn is_on_disk(dir: &Path) -> bool {
    rustix::fs::statfs(dir).is_ok_and(|fs| matches!(fs.f_type, 0xef53 | 0x5846_5342))
}

/// Whether the kernel has this file system; a module is loaded for it where there is one.
fn kernel_mounts(kind: &str) -> bool {
    let known = || {
        std::fs::read_to_string("/proc/filesystems")
            .is_ok_and(|text| text.lines().any(|line| line.split_whitespace().next_back() == Some(kind)))
    };
    known() || {
        let _loaded = std::process::Command::new("modprobe").args(["-q", kind]).status();
        known()
    }
}

/// Compiles the smallest 32-bit program and runs it.
fn runs_32_bit_programs() -> bool {
    let dir = super::scratch();
    let (source, program) = (dir.path().join("empty.c"), dir.path().join("empty"));
    std::fs::write(&source, "#include <stdio.h>\nint main(void) { return 0; }\n").expect("a source file");
    let succeeds =
        |command: &mut std::process::Command| command.output().is_ok_and(|output| output.status.success());
    succeeds(std::process::Command::new("cc").args(["-m32", "-o"]).arg(&program).arg(&source))
        && succeeds(&mut std::process::Command::new(&program))
}

fn in_path(command: &str) -> bool {
    find(command).is_some()
}

/// Whether all of it is there. Says what is not, and panics over it in continuous integration.
pub(crate) fn have(module: &str, needs: &[Need]) -> bool {
    let missing: Vec<&str> = needs.iter().filter_map(|need| need.missing()).collect();
    if missing.is_empty() {
        return true;
    }
    // The harness names a test's thread after it, except where it runs tests one by one in the main thread.
    let thread = std::thread::current();
    let test = thread.name().filter(|name| *name != "main").unwrap_or(module);
    let line = format!("{test} needs {}", missing.join(", and "));
    not_run(&line);
    let excused = needs.iter().all(|need| need.missing().is_none() || need.is_excused());
    assert!(excused || std::env::var_os("CI").is_none(), "{line}");
    false
}

/// Says what is not run, and why.
pub(crate) fn not_run(what: &str) {
    let line = format!("NOT RUN: {what}\n");
    std::io::stderr().write_all(line.as_bytes()).expect("standard error");
    let list = Path::new(env!("CARGO_TARGET_TMPDIR")).join("not-run");
    if let Ok(mut file) = std::fs::OpenOptions::new().create(true).append(true).open(list) {
        file.write_all(line.as_bytes()).expect("the list of tests not run");
    }
}

/// First line of a test that needs something of the machine; returns from it when that is not there.
macro_rules! need {
    ($($need:ident),+) => {
        if !$crate::util::gate::have(module_path!(), &[$($crate::util::gate::Need::$need),+]) {
            return;
        }
    };
}
