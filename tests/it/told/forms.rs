//! The forms that programs read: the schema of each JSON, and the grammar of metrics.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use crate::util::schema::Schema;

/// Parses JSON that satisfies the schema of this name in docs/schema.
pub(super) fn json(schema: &str, text: &str) -> Value {
    let value: Value = serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"));
    Schema::new(schema).check(&value);
    value
}

/// A sample: its labels, and its value.
pub(super) type Sample = (BTreeMap<String, String>, f64);

/// The metrics in a text, by name: text format 0.0.4 of Prometheus ("Exposition formats", and "Metric names and labels" of its
/// documentation), and what its linter wants besides: each metric once, with help and type before all of its samples, none twice.
pub(super) fn metrics(text: &str) -> BTreeMap<String, Vec<Sample>> {
    assert!(text.ends_with('\n'), "the last line has to end");
    let mut found: BTreeMap<String, Vec<Sample>> = BTreeMap::new();
    let (mut current, mut kind, mut seen) = (String::new(), "", BTreeSet::new());
    for line in text.strip_suffix('\n').unwrap().split('\n') {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            let (name, help) = rest.split_once(' ').expect("a help");
            assert!(is_name(name, true) && !help.is_empty(), "{line}");
            let mut escapes = help.split('\\').skip(1);
            assert!(escapes.all(|after| after.starts_with('n')), "{line}");
            assert!(found.insert(name.to_owned(), Vec::new()).is_none(), "twice: {line}");
            (current, kind) = (name.to_owned(), "");
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, of) = rest.split_once(' ').unwrap();
            assert!(name == current && kind.is_empty() && found[name].is_empty(), "{line}");
            assert!(["counter", "gauge"].contains(&of), "{line}");
            assert_eq!(of == "counter", name.ends_with("_total"), "{line}");
            kind = of;
        } else {
            let (name, sample) = sample(line);
            assert!(name == current && !kind.is_empty(), "not below its head: {line}");
            assert!(kind != "counter" || sample.1 >= 0.0, "{line}");
            let labels: Vec<_> = sample.0.clone().into_iter().collect();
            assert!(seen.insert((name.clone(), labels)), "twice: {line}");
            found.get_mut(&name).unwrap().push(sample);
        }
    }
    found
}

fn is_name(name: &str, colon: bool) -> bool {
    let fits = |c: char| c.is_ascii_alphanumeric() || c == '_' || colon && c == ':';
    !name.is_empty() && name.chars().all(fits) && !name.starts_with(|c: char| c.is_ascii_digit())
}

/// `name{label="value",...} number`.
fn sample(line: &str) -> (String, Sample) {
    let end = line.find(['{', ' ']).unwrap_or_else(|| panic!("no value: {line:?}"));
    let (name, mut rest) = line.split_at(end);
    assert!(is_name(name, true), "{line:?}");
    let mut labels = BTreeMap::new();
    if let Some(inside) = rest.strip_prefix('{') {
        rest = inside;
        loop {
            let (label, after) = rest.split_once("=\"").unwrap_or_else(|| panic!("no label: {line:?}"));
            assert!(is_name(label, false) && !label.starts_with("__"), "{line:?}");
            let mut value = String::new();
            let mut chars = after.chars();
            loop {
                match chars.next().unwrap_or_else(|| panic!("a label without end: {line:?}")) {
                    '"' => break,
                    '\\' => value.push(match chars.next() {
                        Some('n') => '\n',
                        Some(c @ ('"' | '\\')) => c,
                        other => panic!("escape {other:?}: {line:?}"),
                    }),
                    c => value.push(c),
                }
            }
            assert!(labels.insert(label.to_owned(), value).is_none(), "a label twice: {line:?}");
            rest = chars.as_str();
            match rest.split_at(1) {
                (",", more) => rest = more,
                ("}", more) => {
                    rest = more;
                    break;
                }
                _ => panic!("{line:?}"),
            }
        }
    }
    let value = rest.strip_prefix(' ').and_then(|value| value.parse().ok());
    (name.to_owned(), (labels, value.unwrap_or_else(|| panic!("no number: {line:?}"))))
}

/// What is no such text is refused: a check that takes everything proves nothing.
#[test]
fn the_grammar_refuses_what_is_wrong() {
    let head = "# HELP a Help.\n# TYPE a gauge\n";
    for wrong in [
        "a 1\n".to_owned(),
        format!("{head}a 1"),
        format!("{head}a{{b=\"c\\d\"}} 1\n"),
        format!("{head}a{{b=\"c\nd\"}} 1\n"),
        format!("{head}a{{b-c=\"d\"}} 1\n"),
        format!("{head}a{{b=\"c\"}} one\n"),
        format!("{head}a{{b=\"c\"}} 1\na{{b=\"c\"}} 2\n"),
        format!("{head}a 1\n{head}"),
        format!("{head}b 1\n"),
        format!("{head}\n"),
    ] {
        let refused = std::panic::catch_unwind(|| metrics(&wrong)).is_err();
        assert!(refused, "{wrong:?}");
    }
    let right = format!("{head}a{{b=\"c\\\\\\n\\\"}}{{,\",d=\"\"}} 1\n");
    assert_eq!(metrics(&right)["a"][0].0["b"], "c\\\n\"}{,");
}
