//! The ledger: memory that a hostile server wrote, as its monitor and its successor read it.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use nix_store_fs::fuse::ledger::{self, BUFFER, SLOTS};
use nix_store_fs::fuse::{Ledger, Request};
use nix_store_fs::monitor::refusing;
use nix_store_fs::protocol::wire;
use nix_store_fs::sys::memory;
use rustix::net::{RecvFlags, SendFlags};

use crate::bytes::Bytes;

/// Where the words of the head are, and the slots: written down once more.
const MARK: usize = 0;
const TOKEN: usize = 8;
const WHOLE: usize = 24;
const USED: usize = 32;
const PAGE: usize = 4096;
const LINE: usize = 64;
const SLOTS_AT: usize = 2 * PAGE;
/// FORGET, NOTIFY_REPLY and BATCH_FORGET: whoever sends them waits for no answer.
const UNANSWERED: [u32; 3] = [2, 41, 42];
const EIO: i32 = 5;

fn write(file: &File, at: usize, bytes: &[u8]) {
    file.write_all_at(bytes, at as u64).unwrap();
}

fn word(file: &File, at: usize) -> u64 {
    let mut word = [0; 8];
    file.read_exact_at(&mut word, at as u64).unwrap();
    u64::from_ne_bytes(word)
}

/// A ledger with what a server may write into it: anything, anywhere.
fn scribbled(bytes: &mut Bytes<'_>) -> OwnedFd {
    let file = match bytes.byte() % 8 {
        // It has been exchanged for another file.
        0 => memory::memory_file("other").unwrap(),
        1 => memory::memory_file_of("other", bytes.half().into()).unwrap(),
        _ => File::from(ledger::create(bytes.flag()).unwrap()),
    };
    if file.metadata().unwrap().len() < ledger::BYTES as u64 {
        return file.into();
    }
    for _ in 0..bytes.byte() % 32 {
        let number = usize::from(bytes.byte()) % SLOTS;
        let slot = SLOTS_AT + number * BUFFER;
        match bytes.byte() % 8 {
            0 => {
                let at = usize::from(bytes.half()) % (SLOTS_AT / 8) * 8;
                write(&file, at, &bytes.long().to_ne_bytes());
            }
            1 => write(&file, USED, &u64::from(bytes.byte()).to_ne_bytes()),
            2 => {
                let at = *bytes.pick(&[MARK, TOKEN, WHOLE, USED]);
                write(&file, at, &bytes.long().to_ne_bytes());
            }
            3 => write(&file, PAGE + number * LINE, &u64::from(bytes.byte()).to_ne_bytes()),
            4 => write(&file, slot + usize::from(bytes.half()), bytes.short()),
            // A header with an id, and what follows it.
            _ => {
                let (opcode, unique) = (u32::from(bytes.byte()), u64::from(bytes.byte()));
                let body = bytes.short();
                let length = if bytes.flag() { bytes.word() } else { 40 + body.len() as u32 };
                write(&file, slot, &[length.to_ne_bytes(), opcode.to_ne_bytes()].concat());
                write(&file, slot + 8, &unique.to_ne_bytes());
                write(&file, slot + 40, body);
            }
        }
    }
    file.into()
}

/// A request with this id.
#[derive(Debug, Clone, Copy)]
struct Waiting {
    unique: u64,
    /// Whether somebody waits for its answer.
    waits: bool,
}

impl Waiting {
    fn new(request: &[u8]) -> Self {
        let [kind, unique] = [0, 8].map(|at| u64::from_ne_bytes(request[at..at + 8].try_into().unwrap()));
        let waits = Request::parse(request).unwrap().operation.has_answer();
        // One of these kinds that is malformed gets an answer.
        assert!(waits || UNANSWERED.contains(&((kind >> 32) as u32)), "kind {} has no answer", kind >> 32);
        Self { unique, waits }
    }
}

