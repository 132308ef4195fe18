//! What was dumped is read as it was, and everything else is refused in one line.

use std::error::Error;

use proptest::prelude::*;
use serde_json::{Value, json};

use super::json::unreferenced;
use super::*;
use crate::closure::dump::{Format, render};
use crate::closure::made::{info as bare, named as path};
use crate::values::{Algorithm, ContentAddress, Hash, Method, PathInfo};

const STORE: &str = "/nix/store";

fn any_hash() -> impl Strategy<Value = Hash> {
    any::<[u8; 32]>().prop_map(|bytes| Hash::new(Algorithm::Sha256, &bytes).unwrap())
}

fn any_address() -> impl Strategy<Value = String> {
    (proptest::sample::select(vec![Method::Text, Method::Flat, Method::Nar, Method::Git]), any_hash())
        .prop_map(|(method, hash)| ContentAddress { method, hash }.to_string())
}

prop_compose! {
    /// Everything but the path and the references.
    fn any_facts()(
        hash in any_hash(),
        nar_size: u64,
        deriver in proptest::option::of("[0-9a-df-np-sv-z]{32}-[a-z?=+]{1,9}\\.drv"),
        registration_time: i64,
        signatures in proptest::collection::vec(any::<String>(), 0..3),
        ca in proptest::option::of(any_address()),
        ultimate: bool,
    ) -> PathInfo {
        let deriver = deriver.map(|name| StorePath::new(&name).unwrap());
        let (nar_hash, references, path) = (hash.sri(), Vec::new(), path(0, "x"));
        PathInfo { path, nar_hash, nar_size, references, deriver, registration_time, signatures, ca, ultimate }
    }
}

/// Members refer to earlier ones and perhaps to themselves; those that nobody refers to are roots, and some of the others.
fn any_closure() -> impl Strategy<Value = Closure> {
    let member = ("[0-9A-Za-z+_?=]{1,12}", any_facts(), any::<(u16, bool, bool)>());
    proptest::collection::vec(member, 0..12).prop_map(|members| {
        let paths: Vec<StorePath> = members.iter().enumerate().map(|(n, (name, ..))| path(n, name)).collect();
        let mut roots = Vec::new();
        let infos: Vec<PathInfo> = members
            .into_iter()
            .enumerate()
            .map(|(n, (_, mut info, (earlier, itself, is_root)))| {
                info.path = paths[n].clone();
                info.references =
                    (0..n).filter(|other| earlier >> other & 1 == 1).map(|n| paths[n].clone()).collect();
                info.references.extend(itself.then(|| paths[n].clone()));
                roots.extend(is_root.then(|| paths[n].clone()));
                info
            })
            .collect();
        let members = infos.iter().map(|info| (info.path.clone(), info.clone())).collect();
        roots.extend(unreferenced(&members));
        Closure::new(roots, infos).unwrap()
    })
}

fn dumped(closure: &Closure, format: Format) -> Vec<u8> {
    render(closure, Path::new(STORE), format).unwrap()
}

/// As earlier versions printed it.
fn version_1(closure: &Closure) -> Value {
    let full = |path: &StorePath| format!("{STORE}/{path}");
    let entry = |info: &PathInfo| {
        json!({
            "narHash": info.nar_hash,
            "narSize": info.nar_size,
            "references": info.references.iter().map(full).collect::<Vec<_>>(),
            "deriver": info.deriver.as_ref().map(full),
            "registrationTime": info.registration_time,
            "signatures": info.signatures,
            "ca": info.ca,
            "ultimate": info.ultimate,
        })
    };
    let paths: serde_json::Map<_, _> =
        closure.members().map(|info| (full(&info.path), entry(info))).collect();
    json!({
        "version": 1,
        "storeDir": STORE,
        "roots": closure.roots().iter().map(full).collect::<Vec<_>>(),
        "paths": paths,
        "totals": { "paths": closure.len(), "narSize": closure.nar_size() },
    })
}

fn closure_of(bytes: &[u8]) -> Closure {
    let saved = Saved::parse(bytes).unwrap();
    assert_eq!(saved.store_dir(), Path::new(STORE));
    match saved.into_content() {
        Content::Closure(closure) => closure,
        Content::Names(names) => panic!("{names:?}"),
    }
}

