//! Requests of the kernel, one after another, through the handlers, with a model of what the kernel has been told.
//!
//! The kernel is honest about what it forgets, and asks for whatever it likes: nodes that it was never told of, names of any bytes,
//! positions and lengths of any size, and bytes that are no request. So may the memory be that an earlier server left.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};

use nix_store_fs::fuse::abi::{
    AttrOut, BatchForgetIn, DirentPlus, EntryOut, ForgetOne, InHeader, LseekIn, OpenIn, OutHeader, ReadIn,
    ReleaseIn, StatfsOut, opcode,
};
use nix_store_fs::fuse::{Device, Ledger, Operation, Request};
use nix_store_fs::protocol::handshake::Promised;
use nix_store_fs::server::counts::Counts;
use nix_store_fs::server::fuse::StoreFs;
use nix_store_fs::server::open_journal;
use nix_store_fs::server::root_names::RootNames;
use nix_store_fs::view::journal::{Home, Journal, Record};
use nix_store_fs::view::trie::{NodeId, PathTrie, ROOT};
use nix_store_fs::view::usage::Usage;
use nix_store_fs::view::{Registrations, ServedView, Stale};
use zerocopy::{FromBytes, FromZeros, IntoBytes};

use crate::bytes::Bytes;
use crate::world::{MEMBERS, NAMES, OUTSIDE, WORLD, view};

const ENOENT: i32 = -2;
const EROFS: i32 = -30;
const ESTALE: i32 = -116;

/// A server, and the kernel that asks it.
struct Kernel {
    fs: StoreFs,
    view: Arc<ServedView>,
    trie: Arc<PathTrie>,
    device: Arc<Device>,
    kernel: UnixDatagram,
    _stale: Receiver<Stale>,
    unique: u64,
    /// What the nodes are that the kernel knows, below the store directory.
    known: BTreeMap<u64, PathBuf>,
    /// How often it was told of each.
    told: BTreeMap<u64, u64>,
    shown: BTreeSet<String>,
    /// Every member that there ever was.
    ever: BTreeSet<String>,
    epoch: u32,
    /// Where listings ended.
    positions: Vec<u64>,
    passthrough: bool,
    journal: bool,
    resumed: bool,
}

fn journal_path() -> PathBuf {
    WORLD.dir.path().join("requests")
}

impl Kernel {
    fn new(passthrough: bool, journal: bool) -> Self {
        let trie = Arc::new(PathTrie::new());
        let written = journal.then(|| Arc::new(Journal::create(&journal_path()).unwrap()));
        let (kernel, device) = UnixDatagram::pair().unwrap();
        kernel.set_nonblocking(true).unwrap();
        let device = Arc::new(Device::from(OwnedFd::from(device)));
        let (fs, view, stale) = serve(&trie, written, passthrough);
        let mut all = Self {
            fs,
            view,
            trie,
            device,
            kernel,
            _stale: stale,
            unique: 0,
            known: BTreeMap::from([(ROOT.0, PathBuf::new())]),
            told: BTreeMap::new(),
            shown: BTreeSet::new(),
            ever: BTreeSet::new(),
            epoch: 0,
            positions: vec![0],
            passthrough,
            journal,
            resumed: false,
        };
        all.switch(0b0111);
        all
    }

    fn switch(&mut self, bits: u8) {
        let next = view(bits);
        self.epoch += 1;
        let fresh = self.trie.prepare(&next);
        self.view.record(&fresh.into_iter().map(Record::Node).collect::<Vec<_>>());
        self.trie.switch(&next, self.epoch);
        self.shown = next.names().map(ToString::to_string).collect();
        for name in &self.shown {
            // Whether the kernel was told of it or not: the node of a member is there to the end.
            let node = self.trie.find(ROOT, name.as_bytes()).expect("a node for each member");
            self.known.insert(node.0, name.into());
            self.ever.insert(name.clone());
        }
    }

