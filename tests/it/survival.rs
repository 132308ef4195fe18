//! A view outlives its processes: whoever is killed, readers see a pause and nothing else.
//!
//! `NSF_KILLS` says how often something is killed in each of the two ways of reading; `scripts/stress` runs the
//! slow forms.

use std::fs;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix_store_fs::journal::{Journal, Record};
use nix_store_fs::trie::{NodeId, NodeRecord, ROOT};

use crate::util::fixture::Fixture;
use crate::util::load::{self, Held, Load, say};
use crate::util::mounts;
use crate::util::service::{Service, Victim, kill_and_wait};
use crate::util::tree;

/// How often in each of the two ways of reading, if nobody says otherwise.
const KILLS: u64 = 50;

fn number(variable: &str, default: u64) -> u64 {
    std::env::var(variable).map_or(default, |text| text.parse().expect("a number"))
}

fn kill_again_and_again(io: &str) {
    let fixture = Fixture::new();
    let busybox = load::add_busybox(&fixture.store);
    let many = load::add_many(&fixture.store, 2000);
    let mut service = Service::new(&fixture.store)
        .with(["--system", &fixture.system.path, "--root", &busybox.path, "--root", &many.path, "--io", io]);
    service.start_ready();
    let members: Vec<String> = tree::list(service.path()).unwrap().iter().map(|b| b.display().to_string()).collect();
    let expected = Arc::new(load::expect(&fixture.store, members.iter().map(String::as_str)));
    let mut held = Held::new(service.path(), &expected, &busybox);
    let running = Load::start(service.path(), &expected, Some(&busybox), 4, true);

    let mut failed = Vec::new();
    let mut random = 0x2545_f491_4f6c_dd1d_u64 ^ u64::from(std::process::id());
    let mut kills = [0_u64; 4];
    for round in 0..number("NSF_KILLS", KILLS) {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        std::thread::sleep(Duration::from_millis(100 + random % 300));
        let victim = [Victim::Server, Victim::Both, Victim::Monitor][usize::try_from(round % 3).unwrap()];
        service.kill(victim);
        kills[usize::try_from(round % 3).unwrap()] += 1;
        if victim != Victim::Server {
            if round % 4 == 0 {
                // One that has hardly begun is killed as well: whatever it was at must do no harm.
                service.start();
                std::thread::sleep(Duration::from_millis((random >> 32) % 60));
                service.kill(Victim::Both);
                kills[3] += 1;
            }
            service.start_ready();
        }
        failed.extend(held.check(round).into_iter().map(|why| format!("after {victim:?}: {why}")));
    }
    let mut found = running.finish();
    found.failed.extend(failed);
    drop(held);
    say(&format!(
        "survival, --io {io}: killed {} servers, {} times both, {} monitors, {} that had hardly begun",
        kills[0], kills[1], kills[2], kills[3]
    ));
    found.judge(&format!("survival, --io {io}"));
    assert_eq!(service.logged("the session failed"), 0, "{}", service.log());
    service.stop();
}

/// Whoever is killed at whatever moment: not one call fails, and every byte is right.
#[test]
fn killed_again_and_again_with_io_cached() {
    need!(Root, Fuse, Nix, Busybox);
    kill_again_and_again("cached");
}

/// The same when the kernel reads the files by itself.
#[test]
fn killed_again_and_again_with_io_passthrough() {
    need!(Root, Fuse, Nix, Busybox, Passthrough);
    kill_again_and_again("passthrough");
}
