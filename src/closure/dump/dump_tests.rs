//! A small fixed closure in every format, and what must not get into any.

use std::os::unix::ffi::OsStrExt;

use serde_json::Value;

use super::*;
use crate::values::PathInfo;

fn path(n: char, name: &str) -> StorePath {
    StorePath::new(&format!("{}-{name}", n.to_string().repeat(32))).unwrap()
}

/// The SRI hash whose bytes are all `byte`.
fn hash(byte: u8) -> String {
    crate::values::Hash::new(crate::values::Algorithm::Sha256, &[byte; 32]).unwrap().sri()
}

fn info(path: StorePath, nar_size: u64, references: Vec<StorePath>) -> PathInfo {
    PathInfo {
        nar_hash: hash(path.as_str().as_bytes()[0]),
        path,
        nar_size,
        references,
        deriver: None,
        registration_time: 1_764_268_800,
        signatures: Vec::new(),
        ca: None,
        ultimate: false,
    }
}

/// Two roots, one of which refers to the other; a reference to itself, a content address, a deriver, signatures.
fn closure() -> Closure {
    let [libc, text, tool, system] =
        [path('0', "libc-2.42"), path('1', "motd.txt"), path('2', "tool+x?=1.0"), path('z', "system")];
    let mut members = vec![
        info(libc.clone(), 31_457_280, vec![libc.clone()]),
        info(text.clone(), 136, vec![]),
        info(tool.clone(), 2_048_000, vec![libc.clone()]),
        info(system.clone(), 0, vec![libc, text, tool.clone()]),
    ];
    members[0].deriver = Some(path('d', "libc-2.42.drv"));
    members[0].signatures = vec!["cache.example.org-1:AAAA".to_owned(), "other-1:BBBB".to_owned()];
    members[1].ca = Some("text:sha256:0mdqa9w1p6cmli6976v4wi0sw9r4p5prkj7lzfd1877wk11c9c73".to_owned());
    members[1].registration_time = 0;
    members[3].ultimate = true;
    Closure::new(vec![system, tool], members).unwrap()
}

fn rendered(closure: &Closure, format: Format) -> String {
    String::from_utf8(render(closure, Path::new("/nix/store"), format).unwrap()).unwrap()
}

fn schema() -> jsonschema::Validator {
    let schema: Value = serde_json::from_str(include_str!("../../../docs/schema/closure.json")).unwrap();
    jsonschema::meta::validate(&schema).unwrap();
    jsonschema::validator_for(&schema).unwrap()
}

#[test]
fn every_format() {
    let mut settings = insta::Settings::clone_current();
    settings.set_prepend_module_to_snapshot(false);
    settings.set_omit_expression(true);
    settings.bind(|| {
        insta::assert_snapshot!("text", rendered(&closure(), Format::Text));
        insta::assert_snapshot!("json", rendered(&closure(), Format::Json));
        insta::assert_snapshot!("registration", rendered(&closure(), Format::Registration));
        insta::assert_snapshot!("dot", rendered(&closure(), Format::Dot));
    });
    assert_eq!(rendered(&closure(), Format::StorePaths), rendered(&closure(), Format::Text));
}

/// The keys of format 2 in the tests of Nix 2.33 to 2.36 (`src/libstore-tests/data/path-info/json-2` of its sources), and those that
/// `nix path-info` puts around them.
#[test]
fn entries_have_the_keys_of_nix() {
    let dump: Value = serde_json::from_str(&rendered(&closure(), Format::Json)).unwrap();
    let keys = |value: &Value| value.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
    assert_eq!(keys(&dump), ["info", "roots", "storeDir", "totals", "version"]);
    for entry in dump["info"].as_object().unwrap().values() {
        let known =
            "ca deriver narHash narSize references registrationTime signatures storeDir ultimate version";
        assert_eq!(keys(entry), known.split(' ').collect::<Vec<_>>());
    }
    let text = &dump["info"][path('1', "motd.txt").as_str()];
    assert_eq!(
        text["ca"],
        serde_json::json!({ "method": "text", "hash": "sha256-47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=" })
    );
    assert_eq!(text["registrationTime"], Value::Null);
}

#[test]
fn json_satisfies_its_schema() {
    let dump: Value = serde_json::from_str(&rendered(&closure(), Format::Json)).unwrap();
    schema().validate(&dump).unwrap();
    let empty: Value =
        serde_json::from_str(&rendered(&Closure::new(vec![], []).unwrap(), Format::Json)).unwrap();
    schema().validate(&empty).unwrap();
}

