//! A load on an optimised store, where most files are names of a few: readers hold files, mappings and directories open
//! while the kernel evicts what they do not hold, because it is told to and because their control group has little memory.
//!
//! `NSF_OPTIMISED_SECONDS` says for how long in each of the four forms, and `NSF_SEED` from which seed; `scripts/stress
//! --optimised` runs the long form. The forms without killed servers matter by themselves: what a server has resumed
//! stays known to it until the view ends, so faults of evicted nodes show only in a server that nobody replaced.

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileExt, MetadataExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::fs::{Advice, Mode, OFlags};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use crate::util::load::{drop_kernel_caches, evict_names, say};
use crate::util::mapped::Mapping;
use crate::util::memory::MemoryGroup;
use crate::util::random::{Random, seed};
use crate::util::service::{Service, Victim};
use crate::util::store::{Member, NixStore};
use crate::util::{DEADLINE, number, wait_readable};

/// Threads that read.
const READERS: u64 = 3;
/// What each of them holds at most.
const HELD: usize = 40;
/// Store paths that are read, and directories and files in each.
const PATHS: usize = 3;
const DIRECTORIES: usize = 25;
const FILES: usize = 16;
/// Contents that all files but one of a directory share.
const CONTENTS: usize = 40;
/// The size of the file that a directory has for itself.
const OWN_SIZE: usize = 384 << 10;
/// What the readers' group may use beyond what they need without a view: less than half of what they read, and enough for
/// their buffers and for the pages that are being read, which cannot be evicted.
const ROOM: u64 = 12 << 20;

/// The bytes of a file: no two pages alike, and not the same for two numbers.
fn bytes(number: usize, size: usize) -> Vec<u8> {
    (0..size / 8).flat_map(|word| (word ^ (number << 40)).to_le_bytes()).collect()
}

/// An optimised store, and a profile that leads to one of two systems.
struct Optimised {
    store: NixStore,
    shared: Vec<Member>,
    systems: [(Member, Member); 2],
    link: PathBuf,
}

impl Optimised {
    fn new() -> Self {
        let store = NixStore::new();
        let shared: Vec<Member> = (0..PATHS)
            .map(|path| {
                store.add(&format!("package-{path}"), &[], |top| {
                    for directory in 0..DIRECTORIES {
                        let dir = top.join(format!("share-{}/d-{directory}", directory % 3));
                        fs::create_dir_all(&dir).unwrap();
                        for file in 0..FILES {
                            let content = (path + directory * 7 + file * 3) % CONTENTS;
                            let size = 8 + 8 * (content * content);
                            fs::write(dir.join(format!("f-{file}")), bytes(content, size)).unwrap();
                        }
                        let own = CONTENTS + path * DIRECTORIES + directory;
                        fs::write(dir.join("own"), bytes(own, OWN_SIZE)).unwrap();
                    }
                })
            })
            .collect();
        let systems = [0, 1].map(|number| {
            let own = store.add(&format!("own-{number}"), &[], |path| {
                fs::write(path, format!("{number}\n")).unwrap();
            });
            let references: Vec<&Member> = shared.iter().chain([&own]).collect();
            let system = store.add(&format!("system-{number}"), &references, |path| {
                fs::write(path, "a system\n").unwrap();
            });
            (system, own)
        });
        store.nix("nix-store", ["--optimise"], b"");
        let linked = store.physical().join(&shared[0].base).join("share-0/d-0/f-0").metadata().unwrap();
        assert!(linked.nlink() > 10, "the store is not optimised: {} links", linked.nlink());
        let link = store.profile("web/system", &systems[0].0.path);
        Self { store, shared, systems, link }
    }

    fn select(&self, number: usize) {
        let next = self.link.with_extension("next");
        symlink(&self.systems[number].0.path, &next).unwrap();
        fs::rename(&next, &self.link).unwrap();
    }
}

/// The readers: this test binary once more, in a control group of its own.
struct Readers {
    child: Child,
    group: MemoryGroup,
    dir: tempfile::TempDir,
}

