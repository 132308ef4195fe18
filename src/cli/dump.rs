//! `--dump-closure`: what would be served, printed.

use clap::ValueEnum;

use super::args::RootArgs;
use super::closures::{Known, Resolved};
use super::config::ConfigError;
use super::exit::{Exit, Failure};
use super::output::{Color, When, print};
use crate::closure::dump::{self, Format};
use crate::closure::saved::Content;

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
            dump::paths(saved.members(), saved.store_dir())?
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

/// What was typed.
fn name(format: Format) -> String {
    let value = format.to_possible_value();
    format!("--dump-closure={}", value.as_ref().map(|value| value.get_name()).unwrap_or_default())
}
