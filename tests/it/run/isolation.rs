//! Nothing outside of the closure can be reached, whatever the command tries that has no right.

use std::fs;

use super::{BOTH, Runs, Who, nothing_is_left};
use crate::util::program::Program;

/// Each line of a script tries a way, and says what it found.
#[test]
fn no_way_leads_to_the_store_outside() {
    need!(Root, Fuse, Nix, UserNamespaces);
    let runs = Runs::by(Who::Nobody);
    let physical = runs.fixture.store.physical();
    let (secret, physical) = (format!("{}/secret", runs.fixture.outside.base), physical.display());
    // What is tried with all capabilities, in namespaces below.
    let with_rights = format!(
        "umount -l /nix/store; umount -l {physical}; mount --bind / /mnt; mount --rbind / /mnt; mkdir -p /tmp/nsf-m; \
         mount --move /nix/store /mnt; mount -o remount,rw /nix/store; mount --bind /nix /mnt; \
         cat /nix/store/{secret} {physical}/{secret} /mnt/nix/store/{secret} /mnt/store/{secret} /mnt/{secret} /mnt{physical}/{secret}"
    );
    for way in [
        format!("cat /nix/store/{secret} {physical}/{secret}"),
        format!("umount /nix/store; umount -l /nix/store; cat /nix/store/{secret}"),
        format!("unshare -Urm sh -c '{with_rights}'"),
        format!("unshare -Urm --propagation unchanged sh -c '{with_rights}'"),
        format!("unshare -Urmpf --mount-proc sh -c '{with_rights}'"),
        format!(
            "for p in /proc/[0-9]*; do cat $p/root/nix/store/{secret} $p/root{physical}/{secret} $p/cwd/{secret}; done"
        ),
        format!("for p in /proc/[0-9]*; do nsenter -t ${{p#/proc/}} -m cat {physical}/{secret}; done"),
        format!(
            "for p in /proc/[0-9]*; do nsenter -t ${{p#/proc/}} -U -m --preserve-credentials cat {physical}/{secret}; done"
        ),
        format!("for f in /proc/[0-9]*/fd/*; do cat $f/{secret} $f/../{secret}; done"),
        format!("cat /proc/self/fd/9/{secret} /dev/fd/9/{secret}"),
    ] {
        let script = format!("{{ {way}; }} 2>/dev/null; ls /nix/store | wc -l");
        // A directory of the store that somebody has left open.
        let open = format!("exec 9<{physical} && exec \"$@\"");
        let done = runs.with(&[], &["sh", "-c", &script]).through(["sh", "-c", &open, "sh"]).run();
        let expected = format!("{}\n", runs.fixture.members().len());
        assert_eq!(done.stdout, expected, "{way}: {done:?}");
    }
    nothing_is_left(runs.fixture.store.root());
}

/// A directory of the store may be what the command has as its standard input or its caller's current directory, also where processes
/// of this program wait for it that it can look into.
#[test]
fn no_process_within_leads_out() {
    need!(Root, Fuse, Nix, UserNamespaces);
    let runs = Runs::by(Who::Nobody);
    let physical = runs.fixture.store.physical();
    let secret = format!("{}/secret", runs.fixture.outside.base);
    let script = format!(
        "for p in /proc/[0-9]*; do for f in $p/fd/* $p/cwd $p/root; do cat $f/{secret}; done; done 2>/dev/null; \
         cat /proc/self/fd/0/{secret} 2>/dev/null; echo end"
    );
    for options in [&[][..], &["--keep-caps"], &["--unshare-pid"], &["--unshare-pid", "--keep-caps"]] {
        let open = format!("cd {0} && exec 9<{0} <{0} && exec \"$@\"", physical.display());
        let done = runs.with(options, &["sh", "-c", &script]).through(["sh", "-c", &open, "sh"]).run();
        assert_eq!(done.stdout, "end\n", "{options:?} {done:?}");
    }
}

/// Root's command has no capability either, and no namespace to get one in.
#[test]
fn a_command_of_root_cannot_take_its_view_away() {
    need!(Root, Fuse, Nix, UserNamespaces);
    let runs = Runs::by(Who::Root);
    let physical = runs.fixture.store.physical();
    let (secret, physical) = (format!("{}/secret", runs.fixture.outside.base), physical.display());
    for way in [
        format!(
            "umount /nix/store; umount -l /nix/store; umount -l {physical}; cat /nix/store/{secret} {physical}/{secret}"
        ),
        format!("unshare -Urm sh -c 'umount -l /nix/store; cat /nix/store/{secret}'"),
        format!(
            "unshare -Um --keep-caps sh -c 'umount -l /nix/store; umount -l {physical}; cat /nix/store/{secret} {physical}/{secret}'"
        ),
        format!(
            "mount --move /nix/store /mnt; mount --bind / /mnt; cat /nix/store/{secret} /mnt/nix/store/{secret} /mnt{physical}/{secret}"
        ),
        format!("nsenter -t 1 -m cat {physical}/{secret}; cat /proc/1/root{physical}/{secret}"),
    ] {
        let done = runs.script(&[], &format!("{{ {way}; }} 2>/dev/null; ls /nix/store | wc -l"));
        let expected = format!("{}\n", runs.fixture.members().len());
        assert_eq!(done.stdout, expected, "{way}: {done:?}");
    }
}

