//! Standard output: colour, and text of others made harmless.

use std::ffi::OsStr;
use std::fmt::{self, Write as _};
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use anstream::{AutoStream, ColorChoice};
use clap::ValueEnum;
use serde::Serialize;

use super::exit::Failure;
use crate::closure::dump;

/// Whether what is printed for people has colours.
#[derive(Debug, Clone, Copy, Default, clap::Args)]
pub(super) struct Color {
    /// Whether to use colours; 'auto': on a terminal, unless NO_COLOR is set
    #[arg(long, value_name = "WHEN", value_enum, default_value_t)]
    color: When,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub(super) enum When {
    #[default]
    Auto,
    Always,
    Never,
    /// Bytes for programs: nobody looks for colours in them.
    #[value(skip)]
    Untouched,
}

impl From<When> for Color {
    fn from(color: When) -> Self {
        Self { color }
    }
}

impl Color {
    /// For programs: none, and what is written is printed as it is.
    pub(super) const NONE: Self = Self { color: When::Untouched };

    fn choice(self) -> ColorChoice {
        match self.color {
            When::Auto => AutoStream::choice(&io::stdout()),
            When::Always => ColorChoice::AlwaysAnsi,
            When::Never | When::Untouched => ColorChoice::Never,
        }
    }
}

/// Who reads standard output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reader {
    /// It may read more.
    There,
    /// It has seen enough, which is no error.
    Gone,
}

/// Writes to standard output, without the colours that are not wanted; a reader that has seen enough is no error.
pub(super) fn print(
    color: Color,
    write: impl FnOnce(&mut dyn Write) -> io::Result<()>,
) -> Result<(), Failure> {
    print_more(color, write).map(drop)
}

/// The same for who has more to write as long as somebody reads it.
pub(super) fn print_more(
    color: Color,
    write: impl FnOnce(&mut dyn Write) -> io::Result<()>,
) -> Result<Reader, Failure> {
    let mut plain = io::BufWriter::new(io::stdout().lock());
    let written = match color.color {
        When::Untouched => write(&mut plain),
        _ => write(&mut AutoStream::new(&mut plain as &mut dyn Write, color.choice())),
    };
    match written.and_then(|()| plain.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(Reader::Gone),
        answer => answer.map(|()| Reader::There).map_err(Failure::Output),
    }
}

/// Writes JSON in printable ASCII, whatever the strings in it hold; `pretty` or in one line.
pub(super) fn json(value: &impl Serialize, pretty: bool, out: &mut dyn Write) -> io::Result<()> {
    let text = if pretty { serde_json::to_string_pretty(value) } else { serde_json::to_string(value) }?;
    writeln!(out, "{}", dump::plain(text))
}

/// `1 name`, `2 names`.
pub(super) fn many(count: u64, one: &str, many: &str) -> String {
    format!("{count} {}", if count == 1 { one } else { many })
}

/// Text that somebody else has chosen, for a line that a person reads: what is not printable, and bytes that are no UTF-8, as escapes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Harmless<'a>(&'a [u8]);

impl<'a> Harmless<'a> {
    pub(super) fn text(text: &'a str) -> Self {
        Self(text.as_bytes())
    }

    pub(super) fn path(path: &'a Path) -> Self {
        Self::os(path.as_os_str())
    }

    pub(super) fn os(text: &'a OsStr) -> Self {
        Self(text.as_bytes())
    }
}

impl fmt::Display for Harmless<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for chunk in self.0.utf8_chunks() {
            for char in chunk.valid().chars() {
                match char {
                    '\'' | '"' => f.write_char(char)?,
                    _ => write!(f, "{}", char.escape_debug())?,
                }
            }
            chunk.invalid().iter().try_for_each(|byte| write!(f, "\\x{byte:02x}"))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_others_have_named_stays_in_its_line() {
        let shown = |bytes: &'static [u8]| Harmless(bytes).to_string();
        assert_eq!(shown("/a b/\u{fc}'\"".as_bytes()), "/a b/\u{fc}'\"");
        assert_eq!(shown(b"a\nb\r\t\0\x1b[31m\x7f\\"), "a\\nb\\r\\t\\0\\u{1b}[31m\\u{7f}\\\\");
        assert_eq!(shown(b"a\xff\xfeb"), "a\\xff\\xfeb");
        // The direction of text, and a line's end of Unicode.
        assert_eq!(shown("\u{202e}\u{2028}\u{9b}".as_bytes()), "\\u{202e}\\u{2028}\\u{9b}");
    }
}
