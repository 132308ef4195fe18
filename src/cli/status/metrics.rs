//! The text format of Prometheus, version 0.0.4 (Prometheus documentation, "Exposition formats"): what the node exporter's textfile
//! collector reads, and what a scrape gets that a socket unit starts.

use std::io::{self, Write};

use super::super::output::Harmless;
use super::super::views::Unanswered;
use crate::protocol::control::status::{State, Status, Usage};

/// What is counted in one view: labels besides its name, and the number.
type Sample<'a> = (Vec<(&'static str, &'a str)>, u64);
type Of = for<'a> fn(&'a Status) -> Vec<Sample<'a>>;

/// A metric, and what it is in each view.
struct Metric {
    name: &'static str,
    kind: &'static str,
    help: &'static str,
    of: Of,
}

const fn gauge(name: &'static str, help: &'static str, of: Of) -> Metric {
    Metric { name, kind: "gauge", help, of }
}

const fn counter(name: &'static str, help: &'static str, of: Of) -> Metric {
    Metric { name, kind: "counter", help, of }
}

const METRICS: [Metric; 16] = [
    gauge("info", "Version and settings, always 1.", |view| {
        vec![(vec![("version", &view.program_version), ("io", view.settings.io.name())], 1)]
    }),
    gauge("serving", "Whether a server answers.", |view| one(u64::from(view.state == State::Serving))),
    gauge("served_since_seconds", "Since when it is served, in seconds since 1970.", |view| {
        perhaps(view.served_since.map(|since| since.0))
    }),
    gauge("paths", "Store paths shown.", |view| one(view.paths)),
    gauge("nar_size_bytes", "Sum of their NAR sizes.", |view| one(view.nar_size)),
    counter("reloads_done_total", "Reloads that have become visible.", |view| one(view.reloads.done)),
    counter("reloads_failed_total", "Reloads that have changed nothing.", |view| one(view.reloads.failed)),
    counter("servers_replaced_total", "Servers that ended while it was served.", |view| {
        one(view.servers.replaced)
    }),
    counter("servers_crashed_total", "Those of them that crashed.", |view| one(view.servers.crashed)),
    counter("requests_total", "Requests of the kernel, by kind.", |view| {
        let kinds = view.usage.iter().flat_map(|usage| &usage.requests);
        kinds.map(|(kind, count)| (vec![("kind", kind.as_str())], *count)).collect()
    }),
    counter("read_bytes_total", "Bytes of files that servers read.", |view| {
        counted(view, |usage| usage.bytes_read)
    }),
    gauge("names_known", "Names that the kernel may know.", |view| counted(view, |usage| usage.names_known)),
    counter("panics_total", "Requests that a defect ended.", |view| counted(view, |usage| usage.panics)),
    gauge("memory_bytes", "Memory that a process alone takes.", |view| {
        let processes = [("monitor", Some(view.monitor)), ("server", view.server)];
        let known = processes.into_iter().filter_map(|(name, process)| Some((name, process?.memory?)));
        known.map(|(name, bytes)| (vec![("process", name)], bytes)).collect()
    }),
    gauge("missed_names", "Store paths that were asked for and not shown, with --report.", |view| {
        perhaps(view.missed.map(|missed| missed.names))
    }),
    counter("missed_questions_total", "How often they were asked for.", |view| {
        perhaps(view.missed.map(|missed| missed.questions))
    }),
];

fn one(value: u64) -> Vec<Sample<'static>> {
    vec![(Vec::new(), value)]
}

fn perhaps(value: Option<u64>) -> Vec<Sample<'static>> {
    value.map(one).unwrap_or_default()
}

fn counted(view: &Status, of: fn(&Usage) -> u64) -> Vec<Sample<'static>> {
    perhaps(view.usage.as_ref().map(of))
}

/// Writes all metrics, each with its help and type and all its samples together, as the format wants it.
pub(super) fn write(views: &[Status], unanswered: &[Unanswered], out: &mut dyn Write) -> io::Result<()> {
    for Metric { name, kind, help, of } in METRICS {
        head(name, kind, help, out)?;
        for view in views {
            of(view).into_iter().try_for_each(|found| sample(name, &view.name, found, out))?;
        }
    }
    head("up", "gauge", "Whether the monitor of a view answers.", out)?;
    let up = views.iter().map(|view| (view.name.as_str(), 1));
    let all = up.chain(unanswered.iter().map(|error| (error.view.as_str(), 0)));
    all.into_iter().try_for_each(|(view, up)| sample("up", view, (Vec::new(), up), out))
}

fn head(name: &str, kind: &str, help: &str, out: &mut dyn Write) -> io::Result<()> {
    writeln!(out, "# HELP nix_store_fs_{name} {help}\n# TYPE nix_store_fs_{name} {kind}")
}

fn sample(name: &str, view: &str, (labels, value): Sample<'_>, out: &mut dyn Write) -> io::Result<()> {
    write!(out, "nix_store_fs_{name}{{view=\"{}\"", escaped(view))?;
    labels.into_iter().try_for_each(|(name, text)| write!(out, ",{name}=\"{}\"", escaped(text)))?;
    writeln!(out, "}} {value}")
}

/// The value of a label, which ends at a quotation mark and has no line break. What is not printable is spelt out in it.
fn escaped(text: &str) -> String {
    Harmless::text(text).to_string().replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::views::NoAnswer;

    #[test]
    fn labels_end_where_they_end() {
        assert_eq!(escaped("a\"b\\"), "a\\\"b\\\\\\\\");
        assert_eq!(escaped("c\nd\u{1b}"), "c\\\\nd\\\\u{1b}");
    }

    #[test]
    fn a_view_that_does_not_answer_is_down() {
        let mut text = Vec::new();
        let error = Unanswered { view: "web".to_owned(), why: NoAnswer::Ended("/run/x".into()) };
        write(&[], &[error], &mut text).unwrap();
        let text = String::from_utf8(text).unwrap();
        assert!(text.ends_with("nix_store_fs_up{view=\"web\"} 0\n"), "{text}");
    }
}
