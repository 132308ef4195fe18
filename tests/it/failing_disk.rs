//! A disk that fails for a while: a caller gets what is right or an error, and once the disk works again, what is right.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, ErrorKind, Read};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{RecvTimeoutError, channel};

use rustix::io::Errno;

use crate::util::faulty::{Cache, Call, Disk, Fault};
use crate::util::program::{Mounted, Program};
use crate::util::store::{Member, NixStore};
use crate::util::{self, DEADLINE, tree};

/// What a disk answers when it fails.
const ERRORS: [(&str, Errno); 9] = [
    ("EIO", Errno::IO),
    ("ENOMEM", Errno::NOMEM),
    ("EMFILE", Errno::MFILE),
    ("ENFILE", Errno::NFILE),
    ("EACCES", Errno::ACCESS),
    ("EPERM", Errno::PERM),
    ("ESTALE", Errno::STALE),
    ("ETIMEDOUT", Errno::TIMEDOUT),
    ("ENOSYS", Errno::NOSYS),
];

/// The calls that fail, each from the first one on or from a later one on.
fn faults(errno: Errno) -> Vec<(&'static str, Fault)> {
    let code = errno.raw_os_error();
    let of = |call| Fault::of(call, code);
    let mut faults = vec![
        ("lookup", of(Call::Lookup)),
        ("lookup, from the fourth on", Fault { after: 3, ..of(Call::Lookup) }),
        ("getattr", of(Call::Getattr)),
        ("read", of(Call::Read)),
        ("read behind 128 KiB", Fault { offset: 128 << 10, ..of(Call::Read) }),
        ("readdir", of(Call::Readdir)),
        ("readdir, from the second on", Fault { after: 1, ..of(Call::Readdir) }),
        ("readlink", of(Call::Readlink)),
    ];
    // A FUSE file system that answers ENOSYS to these says that it needs none of them.
    if errno != Errno::NOSYS {
        faults.extend([("open", of(Call::Open)), ("opendir", of(Call::Opendir))]);
    }
    faults
}

/// Bytes that differ from page to page and from file to file.
fn bytes(length: usize, seed: usize) -> Vec<u8> {
    (0..length / 8).flat_map(|number| (number * 8 + seed).to_le_bytes()).collect()
}

/// A directory for one fault, so that the kernel knows nothing of it from an earlier one.
fn build(path: &Path, seed: usize) {
    for dir in ["sub", "names", "kept"] {
        fs::create_dir_all(path.join(dir)).unwrap();
    }
    fs::write(path.join("text"), format!("text {seed}\n")).unwrap();
    fs::write(path.join("sub/leaf"), format!("leaf {seed}\n")).unwrap();
    fs::write(path.join("long"), bytes(300_000, seed)).unwrap();
    fs::write(path.join("held"), bytes(200_000, seed + 1)).unwrap();
    symlink("sub/leaf", path.join("link")).unwrap();
    // Long enough for a listing to take several calls.
    for number in 0..40 {
        fs::write(path.join("names").join(format!("{number:03}-{}", "n".repeat(240))), "n").unwrap();
        fs::write(path.join("kept").join(format!("{number:03}-{}", "k".repeat(240))), "k").unwrap();
    }
}

/// A view of a store path on a disk that can fail.
struct Failing {
    // Ended before the disk that its server reads.
    view: Mounted,
    disk: Disk,
    store: NixStore,
    member: Member,
}

impl Failing {
    fn new(io: &str, build: impl FnOnce(&Path)) -> Self {
        let store = NixStore::new();
        let member = store.add_in_place("failing", &[], build);
        let cache = if io == "passthrough" { Cache::Pages } else { Cache::Nothing };
        let disk = Disk::new(&store.physical(), cache);
        let uri = format!("{}&real={}", store.uri(), disk.path().display());
        let view = Program::new().args(["--store", &uri, "--system", &member.path, "--io", io]).mount();
        Self { view, disk, store, member }
    }

    fn seen(&self) -> PathBuf {
        self.view.path().join(&self.member.base)
    }

    fn real(&self) -> PathBuf {
        self.store.physical().join(&self.member.base)
    }
}