/// The message as it is shown.
fn message(problem: Problem) -> String {
    let error = SavedError { file: "saved".into(), problem };
    let text = format!("{error}: {}", error.source().unwrap());
    assert!(text.chars().count() < 700 && !text.chars().any(char::is_control), "{text:?}");
    text
}

proptest! {
    #[test]
    fn a_dump_is_read_as_it_was(closure in any_closure()) {
        prop_assert_eq!(&closure_of(&dumped(&closure, Format::Json)), &closure);
        prop_assert_eq!(&closure_of(version_1(&closure).to_string().as_bytes()), &closure);
    }

    /// Nix prints neither roots nor totals.
    #[test]
    fn output_of_nix_is_read(closure in any_closure()) {
        let mut dump: Value = serde_json::from_slice(&dumped(&closure, Format::Json)).unwrap();
        for key in ["roots", "totals"] {
            dump.as_object_mut().unwrap().remove(key).unwrap();
        }
        let read = closure_of(dump.to_string().as_bytes());
        prop_assert_eq!(read.members().collect::<Vec<_>>(), closure.members().collect::<Vec<_>>());
        let members = closure.members().map(|info| (info.path.clone(), info.clone())).collect();
        prop_assert_eq!(read.roots(), unreferenced(&members));
    }

    #[test]
    fn a_list_is_read_as_names(closure in any_closure(), ends in any::<bool>()) {
        prop_assume!(!closure.is_empty());
        let mut text = dumped(&closure, Format::StorePaths);
        if !ends {
            text.pop();
        }
        let saved = Saved::parse(&text).unwrap();
        prop_assert_eq!(saved.store_dir(), Path::new(STORE));
        let members: Vec<&StorePath> = closure.members().map(|info| &info.path).collect();
        prop_assert_eq!(saved.members(), members.clone());
        prop_assert_eq!(saved.roots(), members);
        prop_assert_eq!(saved.view(), closure.members().map(|info| (info.path.clone(), 0)).collect());
    }

    #[test]
    fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200), start in "[{/ ]?|\\{\"version\":[12],|/nix/store/") {
        if let Err(problem) = Saved::parse(&[start.as_bytes(), &bytes].concat()) {
            message(problem);
        }
    }

    /// Whatever an editor does to a file, it is a closure or refused.
    #[test]
    fn an_edited_file_is_a_closure_or_refused(
        closure in any_closure(),
        form in 0..3,
        edits in proptest::collection::vec((any::<proptest::sample::Index>(), 0..40_usize, any::<proptest::sample::Index>(), 0..40_usize), 1..4),
    ) {
        let mut bytes = match form {
            0 => dumped(&closure, Format::Json),
            1 => version_1(&closure).to_string().into_bytes(),
            _ => dumped(&closure, Format::StorePaths),
        };
        for (to, cut, from, length) in edits {
            if bytes.is_empty() {
                break;
            }
            let (to, from) = (to.index(bytes.len()), from.index(bytes.len()));
            let copied = bytes[from..(from + length).min(bytes.len())].to_vec();
            let end = (to + cut).min(bytes.len());
            bytes.splice(to..end, copied);
        }
        match Saved::parse(&bytes) {
            Err(problem) => drop(message(problem)),
            Ok(saved) => {
                if let Content::Closure(closure) = saved.content() {
                    let members: BTreeSet<_> = closure.members().map(|info| &info.path).collect();
                    let references = closure.members().flat_map(|info| &info.references);
                    prop_assert!(references.chain(closure.roots()).all(|path| members.contains(path)));
                }
            }
        }
    }
}

/// A system that refers to a library.
fn small() -> Value {
    let info = |n, name, references| PathInfo {
        nar_hash: Hash::new(Algorithm::Sha256, &[1; 32]).unwrap().sri(),
        ..bare(path(n, name), 100, references)
    };
    let infos = [info(1, "lib", vec![]), info(2, "system", vec![path(1, "lib")])];
    serde_json::from_slice(&dumped(&Closure::new(vec![path(2, "system")], infos).unwrap(), Format::Json))
        .unwrap()
}

