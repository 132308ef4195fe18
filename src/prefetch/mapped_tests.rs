use super::*;
use crate::prefetch::profile::{Asked, Use};

const ALPHABET: &[u8] = b"0123456789abcdfghijklmnpqrsvwxyz";

/// The `n`th store path of this name.
fn member(n: usize, name: &str) -> StorePath {
    let hash = [ALPHABET[n / 32 % 32], ALPHABET[n % 32]].repeat(16);
    StorePath::new(&format!("{}-{name}", String::from_utf8(hash).unwrap())).unwrap()
}

fn profile<'a>(members: impl IntoIterator<Item = (StorePath, &'a [&'a str])>) -> Profile {
    let of = || Use { after: 1, seen: 1, asked: Asked::Name };
    let uses = |paths: &[&str]| paths.iter().map(|path| (path.as_bytes().to_vec(), of())).collect();
    let members = members.into_iter().map(|(path, paths)| (path, Member { idle: 0, uses: uses(paths) }));
    Profile { runs: 1, relearn: false, members: members.collect() }
}

/// Members and paths of `profile`, as text, those in `members` alone.
fn shown(profile: &Profile, members: &[StorePath]) -> Vec<String> {
    let uses = profile.uses().filter(|(path, _, _)| members.contains(path));
    uses.map(|(path, below, _)| format!("{}/{}", path.name(), String::from_utf8_lossy(below))).collect()
}

#[test]
fn a_member_that_is_gone_stands_for_a_new_one() {
    for (case, old, new, expected) in [
        ("another hash", &["bash-5.2p37/bin/sh"][..], &["bash-5.2p37"][..], &["bash-5.2p37/bin/sh"][..]),
        ("another version", &["glibc-2.40-36/lib/x"], &["glibc-2.40-66"], &["glibc-2.40-66/lib/x"]),
        (
            "a system",
            &["nixos-system-web-24.11/init"],
            &["nixos-system-web-25.05"],
            &["nixos-system-web-25.05/init"],
        ),
        (
            "a unit",
            &["unit-nginx.service/nginx.service"],
            &["unit-nginx.service"],
            &["unit-nginx.service/nginx.service"],
        ),
        ("no version", &["etc/etc/passwd"], &["etc"], &["etc/etc/passwd"]),
        (
            "outputs are apart",
            &["openssl-3.0.14/lib/a", "openssl-3.0.14-bin/bin/b"],
            &["openssl-3.0.15-bin", "openssl-3.0.15", "openssl-3.0.15-dev"],
            &["openssl-3.0.15-bin/bin/b", "openssl-3.0.15/lib/a"],
        ),
        ("the same name comes first", &["a-1.0/x"], &["a-1.1", "a-1.0"], &["a-1.0/x"]),
        ("two new ones", &["icu-74.2/x"], &["icu-75.1", "icu-76.1"], &[]),
        ("two old ones", &["icu-74.2/x", "icu-73.2/x"], &["icu-76.1"], &[]),
        ("two of one name", &["source/x"], &["source", "source"], &[]),
        (
            "python's and perl's are no versions of each other",
            &["python3.12-yaml-6.0/lib/python3.12/x", "perl5.40.0-yaml-6.0/lib/x"],
            &["perl5.40.2-yaml-6.1", "python3.13-yaml-6.0"],
            &["perl5.40.2-yaml-6.1/lib/x", "python3.13-yaml-6.0/lib/python3.13/x"],
        ),
        ("another package", &["zlib-1.3/x"], &["zlib-ng-1.3"], &[]),
        ("names without a version are no package", &["etc/x"], &["var"], &[]),
    ] {
        let split = |text: &'static str| text.split_once('/').unwrap();
        let old: Vec<_> = old.iter().map(|text| split(text)).collect();
        let of =
            old.iter().enumerate().map(|(n, (name, path))| (member(n, name), std::slice::from_ref(path)));
        let today: Vec<StorePath> = new.iter().enumerate().map(|(n, name)| member(100 + n, name)).collect();
        let before = profile(of);
        let mapped = before.mapped(&today);
        let mut found = shown(&mapped, &today);
        found.sort();
        assert_eq!(found, expected, "{case}");
        assert_eq!(mapped.len(), before.len(), "{case}: what stands for none is kept");
    }
}