impl Readers {
    fn start(optimised: &Optimised, view: &Path, seed: u64) -> Self {
        let group = MemoryGroup::new().expect("a control group");
        let dir = crate::util::scratch();
        let mut command = Command::new("sh");
        command
            .args(["-c", "echo $$ >\"$0\" && exec \"$@\""])
            .arg(group.processes())
            .arg(std::env::current_exe().unwrap())
            .args(["--exact", "optimised::the_readers", "--ignored", "--nocapture", "--test-threads=1"])
            .env("NSF_READERS", dir.path())
            .env("NSF_SEED", seed.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::null());
        fs::write(dir.path().join("view"), view.as_os_str().as_encoded_bytes()).unwrap();
        fs::write(dir.path().join("real"), optimised.store.physical().as_os_str().as_encoded_bytes())
            .unwrap();
        let bases: Vec<&str> = optimised.shared.iter().map(|member| member.base.as_str()).collect();
        fs::write(dir.path().join("bases"), bases.join("\n")).unwrap();
        let child = command.spawn().unwrap();
        let mut readers = Self { child, group, dir };
        let until = Instant::now() + DEADLINE;
        while !readers.dir.path().join("ready").exists() {
            assert_eq!(readers.child.try_wait().unwrap(), None, "the readers ended before they began");
            assert!(Instant::now() < until, "the readers do not begin");
            std::thread::sleep(Duration::from_millis(2));
        }
        // What the store below takes of its memory could be evicted as well, and who reads it next is charged for it.
        rustix::fs::syncfs(File::open(optimised.store.root()).unwrap()).unwrap();
        drop_kernel_caches();
        readers.group.limit(readers.group.used() + ROOM);
        readers
    }

    /// Lets them finish what they are at. What they found, and how often their group was at its limit.
    fn finish(mut self) -> (String, u64) {
        drop(self.child.stdin.take());
        let status = self.wait();
        let found = fs::read_to_string(self.dir.path().join("found")).unwrap_or_default();
        let reached = self.group.reached();
        match status {
            None => panic!("readers hang: {found}"),
            Some(status) => assert!(status.success(), "the readers ended with {status}: {found}"),
        }
        (found, reached)
    }

    fn wait(&mut self) -> Option<ExitStatus> {
        let ended = pidfd_open(Pid::from_child(&self.child), PidfdFlags::empty()).ok()?;
        let [ended] = wait_readable([&ended], Instant::now() + DEADLINE);
        if ended { self.child.wait().ok() } else { None }
    }
}

impl Drop for Readers {
    fn drop(&mut self) {
        let _ended = self.child.kill();
        let _reaped = self.wait();
    }
}

/// Not a test: what [`Readers`] starts, in a process of its own so that the control group holds it alone.
#[test]
#[ignore = "a part of the other tests of this module"]
fn the_readers() {
    let Some(dir) = std::env::var_os("NSF_READERS").map(PathBuf::from) else { return };
    let text = |name: &str| fs::read_to_string(dir.join(name)).unwrap();
    let (view, real) = (PathBuf::from(text("view")), PathBuf::from(text("real")));
    let expected = Expected::new(&real, text("bases").lines());
    fs::write(dir.join("ready"), "").unwrap();
    let enough = AtomicBool::new(false);
    let mut found = Found::default();
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..READERS)
            .map(|number| {
                let (view, expected, enough) = (&view, &expected, &enough);
                scope.spawn(move || {
                    Reader::new(view, expected, seed("an optimised store") + number).run(enough)
                })
            })
            .collect();
        // Until the other end is closed.
        let _nothing = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
        enough.store(true, Ordering::Relaxed);
        for thread in threads {
            found.add(thread.join().unwrap());
        }
    });
    let lines = [format!("{} calls, {} bytes compared, {} failed", found.calls, found.bytes, found.failed)];
    let lines: Vec<&str> = lines.iter().chain(&found.first).map(String::as_str).collect();
    fs::write(dir.join("found"), lines.join("\n")).unwrap();
}

