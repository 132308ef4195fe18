use std::io::Write as _;
use std::process::{Command, Stdio};

use proptest::prelude::*;
use serde_json::Value;

use super::*;
use crate::closure::made;

/// A closure of members by number, each with what it refers to.
fn closure(references: &[Vec<usize>], roots: &[usize]) -> Closure {
    let members: Vec<_> = references.iter().map(|references| (1, references.clone())).collect();
    made::closure(&members, roots)
}

/// SHA-256 in base 64, by the command of the system.
fn hash(text: &str) -> String {
    let command = Command::new("sha256sum").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
    let mut command = command.unwrap();
    command.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    let sum = command.wait_with_output().unwrap();
    let digits: String = String::from_utf8(sum.stdout).unwrap().chars().take(64).collect();
    let bits: String = digits.chars().map(|digit| format!("{:04b}", digit.to_digit(16).unwrap())).collect();
    // 256 bits are 42 groups of six, and four bits that are filled up.
    let letters: Vec<char> = ('A'..='Z').chain('a'..='z').chain('0'..='9').chain(['+', '/']).collect();
    let groups = format!("{bits}00");
    let groups = groups.as_bytes().chunks(6).map(|group| std::str::from_utf8(group).unwrap());
    groups.map(|group| letters[usize::from_str_radix(group, 2).unwrap()]).chain(['=']).collect()
}

/// A browser runs nothing that has another hash.
#[test]
fn the_policy_allows_the_script_and_the_style_that_are_in_the_page() {
    assert_eq!([SCRIPT_HASH, STYLE_HASH], [hash(SCRIPT).as_str(), hash(STYLE).as_str()]);
}

#[test]
fn the_page_names_nothing_that_would_be_fetched() {
    for text in [PAGE, SCRIPT, STYLE] {
        for word in
            ["http:", "https:", "//cdn", "url(", "@import", "fetch(", "XMLHttpRequest", "innerHTML", "src="]
        {
            assert!(!text.contains(word), "{word}");
        }
    }
}

/// What is between the tags of the data, as a browser takes it: all up to the first end tag.
fn embedded(page: &str) -> &str {
    let (_, from) = page.split_once("<script type=\"application/json\" id=\"data\">").unwrap();
    from.split_once("</script").unwrap().0
}

proptest! {
    /// Whatever the store's directory is called: it is read as it was, and there is nothing that could end the element before.
    #[test]
    fn hostile_text_stays_inside_of_its_string(parts in proptest::collection::vec(prop_oneof![
        Just("</script>".to_owned()), Just("<!--".to_owned()), Just("<script".to_owned()), Just("\"'\\".to_owned()), Just("\u{2028}\u{2029}".to_owned()), Just("@data@".to_owned()), Just("\n\u{1b}[31m\0".to_owned()), Just("&lt;".to_owned()), any::<String>(),
    ], 0..6)) {
        let dir = parts.concat();
        let mut out = Vec::new();
        write(&closure(&[vec![]], &[0]), Path::new(&dir), &mut out).unwrap();
        let page = String::from_utf8(out).unwrap();
        let text = embedded(&page);
        prop_assert!(!text.contains(['<', '>', '&', '\u{2028}', '\u{2029}']), "{}", text);
        let data: Value = serde_json::from_str(text).unwrap();
        prop_assert_eq!(data["storeDir"].as_str(), Some(dir.as_str()));
        prop_assert_eq!(page.matches("<script").count(), 2);
    }
}