/// A schema that takes everything would be satisfied as well.
#[test]
fn the_schema_refuses_what_is_not_ours() {
    let good: Value = serde_json::from_str(&rendered(&closure(), Format::Json)).unwrap();
    let tool = path('2', "tool+x?=1.0");
    let refused = |change: &dyn Fn(&mut Value, &str)| {
        let mut dump = good.clone();
        change(&mut dump, tool.as_str());
        assert_ne!(dump, good);
        assert!(!schema().is_valid(&dump), "{dump}");
    };
    refused(&|dump, _| dump["version"] = 1.into());
    refused(&|dump, _| {
        dump["roots"] = serde_json::json!(["/nix/store/zzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzz-system"])
    });
    refused(&|dump, _| drop(dump.as_object_mut().unwrap().remove("totals")));
    refused(&|dump, tool| dump["info"][tool]["ca"] = "text:sha256:x".into());
    refused(&|dump, tool| dump["info"][tool]["ca"] = serde_json::json!({ "method": "text" }));
    refused(&|dump, tool| dump["info"][tool]["narHash"] = "sha256:x".into());
    refused(&|dump, tool| dump["info"][tool]["narSize"] = (-1).into());
    refused(&|dump, tool| dump["info"][tool]["references"][0] = "x".into());
    refused(&|dump, tool| drop(dump["info"][tool].as_object_mut().unwrap().remove("deriver")));
    refused(&|dump, _| dump["info"]["x"] = Value::Null);
}

const HOSTILE: [&str; 6] = [
    "\n\"},\n/nix/store/x\n",
    "\u{1b}]0;title\u{7}\u{1b}[2J",
    "\u{9b}31m \u{7f}",
    "\0\r\t\\\"",
    "\u{202e}\u{2028}\u{1f600}",
    "</script>",
];

/// The same strings come out, as characters that no terminal takes for a command.
#[test]
fn hostile_strings_stay_strings_in_json() {
    let mut infos: Vec<PathInfo> = closure().members().cloned().collect();
    infos[0].signatures = HOSTILE.iter().map(|&text| text.to_owned()).collect();
    infos[1].nar_hash = HOSTILE.concat();
    let roots = closure().roots().to_vec();
    let closure = Closure::new(roots, infos).unwrap();
    let dir = Path::new("/nix/st\u{9b}\u{1b}[2J\nore");
    let text = String::from_utf8(render(&closure, dir, Format::Json).unwrap()).unwrap();
    assert!(text.chars().all(|c| c == '\n' || c == ' ' || c.is_ascii_graphic()), "{text:?}");
    let dump: Value = serde_json::from_str(&text).unwrap();
    let entry = |name| &dump["info"][path(name, if name == '0' { "libc-2.42" } else { "motd.txt" }).as_str()];
    assert_eq!(entry('0')["signatures"], serde_json::json!(HOSTILE));
    assert_eq!(entry('1')["narHash"], HOSTILE.concat());
    assert_eq!(dump["storeDir"], dir.to_str().unwrap());
    assert_eq!(text.lines().count(), serde_json::to_string_pretty(&dump).unwrap().lines().count());
}

/// What would break the lines of a format, or has no form in it, is an error of one line without control characters.
#[test]
fn what_a_format_cannot_hold_is_refused() {
    let with = |change: &dyn Fn(&mut PathInfo)| {
        let mut infos: Vec<PathInfo> = closure().members().cloned().collect();
        change(&mut infos[0]);
        Closure::new(closure().roots().to_vec(), infos).unwrap()
    };
    let refused = |closure: &Closure, dir: &Path, format| {
        let error = render(closure, dir, format).unwrap_err();
        let text = error.to_string();
        assert!(!text.is_empty() && text.chars().all(|c| !c.is_control()), "{text:?}");
        error
    };
    let store = Path::new("/nix/store");
    for hostile in HOSTILE {
        let other = with(&|info| info.nar_hash = hostile.to_owned());
        assert!(matches!(refused(&other, store, Format::Registration), DumpError::NarHash { .. }));
        let other = with(&|info| info.ca = Some(hostile.to_owned()));
        assert!(matches!(refused(&other, store, Format::Json), DumpError::ContentAddress { .. }));
        // Neither has a form for signatures or content addresses.
        let other =
            with(&|info| (info.ca, info.signatures) = (Some(hostile.to_owned()), vec![hostile.to_owned()]));
        for format in [Format::Text, Format::Registration, Format::Dot] {
            assert_eq!(rendered(&other, format), rendered(&closure(), format));
        }
    }
    let sha1 = with(&|info| info.nar_hash = "sha1-2jmj7l5rSw0yVb/vlWAYkK/YBwk=".to_owned());
    assert!(matches!(refused(&sha1, store, Format::Registration), DumpError::NarHash { .. }));
    for format in [Format::Text, Format::StorePaths, Format::Registration] {
        let error = refused(&closure(), Path::new("/nix/st\nore"), format);
        assert!(matches!(error, DumpError::StoreDir(_)));
    }
    let not_utf8 = Path::new(std::ffi::OsStr::from_bytes(b"/nix/\xff"));
    assert!(matches!(refused(&closure(), not_utf8, Format::Json), DumpError::StoreDir(_)));
    let lines = render(&closure(), not_utf8, Format::Text).unwrap();
    assert!(lines.starts_with(b"/nix/\xff/0000"));
}