#[test]
fn a_member_of_today_keeps_its_own_uses() {
    let stays = member(1, "openssl-1.1.1w");
    let (old, new) = (member(2, "openssl-3.0.14"), member(3, "openssl-3.0.15"));
    let before = profile([(stays.clone(), &["lib/a"][..]), (old, &["lib/b"])]);
    let today = [stays, new];
    let mapped = before.mapped(&today);
    assert_eq!(shown(&mapped, &today), ["openssl-1.1.1w/lib/a", "openssl-3.0.15/lib/b"]);
    assert_eq!(mapped.mapped(&today), mapped, "nothing is left to do");
}

#[test]
fn what_stands_for_none_is_dropped_after_some_runs_and_is_there_until_then() {
    let gone = member(1, "tool-1.0");
    let before = profile([(gone.clone(), &["bin/tool"][..])]);
    let mut mapped = before.clone();
    for _ in 1..IDLE {
        mapped = mapped.mapped(&[]);
        assert_eq!(mapped.len(), 1);
        assert_eq!(shown(&mapped.mapped([&gone]), std::slice::from_ref(&gone)), ["tool-1.0/bin/tool"]);
    }
    assert!(mapped.mapped(&[]).is_empty());
}

#[test]
fn one_that_was_gone_for_longer_stands_back() {
    let (older, old, new) = (member(1, "tool-1.0"), member(2, "tool-1.1"), member(3, "tool-1.2"));
    let mut before = profile([(older.clone(), &["old"][..]), (old, &["new"])]);
    before.members.get_mut(&older).unwrap().idle = 3;
    assert_eq!(shown(&before.mapped([&new]), &[new]), ["tool-1.2/new"]);
}

#[test]
fn paths_follow_the_version() {
    for (old, new, path, expected) in [
        ("python3-3.12.7", "python3-3.12.8", "lib/python3.12/os.py", "lib/python3.12/os.py"),
        ("python3-3.12.7", "python3-3.13.1", "lib/python3.12/os.py", "lib/python3.13/os.py"),
        ("python3-3.12.7", "python3-3.13.1", "lib/python3.12", "lib/python3.13"),
        ("zlib-1.3.1", "zlib-1.3.2", "lib/libz.so.1.3.1", "lib/libz.so.1.3.2"),
        ("zlib-1.3.1", "zlib-1.3.2", "lib/libz.so.1", "lib/libz.so.1"),
        ("foo-1.2", "foo-1.10", "share/foo-1.2/foo-1.2.txt", "share/foo-1.10/foo-1.10.txt"),
        ("foo-1.2", "foo-1.3", "share/11.2/1.22/5.1.2", "share/11.2/1.22/5.1.2"),
        ("linux-6.6.63-modules", "linux-6.12.1-modules", "lib/modules/6.6.63/a", "lib/modules/6.12.1/a"),
        (
            "python3.12-a-2.0",
            "python3.13-a-2.1",
            "lib/python3.12/a-2.0.dist-info",
            "lib/python3.13/a-2.1.dist-info",
        ),
        ("perl5.40.0-A-1", "perl5.40.2-A-1", "lib/site_perl/5.40.0/A.pm", "lib/site_perl/5.40.2/A.pm"),
        ("less-661", "less-668", "share/661/a", "share/661/a"),
        ("x-1.2", "x-1.2", "a-1.2", "a-1.2"),
    ] {
        let (old, new) = (member(1, old), member(2, new));
        let mapped = profile([(old, &[path][..])]).mapped([&new]);
        assert_eq!(shown(&mapped, std::slice::from_ref(&new)), [format!("{}/{expected}", new.name())]);
    }
}

