//! The options of a mount, as mount(8) and fstab(5) have them, to what they mean for a view. No call.
//!
//! Options are separated by commas. A comma, a quotation mark or a backslash in a value has a backslash before it, or the value is in
//! quotation marks: both are what libmount leaves together.
//!
//! Hard points:
//! 1. mount(8) adds options that nobody wrote (`rw`, and what `user` implies), and for a remount those of the mount table. They
//!    cannot be told from those that somebody wrote, so what contradicts a view is accepted where it takes nothing away.
//! 2. Whether mount(8) passes on several options of the same name is its own affair: a list is one value.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

/// Why options are refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum OptionError {
    /// Nobody knows it.
    #[error("unknown mount option '{0}'; mount.fuse.nix-store-fs(8) lists those that there are")]
    Unknown(String),
    /// It is a word, and has a value.
    #[error("the mount option '{0}' takes no value")]
    Value(String),
    /// It has no value, and needs one.
    #[error("the mount option '{0}' needs a value: {0}=…")]
    NoValue(String),
    /// Nothing closes the value.
    #[error("a quotation mark or a backslash in the mount options has nothing behind it")]
    Open,
}

/// What options ask for.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Options {
    /// Words for the command line that serves the view.
    pub(super) words: Vec<OsString>,
    /// Whether a view that is there is to be reloaded.
    pub(super) remount: bool,
    /// Whether no program may be executed from the mount.
    pub(super) noexec: bool,
    /// Whether no link in the mount is followed.
    pub(super) nosymfollow: bool,
}

/// What an option means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Meaning {
    /// `--NAME`.
    Word,
    /// `--NAME=VALUE`.
    Value,
    /// `--NAME=VALUE` for each part between colons.
    List(&'static str),
    Remount,
    NoExec(bool),
    NoSymFollow(bool),
    /// It is for mount(8), or says what is true of every view, or what makes no difference to one.
    Nothing,
    /// The same, with or without a value.
    Anything,
}

/// Options of views.
const OF_VIEWS: [(&str, Meaning); 18] = [
    ("system", Meaning::Value),
    ("root", Meaning::List("root")),
    ("roots-file", Meaning::Value),
    ("from", Meaning::Value),
    ("untrusted", Meaning::List("untrusted")),
    ("store", Meaning::Value),
    ("name", Meaning::Value),
    ("io", Meaning::Value),
    ("idle-polling", Meaning::Value),
    ("watch", Meaning::Word),
    ("prune", Meaning::Word),
    ("report", Meaning::Word),
    ("prefetch", Meaning::Value),
    ("cache-dir", Meaning::Value),
    ("gc-root", Meaning::Value),
    ("sandbox", Meaning::Value),
    ("threads", Meaning::Value),
    ("quiet", Meaning::Word),
];

/// Options of mount(8) and of the mount table (mount(8), "FILESYSTEM-INDEPENDENT MOUNT OPTIONS"; mount.fuse3(8)) that change
/// nothing about a view: it is read-only, nosuid and nodev, and no time in it ever changes.
const WITHOUT_EFFECT: [&str; 49] = [
    "ro",
    "rw",
    "defaults",
    "auto",
    "noauto",
    "nofail",
    "fail",
    "_netdev",
    "user",
    "users",
    "nouser",
    "nousers",
    "owner",
    "noowner",
    "group",
    "nogroup",
    "suid",
    "nosuid",
    "dev",
    "nodev",
    "atime",
    "noatime",
    "diratime",
    "nodiratime",
    "relatime",
    "norelatime",
    "strictatime",
    "nostrictatime",
    "lazytime",
    "nolazytime",
    "sync",
    "async",
    "dirsync",
    "iversion",
    "noiversion",
    "mand",
    "nomand",
    "silent",
    "loud",
    "allow_other",
    "default_permissions",
    "shared",
    "private",
    "slave",
    "unbindable",
    "rshared",
    "rprivate",
    "rslave",
    "runbindable",
];

/// The same, with a value.
const VALUE_WITHOUT_EFFECT: [&str; 8] =
    ["user", "comment", "uhelper", "helper", "user_id", "group_id", "max_read", "blksize"];