    /// The server dies, and another one resumes.
    fn resume(&mut self) {
        let trie = Arc::new(PathTrie::new());
        let home = Home::open(&journal_path()).unwrap();
        let journal = open_journal(home, &trie, None, &mut Vec::new()).unwrap();
        (self.fs, self.view, self._stale) = serve(&trie, Some(journal), self.passthrough);
        self.trie = trie;
        self.resumed = true;
        let bits =
            (0..).zip(MEMBERS).filter(|(_, name)| self.shown.contains(*name)).map(|(n, _)| 1 << n).sum();
        self.switch(bits);
        for (id, path) in &self.known {
            let restored = self.trie.path(NodeId(*id)).unwrap_or_else(|| panic!("{id} of {path:?} is lost"));
            let restored = Path::new(OsStr::from_bytes(&restored));
            // A restored node is never forgotten. It has the name that came first, and may be told by another one of its file.
            let file = |path: &Path| WORLD.store.join(path).symlink_metadata().unwrap();
            assert!(
                restored == path || file(path).is_file() && file(restored).ino() == file(path).ino(),
                "{restored:?}, not {path:?}"
            );
        }
    }

    fn node(&self, bytes: &mut Bytes<'_>) -> u64 {
        let pick = bytes.byte();
        if pick >= 0xf0 {
            return bytes.long();
        }
        let at = usize::from(pick) % (self.known.len() + 1);
        self.known.keys().nth(at).copied().unwrap_or_else(|| self.trie.next().0)
    }

    /// Asks; the answer, if there has to be one, is one that the kernel takes (`fuse_dev_do_write`).
    fn ask(&mut self, opcode: u32, node: u64, body: &[u8]) -> (i32, Vec<u8>) {
        self.unique += 2;
        let len = (size_of::<InHeader>() + body.len()) as u32;
        let header =
            InHeader { len, opcode, unique: self.unique, node, uid: 0, gid: 0, pid: 1, extensions: 0 };
        self.send(&[header.as_bytes(), body].concat())
    }

    fn send(&mut self, bytes: &[u8]) -> (i32, Vec<u8>) {
        let Some(request) = Request::parse(bytes) else { return (0, Vec::new()) };
        // A slot with this id has nothing in it.
        if request.unique == 0 {
            return (0, Vec::new());
        }
        self.fs.handle(&request, self.device.answer(request.unique));
        let mut reply = vec![0; 200_000];
        let answer = self.kernel.recv(&mut reply);
        if !request.operation.has_answer() {
            assert!(answer.is_err(), "an answer that nobody waits for: {request:?}");
            return (0, Vec::new());
        }
        reply.truncate(answer.unwrap_or_else(|_| panic!("no answer to {request:?}")));
        let (header, body) = OutHeader::read_from_prefix(&reply).unwrap();
        assert_eq!((header.len as usize, header.unique), (reply.len(), request.unique));
        assert!((-511..=0).contains(&header.error), "{request:?}: {}", header.error);
        assert!(header.error == 0 || body.is_empty());
        assert!(self.kernel.recv(&mut [0; 16]).is_err(), "two answers to {request:?}");
        if matches!(request.operation, Operation::Read { size, .. } | Operation::Readdirplus { size, .. } if body.len() > size as usize)
        {
            panic!("more than was asked for: {} of {request:?}", body.len());
        }
        (header.error, body.to_vec())
    }

    fn real(&self, node: u64) -> Option<PathBuf> {
        self.known.get(&node).map(|path| WORLD.store.join(path))
    }

