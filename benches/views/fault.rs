//! The one error type of the measuring program: what it was doing, and why that failed.
//!
//! A tool that ends at its first failure needs no finer distinction; the cause is kept as a source.

use std::error::Error;
use std::fmt;

/// A step that failed.
#[derive(Debug)]
pub(crate) struct Fault {
    doing: String,
    cause: Option<Box<dyn Error + Send + Sync>>,
}

/// What every fallible function here returns.
pub(crate) type Outcome<T> = Result<T, Fault>;

impl Fault {
    /// A failure without a deeper cause.
    pub(crate) fn new(doing: impl Into<String>) -> Self {
        Self { doing: doing.into(), cause: None }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.doing)?;
        match &self.cause {
            Some(cause) => write!(out, ": {cause}"),
            None => Ok(()),
        }
    }
}

impl Error for Fault {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.cause.as_deref().map(|cause| cause as &(dyn Error + 'static))
    }
}

/// Says what was being done when something failed.
pub(crate) trait Doing<T> {
    /// `doing` is only called upon failure: a timing loop pays nothing for it.
    fn doing(self, doing: impl FnOnce() -> String) -> Outcome<T>;
}

impl<T, E: Into<Box<dyn Error + Send + Sync>>> Doing<T> for Result<T, E> {
    fn doing(self, doing: impl FnOnce() -> String) -> Outcome<T> {
        self.map_err(|cause| Fault { doing: doing(), cause: Some(cause.into()) })
    }
}
