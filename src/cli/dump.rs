//! `--dump-closure`: what would be served, printed.

use std::os::unix::ffi::OsStrExt;

use clap::ValueEnum;

use super::args::RootArgs;
use super::closures::{Known, Resolved};
use super::config::ConfigError;
use super::exit::{Exit, Failure};
use super::output::{Color, When, print};
use crate::closure::dump::{self, Format};
use crate::closure::saved::{Content, Saved};

pub(super) fn run(roots: RootArgs, format: Format, color: Option<When>) -> Result<Exit, Failure> {
    let color = match (format, color) {
        (Format::Tree, color) => color.unwrap_or_default().into(),
        (_, None) => Color::NONE,
        (_, Some(_)) => return Err(ConfigError::Color.into()),
    };
    let known = Known::of(roots)?;
    if let Known::File { saved, real_dir, .. } = &known
        && let Err(absent) = saved.check_present(real_dir)
    {
        tracing::warn!("a view of this would be refused: {}", crate::error::chain(&absent));
    }
    let text = match &known {
        Known::File { saved, .. } if is_list(format) && matches!(saved.content(), Content::Names(_)) => {
            list(saved)
        }
        _ => {
            let Resolved { closure, dir, .. } = known.closure(&name(format))?;
            dump::render(&closure, &dir, format)?
        }
    };
    print(color, |out| out.write_all(&text))?;
    Ok(Exit::Success)
}

/// Whether the format has names and nothing else.
fn is_list(format: Format) -> bool {
    matches!(format, Format::Text | Format::StorePaths)
}

/// A list again. Its store directory has no line break: it was read from lines.
fn list(saved: &Saved) -> Vec<u8> {
    let dir = saved.store_dir().as_os_str().as_bytes();
    let lines = saved.members().into_iter().map(|path| [dir, b"/", path.as_str().as_bytes(), b"\n"].concat());
    lines.collect::<Vec<_>>().concat()
}

/// What was typed.
fn name(format: Format) -> String {
    let value = format.to_possible_value();
    format!("--dump-closure={}", value.as_ref().map(|value| value.get_name()).unwrap_or_default())
}