    /// The kernel was told that `node` is `name` in `parent`.
    fn learn(&mut self, parent: u64, name: &[u8], entry: &EntryOut) {
        let name = str::from_utf8(name).expect("no name in the store is anything else");
        let dir = self.known.get(&parent).unwrap_or_else(|| panic!("{parent} is not known"));
        let path = dir.join(name);
        assert!(!name.contains('/') && !matches!(name, "" | "." | ".."), "{name:?}");
        assert!(!path.starts_with(OUTSIDE), "{path:?} is not in the view");
        assert!(parent != ROOT.0 || self.shown.contains(name), "{path:?} is not in the view");
        let real =
            WORLD.store.join(&path).symlink_metadata().unwrap_or_else(|_| panic!("{path:?} is not there"));
        check_attributes(&entry.attr, entry.node, &real);
        match self.known.get(&entry.node) {
            Some(before) => {
                let other = WORLD.store.join(before).symlink_metadata().unwrap();
                assert_eq!(other.ino(), real.ino(), "{before:?} and {path:?} have one node");
                assert!(real.is_file() || *before == path);
            }
            None => drop(self.known.insert(entry.node, path)),
        }
        *self.told.entry(entry.node).or_default() += 1;
    }

    fn lookup(&mut self, parent: u64, name: &[u8]) {
        let (error, body) = self.ask(opcode::LOOKUP, parent, &[name, b"\0"].concat());
        // What the server saw of it.
        let name = name.split(|byte| *byte == 0).next().unwrap_or_default();
        let there =
            |path: &Path| str::from_utf8(name).is_ok_and(|name| path.join(name).symlink_metadata().is_ok());
        let is_plain = !matches!(name, b"" | b"." | b"..") && !name.contains(&b'/');
        if error == 0 {
            let (entry, rest) = EntryOut::read_from_prefix(&body).unwrap();
            assert!(rest.is_empty());
            if entry.node != 0 {
                return self.learn(parent, name, &entry);
            }
        }
        let Some(real) = self.real(parent).filter(|real| real.is_dir() && !real.is_symlink() && is_plain)
        else {
            return;
        };
        let member = if parent == ROOT.0 { name } else { self.member(parent).as_bytes() };
        let shown = str::from_utf8(member).is_ok_and(|member| self.shown.contains(member));
        assert!(!shown || !there(&real), "{} in {real:?}: {error}", name.escape_ascii());
        assert!(
            error == 0 || error == ENOENT || name.len() > 255,
            "{error}: {} in {real:?}",
            name.escape_ascii()
        );
    }

    fn member(&self, node: u64) -> &str {
        let first = self.known.get(&node).and_then(|path| path.iter().next());
        first.and_then(|first| first.to_str()).unwrap_or_default()
    }

    fn list(&mut self, node: u64, offset: u64, size: u32) {
        let read = ReadIn { offset, size, ..ReadIn::new_zeroed() };
        let (error, body) = self.ask(opcode::READDIRPLUS, node, read.as_bytes());
        if error != 0 || !self.known.contains_key(&node) {
            return;
        }
        let (mut rest, mut last) = (&body[..], offset);
        // As `parse_dirplusfile` of the kernel reads it.
        while rest.len() >= size_of::<DirentPlus>() {
            let (DirentPlus { entry, dirent }, behind) = DirentPlus::read_from_prefix(rest).unwrap();
            let length = dirent.name_len as usize;
            let name = &behind[..length];
            rest =
                &behind[(size_of::<DirentPlus>() + length).next_multiple_of(8) - size_of::<DirentPlus>()..];
            assert!(dirent.offset > last || offset > i32::MAX as u64 || node == ROOT.0, "positions grow");
            assert!(dirent.offset <= i32::MAX as u64, "a position that a 32-bit program cannot hold");
            last = dirent.offset;
            self.positions.push(last);
            if name == b"." || name == b".." {
                continue;
            }
            if entry.node == 0 {
                assert!(node == ROOT.0 && !self.shown.contains(str::from_utf8(name).unwrap()));
                continue;
            }
            self.learn(node, name, &entry);
        }
        assert!(rest.is_empty() || node == ROOT.0 && rest == &body[..], "something behind the entries");
    }