/// The store as it is, the bytes of each inode once.
struct Expected {
    files: Vec<(PathBuf, Arc<Vec<u8>>)>,
    directories: Vec<PathBuf>,
    names: BTreeMap<PathBuf, Vec<String>>,
    bytes: HashMap<PathBuf, Arc<Vec<u8>>>,
}

impl Expected {
    fn new<'a>(real: &Path, bases: impl Iterator<Item = &'a str>) -> Self {
        let mut by_inode: HashMap<u64, Arc<Vec<u8>>> = HashMap::new();
        let mut expected = Self {
            files: Vec::new(),
            directories: Vec::new(),
            names: BTreeMap::new(),
            bytes: HashMap::new(),
        };
        let mut todo: Vec<PathBuf> = bases.map(PathBuf::from).collect();
        while let Some(path) = todo.pop() {
            let full = real.join(&path);
            let meta = full.symlink_metadata().unwrap();
            if meta.is_dir() {
                let names = list(File::open(&full).unwrap()).unwrap();
                todo.extend(names.iter().map(|name| path.join(name)));
                expected.names.insert(path.clone(), names);
                expected.directories.push(path);
            } else {
                let bytes =
                    by_inode.entry(meta.ino()).or_insert_with(|| Arc::new(fs::read(&full).unwrap())).clone();
                expected.bytes.insert(path.clone(), bytes.clone());
                expected.files.push((path, bytes));
            }
        }
        expected
    }
}

/// The names in an open directory, sorted, without `.` and `..`.
fn list(directory: impl AsFd) -> std::io::Result<Vec<String>> {
    let mut listing = rustix::fs::Dir::read_from(directory)?;
    listing.rewind();
    let mut names = Vec::new();
    for entry in listing {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if name != "." && name != ".." {
            names.push(name);
        }
    }
    names.sort();
    Ok(names)
}

#[derive(Debug, Default)]
struct Found {
    calls: u64,
    bytes: u64,
    failed: u64,
    /// The first failures.
    first: Vec<String>,
}

impl Found {
    fn add(&mut self, other: Self) {
        self.calls += other.calls;
        self.bytes += other.bytes;
        self.failed += other.failed;
        self.first.extend(other.first);
    }
}

/// What a reader keeps.
enum Held {
    Open(File),
    Mapped(Mapping),
    Directory(OwnedFd),
}

struct Reader<'a> {
    view: &'a Path,
    expected: &'a Expected,
    random: Random,
    held: Vec<(PathBuf, Held)>,
    found: Found,
}

/// Whether these are the bytes of a file from `from` on.
fn same(seen: &[u8], real: &[u8], from: usize) -> Result<u64, String> {
    if real.get(from..from + seen.len()) == Some(seen) {
        return Ok(seen.len() as u64);
    }
    Err(format!("other bytes, {} from {from} of {}", seen.len(), real.len()))
}

fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}

impl<'a> Reader<'a> {
    fn new(view: &'a Path, expected: &'a Expected, seed: u64) -> Self {
        Self { view, expected, random: Random::new(seed), held: Vec::new(), found: Found::default() }
    }

    fn run(mut self, enough: &AtomicBool) -> Found {
        while !enough.load(Ordering::Relaxed) {
            let (what, path, answer) = self.step();
            self.found.calls += 1;
            match answer {
                Ok(compared) => self.found.bytes += compared,
                Err(why) => {
                    self.found.failed += 1;
                    if self.found.first.len() < 10 {
                        self.found.first.push(format!("{what} {}: {why}", path.display()));
                    }
                }
            }
        }
        self.found
    }