/// The handle of a file in the store, made outside, opens nothing within.
#[test]
fn handles_of_outside_open_nothing() {
    need!(Root, Fuse, Nix, UserNamespaces);
    for who in super::BOTH {
        let runs = Runs::by(who);
        let dir = crate::util::scratch();
        let tool = crate::util::compile("run/by_handle.c", dir.path());
        let tool = tool.to_str().unwrap();
        let file = runs.fixture.store.physical().join(&runs.fixture.outside.base).join("secret");
        let made = std::process::Command::new(tool).arg("make").arg(&file).output().unwrap();
        let handle = String::from_utf8(made.stdout).unwrap();
        let handle = handle.trim();
        // Root opens it outside, so it is a good one.
        let outside =
            std::process::Command::new(tool).args(["open", handle, "/"]).arg(&file).output().unwrap();
        assert_eq!(outside.stdout, b"not for this container\n", "{outside:?}");
        let physical = runs.fixture.store.physical();
        let done = runs
            .with(
                &[],
                &[
                    tool,
                    "open",
                    handle,
                    "/",
                    "/nix/store",
                    physical.to_str().unwrap(),
                    "/tmp",
                    "/proc/self/root",
                ],
            )
            .run();
        assert_eq!(done.stdout, "", "{who:?} {done:?}");
        assert!(!done.status.success());
    }
}

/// With capabilities in a namespace of its own, an ordinary user's command can mount, and not take the view away.
#[test]
fn a_command_that_keeps_its_capabilities_keeps_its_view() {
    need!(Root, Fuse, Nix, UserNamespaces);
    let runs = Runs::by(Who::Nobody);
    let script = format!(
        "umount -l /nix/store 2>/dev/null; mount -t tmpfs none /mnt && echo mounted; mount -o remount,rw /nix/store 2>/dev/null; \
         ls -1 /nix/store; cat /nix/store/{}/secret 2>/dev/null",
        runs.fixture.outside.base
    );
    let done = runs.script(&["--keep-caps"], &script);
    let expected = format!("mounted\n{}\n", runs.fixture.members().join("\n"));
    assert_eq!(done.stdout, expected, "{done:?}");
}

#[test]
fn the_command_has_no_capability_and_gets_none() {
    need!(Root, Fuse, Nix, UserNamespaces);
    for who in super::BOTH {
        let runs = Runs::by(who);
        for form in [&[][..], &["--unshare-pid"], &["--report=/dev/null"]] {
            let done = runs.script(form, "grep -E '^(Cap|NoNewPrivs)' /proc/self/status");
            for line in done.stdout.lines() {
                let (name, value) = line.split_once(":\t").unwrap();
                let expected = if name == "NoNewPrivs" { "1" } else { "0000000000000000" };
                assert_eq!(value, expected, "{who:?} {form:?} {line}");
            }
            assert_eq!(done.stdout.lines().count(), 6, "{done:?}");
        }
    }
}

/// Other views are those of others.
#[test]
fn other_views_are_hidden() {
    need!(Root, Fuse, Nix, UserNamespaces);
    for who in super::BOTH {
        let runs = Runs::by(who);
        let other = Program::on(&runs.fixture.store).arg("--root").arg(&runs.fixture.outside.path).mount();
        let at = other.path().display();
        assert!(fs::read_dir(other.path()).unwrap().count() > 0);
        let done = runs
            .script(&[], &format!("ls -A {at}; cat {at}/{}/secret 2>/dev/null", runs.fixture.outside.base));
        assert_eq!(done.stdout, "", "{who:?} {done:?}");
    }
}