impl Meaning {
    fn of(name: &str) -> Option<Self> {
        let of_view = OF_VIEWS.iter().find(|(known, _)| *known == name).map(|(_, meaning)| *meaning);
        of_view.or_else(|| match name {
            "remount" => Some(Self::Remount),
            "noexec" => Some(Self::NoExec(true)),
            "exec" => Some(Self::NoExec(false)),
            "nosymfollow" => Some(Self::NoSymFollow(true)),
            "symfollow" => Some(Self::NoSymFollow(false)),
            _ if name.starts_with("x-") || name.starts_with("X-") => Some(Self::Anything),
            _ if VALUE_WITHOUT_EFFECT.contains(&name) => Some(Self::Anything),
            _ if WITHOUT_EFFECT.contains(&name) => Some(Self::Nothing),
            _ => None,
        })
    }
}

impl Options {
    /// What `texts` ask for, each of which was behind a `-o`. Unknown ones are left out if the mount is `sloppy`.
    ///
    /// # Errors
    /// [`OptionError`].
    pub(super) fn parse<'a>(
        texts: impl IntoIterator<Item = &'a OsStr>,
        sloppy: bool,
    ) -> Result<Self, OptionError> {
        let mut options = Self::default();
        for text in texts {
            for option in split(text.as_bytes(), b',')? {
                if !option.is_empty() {
                    options.add(option, sloppy)?;
                }
            }
        }
        Ok(options)
    }

    fn add(&mut self, option: &[u8], sloppy: bool) -> Result<(), OptionError> {
        let (name, value) = match option.iter().position(|byte| *byte == b'=') {
            Some(at) => (option.get(..at).unwrap_or_default(), option.get(at + 1..)),
            None => (option, None),
        };
        let shown = || String::from_utf8_lossy(name).into_owned();
        let Some(meaning) = std::str::from_utf8(name).ok().and_then(Meaning::of) else {
            return if sloppy { Ok(()) } else { Err(OptionError::Unknown(shown())) };
        };
        match (meaning, value) {
            (Meaning::Word, None) => self.words.push(word(name, None)),
            (Meaning::Value, Some(value)) if !value.is_empty() => self.words.push(word(name, Some(value))),
            (Meaning::List(name), Some(value)) if !value.is_empty() => {
                for part in split(value, b':')?.into_iter().filter(|part| !part.is_empty()) {
                    self.words.push(word(name.as_bytes(), Some(part)));
                }
            }
            (Meaning::Value | Meaning::List(_), _) => return Err(OptionError::NoValue(shown())),
            (Meaning::Remount, None) => self.remount = true,
            (Meaning::NoExec(is), None) => self.noexec = is,
            (Meaning::NoSymFollow(is), None) => self.nosymfollow = is,
            (Meaning::Anything, _) | (Meaning::Nothing, None) => {}
            (_, Some(_)) => return Err(OptionError::Value(shown())),
        }
        Ok(())
    }
}

/// A word of the command line.
fn word(name: &[u8], value: Option<&[u8]>) -> OsString {
    let value = value.map(|value| [b"=", unescape(value).as_slice()].concat()).unwrap_or_default();
    OsString::from_vec([b"--", name, &value].concat())
}

/// The parts between `separator` where it stands outside of quotation marks and without a backslash; they stay as they are written.
fn split(text: &[u8], separator: u8) -> Result<Vec<&[u8]>, OptionError> {
    let (mut parts, mut begin) = (Vec::new(), 0);
    let (mut quoted, mut escaped) = (false, false);
    for (at, byte) in text.iter().enumerate() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            b'"' => quoted = !quoted,
            byte if *byte == separator && !quoted => {
                parts.extend(text.get(begin..at));
                begin = at + 1;
            }
            _ => {}
        }
    }
    if quoted || escaped {
        return Err(OptionError::Open);
    }
    parts.extend(text.get(begin..));
    Ok(parts)
}