/// The requests that are left over.
fn left_over(file: &File) -> Vec<Waiting> {
    let used = word(file, USED).min(SLOTS as u64) as usize;
    let slot = |number: usize| {
        let (at, answered) = (SLOTS_AT + number * BUFFER, word(file, PAGE + number * LINE));
        let unique = word(file, at + 8);
        let is_one = unique != 0 && unique != answered;
        is_one.then(|| {
            let mut request = vec![0; BUFFER];
            file.read_exact_at(&mut request, at as u64).unwrap();
            Waiting::new(&request)
        })
    };
    (0..used).filter_map(slot).collect()
}

pub(crate) fn run(data: &[u8]) {
    let mut bytes = Bytes(data);
    let descriptor = scribbled(&mut bytes);
    let file = File::from(descriptor.try_clone().unwrap());
    let mark = u64::from_ne_bytes(*b"nsf-led1");
    let is_one = file.metadata().unwrap().len() >= ledger::BYTES as u64 && word(&file, MARK) == mark;
    let expected = if is_one { left_over(&file) } else { Vec::new() };
    if is_one {
        assert_eq!(ledger::token(&descriptor), Some(word(&file, TOKEN)));
        assert_eq!(ledger::is_whole(&descriptor), word(&file, WHOLE) != 0);
    }
    monitor(&descriptor, &expected, &mut bytes);

    // A successor that takes it over.
    let (all, slots) = Ledger::open(Some(descriptor)).unwrap();
    assert_eq!(slots.len(), SLOTS);
    let found: Vec<_> = slots.iter().filter(|slot| slot.is_left_over()).map(|slot| slot.unique()).collect();
    assert_eq!(found, expected.iter().map(|waiting| waiting.unique).collect::<Vec<_>>());
    all.promise();
    all.keep(1);
    all.set_whole();
    assert!(all.is_whole());
    for slot in slots.iter().filter(|slot| slot.is_left_over()) {
        assert_eq!(Request::parse(slot.request()).unwrap().unique, slot.unique());
        let mut begun = 0;
        while slot.begin_after_crash() {
            begun += 1;
            assert!(begun <= 3, "it is begun for ever");
        }
        slot.set_answered_again();
        assert!(!slot.is_left_over());
    }
}

/// What a monitor does that ends a connection: of what is in the ledger, and of what it reads then, each request gets an error, and
/// nobody gets anything else.
fn monitor(ledger: &OwnedFd, left_over: &[Waiting], bytes: &mut Bytes<'_>) {
    let (kernel, device) = wire::pair().unwrap();
    let mut waiting = left_over.to_vec();
    let mut sent = 0_u32;
    while !bytes.is_empty() && sent < 4 {
        let request = bytes.short();
        // The kernel gives nothing shorter, and no id 0.
        if request.len() < 40 {
            continue;
        }
        let one = Waiting::new(request);
        if one.unique != 0 {
            rustix::net::send(&kernel, request, SendFlags::NOSIGNAL).unwrap();
            waiting.push(one);
            sent += 1;
        }
    }
    let (mut left, until) = (sent, Instant::now() + Duration::from_secs(10));
    let ended = || {
        let is_end = left == 0;
        left = left.saturating_sub(1);
        is_end
    };
    refusing::refuse(device, Some(ledger.try_clone().unwrap()), until, ended).unwrap();
    let mut answers = Vec::new();
    let mut answer = [0; 64];
    while let Ok((_, length @ 1..)) = rustix::net::recv(kernel.as_fd(), &mut answer, RecvFlags::DONTWAIT) {
        assert_eq!((length, &answer[..4]), (16, &16_u32.to_ne_bytes()[..]), "more than an error");
        assert_eq!(answer[4..8], (-EIO).to_ne_bytes(), "a notification, or no error");
        answers.push(u64::from_ne_bytes(answer[8..16].try_into().unwrap()));
    }
    let expected: Vec<u64> = waiting.iter().filter(|one| one.waits).map(|one| one.unique).collect();
    assert_eq!(answers, expected);
    assert!(!answers.contains(&0), "a notification");
}