    /// One call; how many bytes were compared, or what is wrong.
    fn step(&mut self) -> (&'static str, PathBuf, Result<u64, String>) {
        let (path, real) = &self.expected.files[self.random.below(self.expected.files.len())];
        let directory = &self.expected.directories[self.random.below(self.expected.directories.len())];
        let full = self.view.join(path);
        if self.held.len() >= HELD {
            let at = self.random.below(HELD);
            self.held.swap_remove(at);
        }
        match self.random.below(16) {
            0 | 1 => ("open", path.clone(), self.hold(path, &full, |file| Ok(Held::Open(file)))),
            2 => {
                let length = real.len();
                let map = |file| Mapping::new(file, length).map(Held::Mapped);
                ("map", path.clone(), self.hold(path, &full, map))
            }
            3 => {
                let full = self.view.join(directory);
                let answer = self.hold(directory, &full, |file| Ok(Held::Directory(file.into())));
                ("open directory", directory.clone(), answer)
            }
            4..=10 if !self.held.is_empty() => self.look(),
            11 => ("list", directory.clone(), self.list(directory)),
            12 => {
                let answer = match self.view.join(directory).join("absent").symlink_metadata() {
                    Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(0),
                    answer => Err(format!("{answer:?}")),
                };
                ("absent in", directory.clone(), answer)
            }
            13 => {
                let answer = full.symlink_metadata().map_err(text).and_then(|meta| {
                    if meta.len() == real.len() as u64 { Ok(0) } else { Err(format!("size {}", meta.len())) }
                });
                ("stat", path.clone(), answer)
            }
            _ => {
                let answer = fs::read(&full).map_err(text).and_then(|seen| {
                    if seen.len() == real.len() {
                        same(&seen, real, 0)
                    } else {
                        Err(format!("{} bytes", seen.len()))
                    }
                });
                ("read", path.clone(), answer)
            }
        }
    }

    fn hold(
        &mut self,
        path: &Path,
        full: &Path,
        keep: impl FnOnce(File) -> std::io::Result<Held>,
    ) -> Result<u64, String> {
        let held = File::open(full).and_then(keep).map_err(text)?;
        self.held.push((path.to_owned(), held));
        Ok(0)
    }

    fn list(&self, directory: &Path) -> Result<u64, String> {
        let seen = File::open(self.view.join(directory)).and_then(list).map_err(text)?;
        if seen == self.expected.names[directory] { Ok(0) } else { Err(format!("{seen:?}")) }
    }

    /// Looks at something that is held.
    fn look(&mut self) -> (&'static str, PathBuf, Result<u64, String>) {
        let at = self.random.below(self.held.len());
        let choice = self.random.below(1 << 20);
        let (path, held) = &self.held[at];
        let answer = match held {
            Held::Open(file) => {
                let real = &self.expected.bytes[path];
                if choice.is_multiple_of(3) {
                    // Its pages are read once more.
                    let _unsupported = rustix::fs::fadvise(file, 0, None, Advice::DontNeed);
                }
                let from = choice % real.len();
                let mut seen = vec![0; (real.len() - from).min(20_000)];
                file.read_exact_at(&mut seen, from as u64)
                    .map_err(text)
                    .and_then(|()| same(&seen, real, from))
            }
            Held::Mapped(mapping) => {
                mapping.bytes().map_err(text).and_then(|seen| same(&seen, &self.expected.bytes[path], 0))
            }
            Held::Directory(directory) if choice.is_multiple_of(4) => {
                list(directory).map_err(text).and_then(|seen| {
                    if seen == self.expected.names[path] { Ok(0) } else { Err(format!("{seen:?}")) }
                })
            }
            Held::Directory(directory) => {
                let names = &self.expected.names[path];
                let name = &names[choice % names.len()];
                match self.expected.bytes.get(&path.join(name)) {
                    Some(real) => read_in(directory, name).and_then(|seen| {
                        if seen.len() == real.len() {
                            same(&seen, real, 0)
                        } else {
                            Err(format!("{} bytes", seen.len()))
                        }
                    }),
                    None => {
                        rustix::fs::openat(directory, name, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
                            .map(|_| 0)
                            .map_err(text)
                    }
                }
            }
        };
        let what = match held {
            Held::Open(_) => "held open",
            Held::Mapped(_) => "held mapping",
            Held::Directory(_) => "held directory",
        };
        (what, path.clone(), answer)
    }
}

/// Reads a file by its name in an open directory.
fn read_in(directory: &OwnedFd, name: &str) -> Result<Vec<u8>, String> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let mut file = File::from(rustix::fs::openat(directory, name, flags, Mode::empty()).map_err(text)?);
    let mut bytes = Vec::new();
    std::io::Read::read_to_end(&mut file, &mut bytes).map_err(text)?;
    Ok(bytes)
}