/// A small web server in a container: from one release of NixOS to the next one. Every hash is another.
#[test]
fn most_of_a_profile_survives_an_update() {
    let members: [(&str, &str, &[&str], &[&str]); 22] = [
        // before, after, what was used before, what of it there is no more afterwards
        (
            "nixos-system-web-24.11.715908.9b5ac7ad4529",
            "nixos-system-web-25.05.803297.10d7f8d34e5e",
            &["init", "etc", "sw", "activate"],
            &[],
        ),
        (
            "etc",
            "etc",
            &["etc/passwd", "etc/nsswitch.conf", "etc/systemd/system", "etc/ssl/certs/ca-bundle.crt"],
            &[],
        ),
        ("system-path", "system-path", &["bin/bash", "bin/systemctl", "lib/locale", "share/zoneinfo"], &[]),
        ("unit-nginx.service", "unit-nginx.service", &["nginx.service"], &[]),
        ("unit-dbus.service", "unit-dbus.service", &["overrides.conf"], &[]),
        ("unit-script-nginx-pre-start", "unit-script-nginx-pre-start", &["bin/nginx-pre-start"], &[]),
        ("nginx.conf", "nginx.conf", &[""], &[]),
        (
            "glibc-2.40-36",
            "glibc-2.40-66",
            &["lib/libc.so.6", "lib/ld-linux-x86-64.so.2", "lib/libm.so.6"],
            &[],
        ),
        ("glibc-locales-2.40-36", "glibc-locales-2.40-66", &["lib/locale/locale-archive"], &[]),
        (
            "gcc-13.3.0-lib",
            "gcc-14.2.1.20250322-lib",
            &["lib/libstdc++.so.6", "lib/libstdc++.so.6.0.32"],
            &["lib/libstdc++.so.6.0.32"],
        ),
        ("bash-5.2p37", "bash-5.2p37", &["bin/bash", "bin/sh"], &[]),
        (
            "systemd-256.10",
            "systemd-257.5",
            &["lib/systemd/systemd", "lib/systemd/libsystemd-shared-256.so", "example/systemd/system"],
            &["lib/systemd/libsystemd-shared-256.so"],
        ),
        (
            "openssl-3.3.2",
            "openssl-3.4.1",
            &["lib/libssl.so.3", "lib/libcrypto.so.3", "etc/ssl/openssl.cnf"],
            &[],
        ),
        ("openssl-3.3.2-bin", "openssl-3.4.1-bin", &["bin/openssl"], &[]),
        ("zlib-1.3.1", "zlib-1.3.1", &["lib/libz.so.1", "lib/libz.so.1.3.1"], &[]),
        ("nginx-1.26.2", "nginx-1.28.0", &["bin/nginx", "conf/mime.types"], &[]),
        ("pcre2-10.44", "pcre2-10.44", &["lib/libpcre2-8.so.0"], &[]),
        (
            "python3-3.12.8",
            "python3-3.12.10",
            &["bin/python3.12", "lib/python3.12/os.py", "lib/python3.12/encodings"],
            &[],
        ),
        (
            "python3.12-requests-2.32.3",
            "python3.12-requests-2.32.3",
            &[
                "lib/python3.12/site-packages/requests/__init__.py",
                "lib/python3.12/site-packages/requests-2.32.3.dist-info",
            ],
            &[],
        ),
        ("perl-5.40.0", "perl-5.40.0", &["lib/perl5/5.40.0/strict.pm"], &[]),
        ("perl5.40.0-JSON-4.10", "perl5.40.0-JSON-4.10", &["lib/perl5/site_perl/5.40.0/JSON.pm"], &[]),
        ("nixos-manual-24.11", "manual-combined", &["share/doc"], &["share/doc"]),
    ];
    let of = members.iter().enumerate().map(|(n, (old, _, uses, _))| (member(n, old), *uses));
    let today: Vec<StorePath> =
        members.iter().enumerate().map(|(n, (_, new, _, _))| member(500 + n, new)).collect();
    let before = profile(of);
    let survived = shown(&before.mapped(&today), &today);
    let holds = |(_, new, uses, lost): &(&str, &str, &[&str], &[&str])| {
        let kept =
            uses.iter().filter(|path| !lost.contains(path) && survived.contains(&format!("{new}/{path}")));
        kept.count()
    };
    let of_use: usize = members.iter().map(holds).sum();
    assert_eq!((before.len(), survived.len(), of_use), (44, 43, 41), "93 % of it is of use");
}