/// A store that is bound from elsewhere can be seen there as well, and one on an overlay in its layers.
#[test]
fn other_places_of_the_store_are_covered() {
    need!(Root, Fuse, Nix, NixDirectory, UserNamespaces);
    let runs = Runs::by(Who::Root);
    let root = runs.fixture.store.root().display().to_string();
    let secret = format!("{}/secret", runs.fixture.outside.base);
    let dir = crate::util::scratch();
    let other = dir.path().display();
    fs::create_dir_all(dir.path().join("bound")).unwrap();
    fs::create_dir_all(dir.path().join("layers/upper")).unwrap();
    fs::create_dir_all(dir.path().join("layers/work")).unwrap();
    let bind = format!("mount --rbind {root}/nix /nix && mount --bind {root} {other}/bound");
    let overlay = format!(
        "mount --rbind {root}/nix /nix && mount -t tmpfs none {other}/layers && mkdir {other}/layers/upper {other}/layers/work && \
         mount -t overlay none -o lowerdir={root}/nix/store,upperdir={other}/layers/upper,workdir={other}/layers/work /nix/store"
    );
    for (set_up, places) in [
        (bind, [format!("{root}/nix/store"), format!("{other}/bound/nix/store")]),
        (overlay, [format!("{root}/nix/store"), format!("{other}/layers/upper")]),
    ] {
        let before = format!("{set_up} && exec \"$@\"");
        let look: Vec<String> = places.iter().map(|place| format!("cat {place}/{secret}")).collect();
        let script =
            format!("{{ {}; }} 2>/dev/null; cat /nix/store/{}/text", look.join("; "), runs.fixture.data.base);
        let done = Program::new()
            .args(["run", "--chdir", "/", "--root", &runs.fixture.system.path, "--", "sh", "-c", &script])
            .env("NIX_REMOTE", "local")
            .inside(["unshare", "-m", "sh", "-c", &before, "sh"])
            .run();
        assert_eq!(done.stdout, "hello\n", "{set_up}: {done:?}");
    }
}

/// What of the store is bound somewhere by itself is seen there as in the view: it is there, or nothing is.
#[test]
fn parts_of_the_store_that_are_bound_elsewhere_are_those_of_the_view() {
    need!(Root, Fuse, Nix, UserNamespaces);
    for who in BOTH {
        let runs = Runs::by(who);
        let (store, places) = (runs.fixture.store.physical(), crate::util::scratch());
        let (store, places) = (store.display(), places.path().display());
        let (outside, data) = (&runs.fixture.outside.base, &runs.fixture.data.base);
        let state = runs.fixture.store.root().join("nix/var/nix/db");
        let set_up = format!(
            "cd {places} && chmod 755 . && mkdir -p whole data db && touch file text && mount --bind {store}/{outside} whole && \
             mount --bind {store}/{outside}/secret file && mount --bind {store}/{data} data && \
             mount --bind {store}/{data}/text text && mount --bind {} db && exec \"$@\"",
            state.display()
        );
        let script = format!("cd {places}; cat file data/text text; ls -A whole db");
        for options in [&[][..], &["--nix"], &["--report=/dev/null"]] {
            let program = runs.with(options, &["sh", "-c", &script]);
            let done = program.further_inside(["unshare", "-m", "sh", "-c", &set_up, "sh"]).run();
            assert_eq!(done.stdout, "hello\nhello\ndb:\n\nwhole:\n", "{who:?} {options:?} {done:?}");
        }
        nothing_is_left(runs.fixture.store.root());
    }
}

/// Only Nix knows what nix.conf says of the store. What is hidden is where addresses say, so the command is not run where the files are
/// elsewhere.
#[test]
fn a_store_that_nix_conf_places_elsewhere_is_refused() {
    need!(Root, Fuse, Nix, UserNamespaces);
    for who in BOTH {
        let runs = Runs::by(who);
        let conf = crate::util::scratch();
        let uri = runs.fixture.store.uri();
        let secret = runs.fixture.store.physical().join(&runs.fixture.outside.base).join("secret");
        let script = format!("echo ran; cat {}", secret.display());
        let root = ["--root", &runs.fixture.system.path, "--", "sh", "-c", &script];
        for (store, remote, ran) in
            [(&*uri, "", false), (&uri, "daemon", false), (&format!("{uri}&store=/nix/store"), &*uri, true)]
        {
            fs::write(conf.path().join("nix.conf"), format!("store = {store}\n")).unwrap();
            let program = Program::new().args(["run", "--chdir", "/"]).args(root);
            let program = program.env("NIX_CONF_DIR", conf.path()).env("NIX_REMOTE", remote);
            let done = runs.as_user(program).run();
            if ran {
                assert_eq!(
                    (done.stdout.as_str(), done.stderr.contains("secret")),
                    ("ran\n", true),
                    "{who:?} {done:?}"
                );
                continue;
            }
            assert_eq!((done.status.code(), done.stdout.as_str()), (Some(125), ""), "{who:?} {done:?}");
            assert!(done.stderr.contains("--store"), "{who:?} {done:?}");
            assert_eq!(done.stderr.lines().count(), 1, "{who:?} {done:?}");
        }
        nothing_is_left(runs.fixture.store.root());
    }
}