/// What is written: quotation marks are left out, and a backslash before another character.
fn unescape(text: &[u8]) -> Vec<u8> {
    let mut written = Vec::with_capacity(text.len());
    let mut bytes = text.iter();
    while let Some(byte) = bytes.next() {
        match byte {
            b'\\' => written.extend(bytes.next()),
            b'"' => {}
            byte => written.push(*byte),
        }
    }
    written
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parse(text: &str) -> Result<Options, OptionError> {
        Options::parse([OsStr::new(text)], false)
    }

    fn words(text: &str) -> Vec<String> {
        let options = parse(text).unwrap_or_else(|error| panic!("{text}: {error}"));
        options.words.into_iter().map(|word| word.into_string().unwrap()).collect()
    }

    #[test]
    fn options_become_words_of_the_command_line() {
        for (text, expected) in [
            ("", &[][..]),
            (",,", &[]),
            ("io=cached,watch", &["--io=cached", "--watch"]),
            ("rw,nosuid,x-systemd.automount,X-mount.mkdir=0700,user=root,comment=a,_netdev", &[]),
            ("ro,relatime,user_id=0,group_id=0,default_permissions,allow_other", &[]),
            ("root=/a:/b,untrusted=/c", &["--root=/a", "--root=/b", "--untrusted=/c"]),
            ("root=/a,root=/b", &["--root=/a", "--root=/b"]),
            (r"root=/a\:b:/c", &["--root=/a:b", "--root=/c"]),
            ("root=\"/a:b\":/c", &["--root=/a:b", "--root=/c"]),
            ("store=\"local?root=/a,b\",prune", &["--store=local?root=/a,b", "--prune"]),
            (r"store=local?root=/a\,b,prune", &["--store=local?root=/a,b", "--prune"]),
            (r#"name=a\"b\\c"#, &[r#"--name=a"b\c"#]),
            ("store=unix:///s?root=/r", &["--store=unix:///s?root=/r"]),
            ("system=a=b", &["--system=a=b"]),
        ] {
            assert_eq!(words(text), expected, "{text}");
        }
    }

    #[test]
    fn what_is_no_option_is_refused() {
        let unknown = |name: &str| OptionError::Unknown(name.to_owned());
        for (text, expected) in [
            ("watc", unknown("watc")),
            ("watch,wat ch=1", unknown("wat ch")),
            ("=a", unknown("")),
            ("x", unknown("x")),
            ("context=a", unknown("context")),
            ("verbose", unknown("verbose")),
            ("help", unknown("help")),
            ("dump-closure", unknown("dump-closure")),
            ("watch=1", OptionError::Value("watch".to_owned())),
            ("noexec=1", OptionError::Value("noexec".to_owned())),
            ("ro=1", OptionError::Value("ro".to_owned())),
            ("remount=1", OptionError::Value("remount".to_owned())),
            ("io", OptionError::NoValue("io".to_owned())),
            ("root=", OptionError::NoValue("root".to_owned())),
            ("store=\"a,watch", OptionError::Open),
            ("name=a\\", OptionError::Open),
        ] {
            assert_eq!(parse(text), Err(expected), "{text}");
        }
        let sloppy = Options::parse([OsStr::new("a=1,watch,b")], true).unwrap();
        assert_eq!(sloppy.words, ["--watch"]);
    }

    #[test]
    fn the_last_of_two_that_contradict_counts() {
        let noexec = |text| parse(text).unwrap().noexec;
        assert!(noexec("exec,noexec") && !noexec("noexec,exec") && !noexec("defaults"));
        let options = parse("nosymfollow,remount").unwrap();
        assert!(options.nosymfollow && options.remount);
    }

    #[test]
    fn no_option_means_two_things() {
        for (name, _) in OF_VIEWS {
            assert!(!WITHOUT_EFFECT.contains(&name) && !VALUE_WITHOUT_EFFECT.contains(&name), "{name}");
        }
    }

    proptest! {
        /// Every value can be written, in either way.
        #[test]
        fn values_come_through(value in "[^\0]{1,20}", quoted: bool) {
            let special = |c: char| matches!(c, '\\' | '"') || !quoted && c == ',';
            let escaped: String =
                value.chars().flat_map(|c| special(c).then_some('\\').into_iter().chain([c])).collect();
            let text = if quoted { format!("watch,name=\"{escaped}\",prune") } else { format!("watch,name={escaped},prune") };
            prop_assert_eq!(words(&text), ["--watch".to_owned(), format!("--name={value}"), "--prune".to_owned()]);
        }

        /// And what is written at random does no harm.
        #[test]
        fn nothing_panics(text in proptest::collection::vec(any::<u8>(), 0..40)) {
            let _ = Options::parse([OsStr::from_bytes(&text)], false);
        }
    }
}