    fn forget(&mut self, id: u64, count: u64) -> ForgetOne {
        let told = self.told.get_mut(&id);
        let lookups = match told {
            Some(told) => {
                let count = count.min(*told);
                *told -= count;
                count
            }
            // Never told of, or a member: nothing comes of it.
            None if self.known.contains_key(&id) => 0,
            None => count,
        };
        if self.told.get(&id) == Some(&0) {
            self.told.remove(&id);
            if self.known.get(&id).is_some_and(|path| path.components().count() > 1) {
                self.known.remove(&id);
            }
        }
        ForgetOne { node: id, lookups }
    }

    fn examine(&mut self, node: u64, offset: u64, size: u32) {
        let (error, body) = self.ask(opcode::GETATTR, node, &[0; 16]);
        let Some(real) = self.real(node) else { return };
        assert_eq!(error, 0, "{real:?}");
        let (out, _) = AttrOut::read_from_prefix(&body).unwrap();
        let meta = real.symlink_metadata().unwrap();
        if node != ROOT.0 {
            check_attributes(&out.attr, node, &meta);
        }
        let read = ReadIn { offset, size, ..ReadIn::new_zeroed() };
        let (error, body) = self.ask(opcode::READ, node, read.as_bytes());
        assert_eq!(error == 0, meta.is_file(), "reading {real:?} at {offset}: {error}");
        if error == 0 {
            let mut expected = vec![0; (size as usize).min(100_000)];
            let there = fs::File::open(&real).unwrap().read_at(&mut expected, offset).unwrap_or_default();
            assert_eq!(body, expected[..there], "{real:?} at {offset}");
        }
        let (error, body) = self.ask(opcode::READLINK, node, &[]);
        assert_eq!(error == 0, meta.is_symlink(), "{real:?}");
        assert!(error != 0 || body == fs::read_link(&real).unwrap().as_os_str().as_bytes());
        let seek = LseekIn { offset, whence: 3 + size % 2, ..LseekIn::new_zeroed() };
        let (error, body) = self.ask(opcode::LSEEK, node, seek.as_bytes());
        if error == 0 {
            let found = u64::from_ne_bytes(body.try_into().unwrap());
            assert!(found >= offset && found <= meta.len());
        }
    }

