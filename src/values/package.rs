//! Names of packages in names of store paths: `openssl-3.0.14-bin` is version `3.0.14` of `openssl`, its output `bin`.
//!
//! A name does not tell where its parts end, so this is a guess. It is made as Nix's own tools make it: the version begins after the
//! first dash that something else than a letter follows (Nix manual, `builtins.parseDrvName`), and a last part of small letters, or
//! `lib32` or `lib64`, is an output (as for `nix store diff-closures`). Only a name with a version has one here: the `etc` of
//! `web-etc` is as likely to be what the package is called.

/// The parts of a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Package<'a> {
    /// What it is called without a version.
    pub name: &'a str,
    /// Empty: it has none.
    pub version: &'a str,
    /// Empty: it is the main one, or the only one.
    pub output: &'a str,
}

impl<'a> Package<'a> {
    /// Takes `name`, that of a store path without its hash, to pieces.
    #[must_use]
    pub fn parse(name: &'a str) -> Self {
        let starts_version = |at: &usize| {
            let after = name.get(at + 1..).unwrap_or_default();
            after.starts_with(|c: char| !c.is_ascii_alphabetic())
        };
        let dash = name.match_indices('-').map(|(at, _)| at).filter(|at| *at > 0).find(starts_version);
        let Some((package, rest)) = dash.and_then(|at| name.split_at_checked(at)) else {
            return Self { name, version: "", output: "" };
        };
        let rest = rest.get(1..).unwrap_or_default();
        match rest.rsplit_once('-') {
            Some((version, output)) if is_output(output) => Self { name: package, version, output },
            _ => Self { name: package, version: rest, output: "" },
        }
    }
}

fn is_output(text: &str) -> bool {
    let small = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_lowercase());
    small || ["lib32", "lib64"].contains(&text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_taken_to_pieces() {
        for (name, package, version, output) in [
            ("openssl-3.0.14", "openssl", "3.0.14", ""),
            ("openssl-3.0.14-bin", "openssl", "3.0.14", "bin"),
            ("glibc-2.40-66", "glibc", "2.40-66", ""),
            ("glibc-2.40-66-dev", "glibc", "2.40-66", "dev"),
            ("gcc-13.3.0-lib32", "gcc", "13.3.0", "lib32"),
            ("hello-0-unstable-2024-01-01", "hello", "0-unstable-2024-01-01", ""),
            ("nixos-system-web-24.11", "nixos-system-web", "24.11", ""),
            ("web-etc", "web-etc", "", ""),
            ("unit-nginx.service", "unit-nginx.service", "", ""),
            ("x", "x", "", ""),
            ("x-", "x-", "", ""),
            ("-1", "-1", "", ""),
            ("--1", "-", "1", ""),
            ("a-1-", "a", "1-", ""),
        ] {
            assert_eq!(Package::parse(name), Package { name: package, version, output }, "{name}");
        }
    }
}