/// What was wrong, with what was done.
#[derive(Default)]
struct Wrong(Vec<String>);

impl Wrong {
    /// An answer has to be right.
    fn right<T: PartialEq + std::fmt::Debug>(&mut self, what: &str, answer: &io::Result<T>, real: &T) {
        match answer {
            Ok(seen) if seen == real => {}
            Ok(seen) => self.0.push(format!("{what}: {}", brief(seen))),
            Err(error) => self.0.push(format!("{what}: {error}")),
        }
    }

    /// An answer has to be right, or an error that does not say that there is nothing of the name.
    fn right_or_an_error<T: PartialEq + std::fmt::Debug>(
        &mut self,
        what: &str,
        answer: &io::Result<T>,
        real: &T,
    ) {
        match answer {
            Err(error) if !matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {}
            answer => self.right(what, answer, real),
        }
    }
}

/// The beginning of a value, since some are long.
fn brief(value: &impl std::fmt::Debug) -> String {
    let text = format!("{value:?}");
    text.chars().take(160).collect()
}

/// How much is read of an open file, and a sum over it: what is compared is short, for the sake of messages.
fn read_held(file: &File) -> io::Result<(usize, usize)> {
    let mut seen = vec![0; 200_000];
    let mut done = 0;
    while done < seen.len() {
        match file.read_at(&mut seen[done..], done as u64)? {
            0 => break,
            count => done += count,
        }
    }
    seen.truncate(done);
    let sum = seen.iter().fold(0_usize, |sum, byte| sum.wrapping_mul(31).wrapping_add(usize::from(*byte)));
    Ok((done, sum))
}