    fn step(&mut self, bytes: &mut Bytes<'_>) {
        match bytes.byte() % 16 {
            0..3 => {
                let node = self.node(bytes);
                let name = bytes.pick(&NAMES);
                self.lookup(node, name.as_bytes());
            }
            3 => {
                let name = bytes.pick(&[MEMBERS[0], MEMBERS[1], MEMBERS[2], MEMBERS[3], OUTSIDE]);
                self.lookup(ROOT.0, name.as_bytes());
            }
            4 => {
                let node = self.node(bytes);
                let name = bytes.short();
                self.lookup(node, name);
            }
            5 | 6 => {
                let node = self.node(bytes);
                let at = usize::from(bytes.byte());
                let offset = match at {
                    0..=100 => 0,
                    250.. => bytes.long(),
                    _ => self.positions[at % self.positions.len()],
                };
                let size = bytes.half().into();
                self.list(node, offset, size);
            }
            7 => {
                let one = {
                    let id = self.node(bytes);
                    self.forget(id, bytes.byte().into())
                };
                self.ask(opcode::FORGET, one.node, one.lookups.as_bytes());
            }
            8 => {
                let count = bytes.byte() % 8;
                let ones: Vec<_> = (0..count)
                    .map(|_| {
                        let id = self.node(bytes);
                        self.forget(id, bytes.byte().into())
                    })
                    .collect();
                let head = BatchForgetIn { count: count.into(), padding: 0 };
                self.ask(opcode::BATCH_FORGET, 0, &[head.as_bytes(), ones.as_bytes()].concat());
            }
            9 | 10 => {
                let node = self.node(bytes);
                let offset = if bytes.flag() { bytes.half().into() } else { bytes.long() };
                let size = if bytes.flag() { bytes.half().into() } else { bytes.word() };
                self.examine(node, offset, size);
            }
            11 => {
                let node = self.node(bytes);
                let open = OpenIn { flags: bytes.word(), open_flags: 0 };
                let (error, _) = self.ask(opcode::OPEN, node, open.as_bytes());
                assert!(open.flags & 3 == 0 || error == EROFS, "opened for writing: {error}");
                let release = ReleaseIn { handle: bytes.long(), ..ReleaseIn::new_zeroed() };
                self.ask(opcode::RELEASE, node, release.as_bytes());
            }
            12 => {
                let changes =
                    [opcode::WRITE, opcode::SETATTR, opcode::CREATE, opcode::UNLINK, opcode::RENAME2];
                let (node, change) = (self.node(bytes), *bytes.pick(&changes));
                let (error, _) = self.ask(change, node, bytes.short());
                assert_eq!(error, EROFS);
            }
            13 => {
                let (error, body) = self.ask(opcode::STATFS, ROOT.0, &[]);
                assert_eq!(
                    (error, StatfsOut::read_from_bytes(&body).unwrap().files),
                    (0, self.shown.len() as u64)
                );
                let unknown = self.trie.next().0 + 1;
                assert_eq!(self.ask(opcode::GETATTR, unknown, &[]).0, ESTALE);
            }
            14 => {
                let opcode = bytes.word() % 64;
                // What the model has to know of is asked above.
                if ![opcode::LOOKUP, opcode::READDIRPLUS, opcode::FORGET, opcode::BATCH_FORGET]
                    .contains(&opcode)
                {
                    let node = self.node(bytes);
                    self.ask(opcode, node, bytes.short());
                }
            }
            _ if bytes.flag() => self.switch(bytes.byte()),
            _ if self.journal => self.resume(),
            _ => {}
        }
    }

    /// Once the kernel has forgotten everything, the server has as well.
    fn finish(mut self) {
        for (node, lookups) in std::mem::take(&mut self.told) {
            self.ask(opcode::FORGET, node, lookups.as_bytes());
        }
        assert!(self.resumed || self.trie.len() == self.ever.len(), "nodes are left: {}", self.trie.len());
    }
}

fn serve(
    trie: &Arc<PathTrie>,
    journal: Option<Arc<Journal>>,
    passthrough: bool,
) -> (StoreFs, Arc<ServedView>, Receiver<Stale>) {
    let registrations = passthrough.then(|| Arc::new(Registrations::new(7)));
    let (stale, dropped) = channel();
    let usage = Usage::open(None);
    let view = ServedView::new(trie.clone(), WORLD.backing(), journal, registrations).invalidating(stale);
    let view = Arc::new(view.counting(usage.clone()));
    let (ledger, _) = Ledger::open(None).unwrap();
    let counts = Arc::new(Counts::new(usage, channel().0));
    let root = Arc::new(RootNames::new(Promised::new(false), false));
    let fs = StoreFs::new(view.clone(), counts, ledger, root);
    (fs, view, dropped)
}

fn check_attributes(attr: &nix_store_fs::fuse::abi::Attr, node: u64, real: &fs::Metadata) {
    assert_eq!((attr.ino, attr.mode), (node, real.mode()));
    assert!(real.is_dir() || attr.size == real.len());
}

pub(crate) fn run(data: &[u8]) {
    let mut bytes = Bytes(data);
    let how = bytes.byte();
    let mut kernel = Kernel::new(how & 1 == 1, how & 2 == 2);
    if how & 0xf0 == 0xf0 {
        // What the ledger of an earlier server may hold. The model knows nothing of what this tells.
        let _answer = kernel.send(bytes.0);
        return;
    }
    for _ in 0..200 {
        if bytes.is_empty() {
            break;
        }
        kernel.step(&mut bytes);
    }
    kernel.finish();
}
