//! How the trie and the closure scale, without kernel or disk: `cargo bench --bench core`.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a benchmark ends where it cannot go on")]
#![allow(missing_docs, reason = "nothing here is for others")]

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use divan::{Bencher, black_box};
use nix_store_fs::closure::Closure;
use nix_store_fs::closure::dump::{Format, render};
use nix_store_fs::closure::saved::Saved;
use nix_store_fs::values::{PathInfo, StorePath, View};
use nix_store_fs::view::trie::{NodeId, NodeRecord, PathTrie, ROOT};
use nix_store_fs::view::usage::{Kind, Usage};

/// Store paths: a small container, a large system, a whole store.
const SIZES: [u32; 3] = [300, 3_000, 30_000];
/// Files below each store path: what the closures measured have, about.
const FILES: u32 = 100;

fn path(n: u32) -> StorePath {
    StorePath::new(&format!("{:032}-package-{n}", n * 7_919 % 1_000_003)).unwrap()
}

fn infos(count: u32) -> Vec<PathInfo> {
    let info = |n: u32| PathInfo {
        path: path(n),
        nar_hash: "sha256-47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=".to_owned(),
        nar_size: u64::from(n),
        references: (n.saturating_sub(8)..n).map(path).collect(),
        deriver: None,
        registration_time: 0,
        signatures: Vec::new(),
        ca: None,
        ultimate: false,
    };
    (0..count).map(info).collect()
}

fn view(count: u32) -> View {
    (0..count).map(|n| (path(n), u64::from(n))).collect()
}

/// A trie that shows `count` paths, with [`FILES`] known below each of the first 300.
fn trie(count: u32) -> (PathTrie, Vec<NodeId>) {
    let trie = PathTrie::new();
    trie.switch(&view(count), 0);
    let members = trie.members();
    let tops: Vec<_> = members.entries.iter().take(300).map(|(_, id)| *id).collect();
    for top in &tops {
        for n in 0..FILES {
            trie.enter(*top, format!("file-{n}").as_bytes()).unwrap();
        }
    }
    (trie, tops)
}

#[divan::bench(args = SIZES)]
fn closure_from_the_stores_answer(bencher: Bencher<'_, '_>, count: u32) {
    let root = vec![path(count - 1)];
    bencher
        .with_inputs(|| (root.clone(), infos(count)))
        .bench_values(|(root, infos)| Closure::new(root, infos));
}

#[divan::bench(args = SIZES)]
fn view_grown_by_another(bencher: Bencher<'_, '_>, count: u32) {
    let (a, b) = (view(count), view(count + 10));
    bencher.bench(|| black_box(&a).union(black_box(&b)));
}

#[divan::bench(args = SIZES)]
fn trie_built_and_shown(bencher: Bencher<'_, '_>, count: u32) {
    let view = view(count);
    bencher.bench(|| {
        let trie = PathTrie::new();
        trie.switch(black_box(&view), 0);
        trie
    });
}

#[divan::bench(args = SIZES)]
fn member_looked_up(bencher: Bencher<'_, '_>, count: u32) {
    let (trie, _) = trie(count);
    let name = path(count / 2);
    bencher.bench(|| trie.members().find(black_box(name.as_str().as_bytes())));
}

#[divan::bench(args = SIZES)]
fn known_name_looked_up(bencher: Bencher<'_, '_>, count: u32) {
    let (trie, tops) = trie(count);
    bencher.bench(|| trie.enter(black_box(tops[17]), black_box(b"file-17")));
}

#[divan::bench(args = SIZES)]
fn new_name_looked_up(bencher: Bencher<'_, '_>, count: u32) {
    let (trie, tops) = trie(count);
    let mut n = 0u64;
    bencher.bench_local(|| {
        n += 1;
        trie.enter(tops[17], &n.to_le_bytes())
    });
}

#[divan::bench(args = SIZES)]
fn path_of_a_node(bencher: Bencher<'_, '_>, count: u32) {
    let (trie, tops) = trie(count);
    let node = trie.enter(tops[17], b"file-17").unwrap().id;
    bencher.bench(|| trie.path(black_box(node)));
}

#[divan::bench(args = SIZES)]
fn root_listed(bencher: Bencher<'_, '_>, count: u32) {
    let (trie, _) = trie(count);
    bencher.bench(|| {
        trie.members().entries.iter().map(|(name, id)| name.as_str().len() as u64 ^ id.0).sum::<u64>()
    });
}

/// Counters that know a small container's paths.
fn usage() -> Usage {
    let usage = Usage::open(None);
    (0..SIZES[0]).for_each(|n| usage.touch(path(n).as_str().as_bytes()));
    usage
}

#[divan::bench(threads = [1, 2, 8])]
fn request_counted(bencher: Bencher<'_, '_>) {
    let usage = usage();
    bencher.bench(|| usage.add(black_box(Kind::Lookup)));
}

/// The same on one line of the cache for all threads, to compare with.
#[divan::bench(threads = [1, 2, 8])]
fn request_counted_by_all_in_one_place(bencher: Bencher<'_, '_>) {
    let count = AtomicU64::new(0);
    bencher.bench(|| count.fetch_add(black_box(1), Ordering::Relaxed));
}

#[divan::bench(threads = [1, 2, 8])]
fn member_asked_for(bencher: Bencher<'_, '_>) {
    let (usage, path) = (usage(), format!("{}/lib/libc.so.6", path(17)));
    bencher.bench(|| usage.touch(black_box(path.as_bytes())));
}

#[divan::bench(threads = [1, 2, 8])]
fn read_counted_in_one_member(bencher: Bencher<'_, '_>) {
    let (usage, path) = (usage(), format!("{}/lib/libc.so.6", path(17)));
    bencher.bench(|| usage.read(black_box(path.as_bytes()), 4096, 4096));
}

#[divan::bench(args = [31_813, 1_000_000])]
fn trie_restored(bencher: Bencher<'_, '_>, nodes: u64) {
    let record = |n: u64| NodeRecord {
        id: NodeId(n + 2),
        parent: if n < 300 { ROOT } else { NodeId(n % 300 + 2) },
        name: format!("file-name-{n}").into_bytes().into(),
    };
    let records: Vec<_> = (0..nodes).map(record).collect();
    bencher.bench(|| {
        let trie = PathTrie::new();
        records.iter().for_each(|record| trie.restore(record));
        trie
    });
}

/// A large system, for which each format has 0.3 s.
const LARGE: u32 = 5_000;

fn large() -> Closure {
    Closure::new(vec![path(LARGE - 1)], infos(LARGE)).unwrap()
}

#[divan::bench(args = [Format::Text, Format::Json, Format::StorePaths, Format::Registration, Format::Dot])]
fn large_closure_dumped(bencher: Bencher<'_, '_>, format: &Format) {
    let closure = large();
    bencher.bench(|| render(black_box(&closure), Path::new("/nix/store"), *format).unwrap());
}

#[divan::bench(args = [Format::Json, Format::StorePaths])]
fn large_closure_read(bencher: Bencher<'_, '_>, format: &Format) {
    let text = render(&large(), Path::new("/nix/store"), *format).unwrap();
    bencher.bench(|| Saved::parse(black_box(&text)).unwrap());
}

fn main() {
    divan::main();
}