const LIB: &str = "00000000000000000000000000000001-lib";
const SYSTEM: &str = "00000000000000000000000000000002-system";

#[test]
fn what_is_wrong_is_named_with_the_next_step() {
    let edited = |change: &dyn Fn(&mut Value)| {
        let mut dump = small();
        change(&mut dump);
        assert_ne!(dump, small());
        dump.to_string()
    };
    let twice = |what: &str| {
        let text = small().to_string();
        assert!(text.contains(what), "{what} is not in {text}");
        text.replacen(what, &format!("{what},{what}"), 1)
    };
    let lib = small()["info"][LIB].to_string();
    let other = "/nix/store/00000000000000000000000000000003-other";
    let files = [
        ("empty", String::new()),
        ("neither format", "digraph {".to_owned()),
        ("an array, as Nix before 2.19 prints it", "[{}]".to_owned()),
        ("cut off", small().to_string().split_off(1)),
        ("cut off in the middle", small().to_string()[..200].to_owned()),
        ("no version", edited(&|dump| drop(dump.as_object_mut().unwrap().remove("version")))),
        ("a later version", edited(&|dump| dump["version"] = 3.into())),
        ("a version of another kind", edited(&|dump| dump["version"] = "2\n\u{1b}[2J".into())),
        ("names of version 2 in version 1", edited(&|dump| dump["version"] = 1.into())),
        (
            "paths of version 1 in version 2",
            edited(&|dump| dump["roots"][0] = format!("{STORE}/{SYSTEM}").into()),
        ),
        (
            "paths of another store in version 2",
            edited(&|dump| dump["roots"][0] = format!("/gnu/store/{SYSTEM}").into()),
        ),
        ("a relative store directory", edited(&|dump| dump["storeDir"] = "nix/store".into())),
        ("a store directory with dots", edited(&|dump| dump["storeDir"] = "/nix/../store".into())),
        ("the store directory of an entry", edited(&|dump| dump["info"][LIB]["storeDir"] = "/other".into())),
        ("the version of an entry", edited(&|dump| dump["info"][LIB]["version"] = 1.into())),
        ("a root that is no member", edited(&|dump| dump["roots"][0] = other[11..].into())),
        ("no member", edited(&|dump| dump["info"][SYSTEM]["references"][0] = other[11..].into())),
        ("unreached", edited(&|dump| dump["info"][SYSTEM]["references"] = json!([]))),
        ("a name", edited(&|dump| dump["roots"][0] = "x\u{1b}[2J\n".into())),
        ("a long name", edited(&|dump| dump["roots"][0] = "x".repeat(10_000).into())),
        (
            "a reference out of the store",
            edited(&|dump| dump["info"][SYSTEM]["references"][0] = "../x".into()),
        ),
        ("a hash", edited(&|dump| dump["info"][LIB]["narHash"] = "sha256-x".into())),
        (
            "a content address",
            edited(&|dump| dump["info"][LIB]["ca"] = json!({ "method": "x", "hash": "y" })),
        ),
        ("a content address of version 1", edited(&|dump| dump["info"][LIB]["ca"] = "text:sha256:x".into())),
        ("a size", edited(&|dump| dump["info"][LIB]["narSize"] = "hostile\n\u{1b}[2J".into())),
        ("not valid", edited(&|dump| dump["info"][LIB] = Value::Null)),
        ("a path twice", twice(&format!("\"{LIB}\":{lib}"))),
        ("a root twice", twice(&format!("\"roots\":[\"{SYSTEM}\"]")).replace("],\"roots\":[", ",")),
        ("a key twice", twice(&format!("\"storeDir\":\"{STORE}\""))),
        ("a line twice", format!("{other}\n{other}\n")),
        ("a line of another store", format!("{other}\n/gnu/store/00000000000000000000000000000004-x\n")),
        ("a line below a store path", format!("{other}\n{other}/bin\n")),
        ("a comment", format!("{other}\n# comment\n")),
        ("an empty line", format!("{other}\n\n")),
        ("a line of Windows", format!("{other}\r\n")),
        ("a line that is no store path", "/etc/passwd\n".to_owned()),
        ("the root directory", "/\n".to_owned()),
    ];
    let messages: Vec<String> = files
        .into_iter()
        .map(|(what, text)| match Saved::parse(text.as_bytes()) {
            Ok(saved) => panic!("{what}: {saved:?} of {text}"),
            Err(problem) => format!("{what}: {}", message(problem)),
        })
        .collect();
    let mut settings = insta::Settings::clone_current();
    settings.set_prepend_module_to_snapshot(false);
    settings.set_omit_expression(true);
    settings.bind(|| insta::assert_snapshot!("saved-problems", messages.join("\n")));
}