fn list_held(directory: impl AsFd) -> io::Result<Vec<String>> {
    let mut names = Vec::new();
    let mut listing = rustix::fs::Dir::read_from(directory)?;
    listing.rewind();
    for entry in listing {
        names.push(entry?.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    Ok(names)
}

/// Looks at everything in a directory while a fault lasts, and again when it is over. How many calls failed.
fn look(failing: &Failing, dir: &str, fault: Fault, what: &str, wrong: &mut Wrong) -> u64 {
    let (seen, real) = (failing.seen().join(dir), failing.real().join(dir));
    let real_entry = |name: &str| tree::entry(&real.join(name)).unwrap();
    let real_list = |name: &str| tree::list(&real.join(name)).unwrap();
    let held = File::open(seen.join("held"));
    let kept = File::open(seen.join("kept"));
    let (Ok(held), Ok(kept)) = (held, kept) else {
        wrong.0.push(format!("{what}: before it nothing can be opened any more"));
        return 0;
    };
    let real_held = read_held(&File::open(real.join("held")).unwrap()).unwrap();
    let real_kept = list_held(File::open(real.join("kept")).unwrap()).unwrap();

    failing.disk.fail(fault);
    for name in ["text", "long", "link", "sub/leaf"] {
        let answer = tree::entry(&seen.join(name));
        wrong.right_or_an_error(&format!("{what}: during it {name}"), &answer, &real_entry(name));
    }
    for name in ["names", "kept", "sub"] {
        let answer = tree::list(&seen.join(name));
        wrong.right_or_an_error(
            &format!("{what}: during it the listing of {name}"),
            &answer,
            &real_list(name),
        );
    }
    wrong.right_or_an_error(&format!("{what}: during it the open file"), &read_held(&held), &real_held);
    wrong.right_or_an_error(&format!("{what}: during it the open directory"), &list_held(&kept), &real_kept);
    for name in ["text", "long"] {
        let answer = seen.join(name).metadata().map(|meta| meta.len());
        let size = real.join(name).metadata().unwrap().len();
        wrong.right_or_an_error(&format!("{what}: during it the size of {name}"), &answer, &size);
    }
    if let Ok(meta) = seen.join("absent").symlink_metadata() {
        wrong.0.push(format!("{what}: during it a name that does not exist: {meta:?}"));
    }
    let failed = failing.disk.recover();

    wrong.right(&format!("{what}: after it the open file"), &read_held(&held), &real_held);
    wrong.right(&format!("{what}: after it the open directory"), &list_held(&kept), &real_kept);
    let mut names: Vec<String> = ["", "names", "kept", "sub", "text", "long", "link", "sub/leaf", "held"]
        .map(str::to_owned)
        .into_iter()
        .collect();
    names.extend(real_list("names").iter().step_by(9).map(|name| format!("names/{}", name.display())));
    for name in names {
        let answer = tree::entry(&seen.join(&name));
        wrong.right(&format!("{what}: after it {name}"), &answer, &real_entry(&name));
    }
    let absent = seen.join("absent").symlink_metadata().map_err(|error| error.kind()).err();
    if absent != Some(ErrorKind::NotFound) {
        wrong.0.push(format!("{what}: after it a name that does not exist: {absent:?}"));
    }
    failed
}

fn right_or_an_error_and_right_afterwards(io: &str) {
    let all: Vec<(String, Fault)> = ERRORS
        .iter()
        .flat_map(|(error, errno)| {
            faults(*errno).into_iter().map(move |(name, fault)| (format!("{error} to {name}"), fault))
        })
        .collect();
    let failing = Failing::new(io, |path| {
        for number in 0..all.len() {
            build(&path.join(number.to_string()), number);
        }
    });
    let mut wrong = Wrong::default();
    let mut failed: BTreeMap<String, u64> = BTreeMap::new();
    for (number, (what, fault)) in all.iter().enumerate() {
        let count = look(&failing, &number.to_string(), *fault, what, &mut wrong);
        *failed.entry(format!("{:?}", fault.call)).or_default() += count;
    }
    assert!(
        wrong.0.is_empty(),
        "{} answers are wrong, first:\n{}\ncalls that failed: {failed:?}",
        wrong.0.len(),
        wrong.0[..wrong.0.len().min(60)].join("\n")
    );
    // The program need not ask for attributes by themselves: they come with each name.
    let never: Vec<_> = failed.iter().filter(|(call, count)| **count == 0 && *call != "Getattr").collect();
    assert!(never.is_empty(), "the disk was never asked, so nothing is shown for: {never:?}");
}

/// Whatever call the disk refuses, with whatever error: never an absence, a shorter file or a shorter listing; and once
/// the disk works, all of it.
#[test]
fn a_disk_that_fails_for_a_while_with_io_cached() {
    need!(Root, Fuse, Nix);
    right_or_an_error_and_right_afterwards("cached");
}

/// The same when the kernel reads the files itself.
#[test]
fn a_disk_that_fails_for_a_while_with_io_passthrough() {
    need!(Root, Fuse, Nix, Passthrough);
    right_or_an_error_and_right_afterwards("passthrough");
}

/// The members themselves, while the disk refuses to look at any: the listing of the root is complete or an error, no
/// member is absent, and all of it is right once the disk works.
#[test]
fn members_on_a_disk_that_fails_for_a_while() {
    need!(Root, Fuse, Nix);
    let store = NixStore::new();
    let members = store.add_files("member", 20);
    let references: Vec<&Member> = members.iter().collect();
    let system = store.add("system", &references, |path| fs::write(path, "a system\n").unwrap());
    let real: Vec<PathBuf> = store
        .closure(&[&system])
        .iter()
        .map(|path| path.strip_prefix("/nix/store/").unwrap().into())
        .collect();
    let mut wrong = Wrong::default();
    for (error, errno) in ERRORS {
        // The kernel keeps what it has once been told of the root, so each view is a new one.
        let disk = Disk::new(&store.physical(), Cache::Nothing);
        let uri = format!("{}&real={}", store.uri(), disk.path().display());
        let view = Program::new().args(["--store", &uri, "--system", &system.path]).mount();
        disk.fail(Fault::of(Call::Lookup, errno.raw_os_error()));
        wrong.right_or_an_error(&format!("{error}: during it the root"), &tree::list(view.path()), &real);
        for member in &members[..10] {
            let answer = fs::read_to_string(view.path().join(&member.base));
            let contents = format!("{}\n", member.base);
            wrong.right_or_an_error(&format!("{error}: during it {}", member.base), &answer, &contents);
        }
        assert!(disk.recover() > 0, "{error}: the disk was never asked");
        wrong.right(&format!("{error}: after it the root"), &tree::list(view.path()), &real);
        for member in &members {
            let answer = fs::read_to_string(view.path().join(&member.base));
            wrong.right(
                &format!("{error}: after it {}", member.base),
                &answer,
                &format!("{}\n", member.base),
            );
        }
    }
    assert!(wrong.0.is_empty(), "{}", wrong.0.join("\n"));
}

fn in_the_middle_of_a_file(io: &str) {
    const SIZE: usize = 8 << 20;
    const FAILS_AT: usize = 4_500_000;
    let failing = Failing::new(io, |path| {
        fs::create_dir(path).unwrap();
        fs::write(path.join("big"), bytes(SIZE, 0)).unwrap();
    });
    let file = failing.seen().join("big");
    let code = Errno::IO.raw_os_error();
    failing.disk.fail(Fault { offset: FAILS_AT as u64, ..Fault::of(Call::Read, code) });
    let mut read = Vec::new();
    let answer = File::open(&file).unwrap().read_to_end(&mut read);
    let error = answer.expect_err("the end of the file was reached though the disk failed");
    assert_eq!(error.raw_os_error(), Some(code), "{error}");
    assert!(read.len() <= FAILS_AT && read == bytes(SIZE, 0)[..read.len()], "{} bytes", read.len());
    assert_eq!(file.metadata().unwrap().len(), SIZE as u64, "the size while the disk fails");
    assert!(failing.disk.recover() > 0, "the disk was never asked");
    assert_eq!(file.metadata().unwrap().len(), SIZE as u64, "the size when the disk works again");
    assert!(fs::read(&file).unwrap() == bytes(SIZE, 0), "other bytes when the disk works again");
}

/// A disk that cannot read the second half of a large file: an error there, and the file keeps its size.
#[test]
fn a_disk_that_fails_in_the_middle_of_a_file_with_io_cached() {
    need!(Root, Fuse, Nix);
    in_the_middle_of_a_file("cached");
}

/// The same when the kernel reads the file itself.
#[test]
fn a_disk_that_fails_in_the_middle_of_a_file_with_io_passthrough() {
    need!(Root, Fuse, Nix, Passthrough);
    in_the_middle_of_a_file("passthrough");
}

/// A file system may answer an error that the kernel takes from no FUSE server (`fuse_dev_do_write` refuses numbers from
/// 512 on), such as ENOTSUPP: whoever asked gets an error, and does not wait for ever.
#[test]
fn an_error_that_the_kernel_refuses_is_answered_all_the_same() {
    need!(Root, Fuse, Nix);
    let scratch = util::scratch();
    let helper = util::compile("refuse.c", scratch.path());
    let store = NixStore::new();
    let member = store.add("member", &[], |path| {
        fs::create_dir(path).unwrap();
        fs::write(path.join("file"), "contents\n").unwrap();
        symlink("file", path.join("link")).unwrap();
    });
    type Work = fn(&Path) -> io::Result<()>;
    let calls: [(&str, Work); 2] = [
        ("readlinkat", |path| fs::read_link(path.join("link")).map(drop)),
        ("preadv2", |path| fs::read(path.join("file")).map(drop)),
    ];
    let mut wrong = Vec::new();
    for (call, work) in calls {
        let wrapper = [helper.as_os_str(), "524".as_ref(), call.as_ref()];
        let view =
            Program::on(&store).args(["--system", &member.path, "--io", "cached"]).inside(wrapper).mount();
        let path = view.path().join(&member.base);
        let (tell, told) = channel();
        std::thread::spawn(move || tell.send(work(&path)));
        match told.recv_timeout(DEADLINE / 6) {
            Ok(Err(error)) if error.kind() != ErrorKind::NotFound => {}
            Ok(answer) => wrong.push(format!("{call}: {answer:?}")),
            Err(RecvTimeoutError::Timeout) => wrong.push(format!("{call}: no answer")),
            Err(RecvTimeoutError::Disconnected) => wrong.push(format!("{call}: the reader panicked")),
        }
        let other = view.path().join(&member.base).join("absent").symlink_metadata();
        assert!(other.is_err(), "the view answers");
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