fn load(io: &str, kills: bool) {
    let seed = seed("an optimised store");
    let optimised = Optimised::new();
    let mut service = Service::new(&optimised.store)
        .with([Path::new("--system"), &optimised.link])
        .with(["--io", io, "--prune"]);
    service.start_ready();
    let readers = Readers::start(&optimised, service.path(), seed);
    let what = format!("optimised store, --io {io}{}", if kills { ", with kills" } else { "" });

    let mut random = Random::new(seed);
    let until = Instant::now() + Duration::from_secs(number("NSF_OPTIMISED_SECONDS", 2));
    let mut counts = [0_u64; 4];
    let mut steps = 0_usize;
    // With --io passthrough the pages belong to the store below, and to whoever read them first. A slow machine may need
    // longer until the readers have read as much as they may keep.
    let full = || io == "passthrough" || readers.group.reached() > 0;
    while Instant::now() < until || !full() && Instant::now() < until + DEADLINE {
        std::thread::sleep(Duration::from_millis(20 + random.next() % 60));
        steps += 1;
        // Every other time the kernel evicts only for lack of memory, for a while.
        match random.below(8) {
            _ if steps / 8 % 2 == 1 => {}
            0 => drop_kernel_caches(),
            _ => evict_names(),
        }
        counts[0] += u64::from((steps / 8).is_multiple_of(2));
        if steps.is_multiple_of(12) {
            let number = steps / 12 % 2;
            optimised.select(number);
            service.reload_well();
            assert!(service.path().join(&optimised.systems[number].1.base).exists(), "{what}: not reloaded");
            counts[1] += 1;
        }
        // A server that is killed as soon as it serves is taken for a broken one, and its successor has to wait.
        if kills && steps.is_multiple_of(5) {
            let victim = if random.below(4) == 0 { Victim::Both } else { Victim::Server };
            service.kill(victim);
            if victim == Victim::Both {
                service.start_ready();
                counts[3] += 1;
            } else {
                counts[2] += 1;
            }
        }
    }
    let (found, reached) = readers.finish();
    let [drops, reloads, servers, both] = counts;
    let first = found.lines().next().unwrap_or_default();
    say(&format!(
        "{what}, seed {seed}: {first}; {drops} cache drops, {reloads} reloads, {servers} servers killed and {both} times \
         both, {reached} times at the limit of memory"
    ));
    assert!(first.ends_with(" 0 failed"), "{what}, seed {seed}:\n{found}");
    assert!(reached > 0 || io == "passthrough", "{what}: the group never was at its limit");
    service.stop();
}

/// Every call succeeds and every byte is right while the kernel evicts what nobody holds; no server is ever replaced.
#[test]
fn an_optimised_store_under_eviction_with_io_cached() {
    need!(Root, Fuse, Nix, MemoryGroup);
    load("cached", false);
}

/// The same when the kernel reads the files itself.
#[test]
fn an_optimised_store_under_eviction_with_io_passthrough() {
    need!(Root, Fuse, Nix, MemoryGroup, Passthrough);
    load("passthrough", false);
}

/// The same with servers killed in between, and sometimes their monitors.
#[test]
fn an_optimised_store_under_eviction_and_kills_with_io_cached() {
    need!(Root, Fuse, Nix, MemoryGroup);
    load("cached", true);
}

/// The same when the kernel reads the files itself.
#[test]
fn an_optimised_store_under_eviction_and_kills_with_io_passthrough() {
    need!(Root, Fuse, Nix, MemoryGroup, Passthrough);
    load("passthrough", true);
}