/// Two names may have the same hash part; whoever made the store answers for that.
#[test]
fn names_with_the_same_hash_are_two() {
    let text = format!("{STORE}/{LIB}\n{STORE}/{LIB}-dev\n");
    assert_eq!(Saved::parse(text.as_bytes()).unwrap().members().len(), 2);
}

#[test]
fn a_store_directory_need_not_be_utf8() {
    let text = [b"/st\xffore/", LIB.as_bytes(), b"\n"].concat();
    assert_eq!(Saved::parse(&text).unwrap().store_dir(), Path::new(OsStr::from_bytes(b"/st\xffore")));
}

/// Keys that are unknown may come with any later release.
#[test]
fn unknown_keys_are_ignored() {
    let mut dump = small();
    dump["new"] = json!([1]);
    dump["info"][LIB]["closureSize"] = 1.into();
    assert_eq!(closure_of(dump.to_string().as_bytes()), closure_of(small().to_string().as_bytes()));
}

#[test]
fn a_file_is_read_to_a_limit() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("saved\nclosure");
    let text = small().to_string();
    fs::write(&file, &text).unwrap();
    assert_eq!(Saved::read(&file).unwrap(), Saved::parse(text.as_bytes()).unwrap());
    let length = u64::try_from(text.len()).unwrap();
    assert_eq!(read_at_most(&file, length).unwrap(), text.as_bytes());
    assert!(matches!(read_at_most(&file, length - 1), Err(Problem::TooLong(_))));
    // Without an end.
    assert!(matches!(read_at_most(Path::new("/dev/zero"), 1000), Err(Problem::TooLong(1000))));

    let absent = Saved::read(&dir.path().join("absent")).unwrap_err();
    assert!(matches!(absent.problem, Problem::Read(_)));
    assert!(message(absent.problem).contains("No such file"));
    assert!(matches!(Saved::read(dir.path()).unwrap_err().problem, Problem::Read(_)));
    fs::write(&file, "x").unwrap();
    let error = Saved::read(&file).unwrap_err();
    assert!(error.to_string().ends_with("saved\\nclosure'"), "{error}");
}

#[test]
fn every_member_has_to_be_there() {
    let dir = tempfile::tempdir().unwrap();
    let names: Vec<StorePath> = (0..5).map(|n| path(n, "x")).collect();
    let text: String = names.iter().map(|name| format!("{STORE}/{name}\n")).collect();
    let saved = Saved::parse(text.as_bytes()).unwrap();
    let make = |name: &StorePath| dir.path().join(name.as_str());
    fs::write(make(&names[0]), "").unwrap();
    // A link that leads nowhere is a store path as well.
    std::os::unix::fs::symlink("/nowhere", make(&names[4])).unwrap();
    match saved.check_present(dir.path()).unwrap_err() {
        AbsentError::Absent { first, count, all, .. } => {
            assert_eq!((first.as_slice(), count, all), (&names[1..4], 3, 5));
        }
        error => panic!("{error}"),
    }
    for name in &names[1..4] {
        let error = saved.check_present(dir.path()).unwrap_err().to_string();
        assert!(error.contains(&format!("the first being '{name}'")), "{error}");
        fs::create_dir(make(name)).unwrap();
    }
    saved.check_present(dir.path()).unwrap();
    assert!(matches!(saved.check_present(&make(&names[0])), Err(AbsentError::Examine { .. })));
}
