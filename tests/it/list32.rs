//! Programs that list directories by 32-bit offsets, as every 32-bit program without large-file support does.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use tempfile::TempDir;

use crate::util::fixture::Fixture;
use crate::util::image::{self, Image};
use crate::util::program::Program;
use crate::util::service::{Service, Victim};
use crate::util::store::{Member, NixStore};
use crate::util::tree::{self, What};
use crate::util::{self, load::say};

/// For which machine the helper is compiled.
#[derive(Clone, Copy, Debug)]
enum Bits {
    ThirtyTwo,
    SixtyFour,
}

/// The helper, compiled.
struct Helper {
    program: PathBuf,
    seed: u32,
    dir: TempDir,
}

/// The helper at the point where it waits, with the names that it listed.
struct Paused {
    child: Child,
    output: PathBuf,
    names: Vec<PathBuf>,
}

impl Helper {
    fn new(bits: Bits) -> Self {
        let dir = util::scratch();
        let arguments: &[&str] = match bits {
            Bits::ThirtyTwo => &["-m32"],
            Bits::SixtyFour => &[],
        };
        let program = util::compile_with("list32.c", dir.path(), arguments);
        let seed = std::process::id();
        say(&format!("positions of a {bits:?} program, seed {seed}"));
        Self { program, seed, dir }
    }

    /// Lists `directory` up to the pause.
    fn list(&self, directory: &Path) -> Result<Paused, String> {
        let output = self.dir.path().join("names");
        let errors = self.dir.path().join("errors");
        let mut child = Command::new(&self.program)
            .arg(directory)
            .arg(&output)
            .arg(self.seed.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(File::create(&errors).unwrap())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let names = read_names(&output.with_extension("first"));
        let paused = Paused { child, output, names };
        if line != format!("{} entries\n", paused.names.len()) {
            return Err(paused.end(&errors).err().unwrap_or(line));
        }
        Ok(paused)
    }

    /// Lets it continue. The names of the second listing, sorted.
    fn go_on(&self, paused: Paused) -> Result<Vec<PathBuf>, String> {
        paused.end(&self.dir.path().join("errors"))
    }
}

impl Paused {
    fn end(mut self, errors: &Path) -> Result<Vec<PathBuf>, String> {
        // It may have ended.
        let _gone = self.child.stdin.take().map(|mut stdin| stdin.write_all(b"\n"));
        let status = self.child.wait().unwrap();
        if !status.success() {
            return Err(fs::read_to_string(errors).unwrap().trim_end().to_owned());
        }
        Ok(sorted(&read_names(&self.output.with_extension("again"))))
    }
}

fn read_names(file: &Path) -> Vec<PathBuf> {
    let bytes = fs::read(file).unwrap();
    let names = bytes.split(|byte| *byte == 0).filter(|name| !name.is_empty());
    names.map(|name| std::ffi::OsStr::from_bytes(name).into()).collect()
}

fn sorted(names: &[PathBuf]) -> Vec<PathBuf> {
    let mut names = names.to_vec();
    names.sort();
    names
}

/// What readdir(3) shows of a directory with these names, sorted.
fn with_dots(names: Vec<PathBuf>) -> Vec<PathBuf> {
    sorted(&[names, vec![".".into(), "..".into()]].concat())
}

/// A store on ext4, whose offsets have 64 bits for whoever does not ask for less.
fn on_ext4() -> (Option<Image>, NixStore) {
    let image = image::ext4();
    let store = image.as_ref().map_or_else(NixStore::new, |image| NixStore::below(image.path()));
    (image, store)
}

fn wide(store: &NixStore, entries: usize) -> Member {
    store.add_in_place("wide", &[], |path| {
        fs::create_dir(path).unwrap();
        for number in 0..entries {
            File::create(path.join(format!("an-entry-{number:06}"))).unwrap();
        }
    })
}

/// Both listings, and every position, of a directory that stays as it is.
fn check_unchanged(helper: &Helper, directory: &Path, real: Vec<PathBuf>, wrong: &mut Vec<String>) {
    let real = with_dots(real);
    match helper.list(directory).and_then(|paused| Ok((sorted(&paused.names), helper.go_on(paused)?))) {
        Ok((first, again)) if first == real && again == real => {}
        Ok((first, again)) => wrong.push(format!(
            "{}: {} and {} of {} entries, or others",
            directory.display(),
            first.len(),
            again.len(),
            real.len()
        )),
        Err(why) => wrong.push(format!("{}: {why}", directory.display())),
    }
}

/// A 32-bit program lists every directory of a view, the root included, and finds its positions again.
#[test]
fn a_32_bit_program_lists_every_directory() {
    need!(Root, Fuse, Nix, Compiler32, Ext4);
    let helper = Helper::new(Bits::ThirtyTwo);
    let (_image, store) = on_ext4();
    let fixture = Fixture::in_store(store);
    let view = fixture.mount();
    let mut wrong = Vec::new();
    let members = fixture.members();
    check_unchanged(&helper, view.path(), members.iter().map(PathBuf::from).collect(), &mut wrong);
    let mut directories = 0;
    for base in &members {
        for (path, entry) in tree::walk(&fixture.store.physical(), base) {
            if let What::Directory(names) = entry.what {
                check_unchanged(&helper, &view.path().join(path), names, &mut wrong);
                directories += 1;
            }
        }
    }
    assert!(directories > 5, "{directories} directories");
    assert!(
        wrong.is_empty(),
        "{} of {} listings are wrong:\n{}",
        wrong.len(),
        directories + 1,
        wrong.join("\n")
    );
}

/// The same with a directory of 100,000 entries.
#[test]
fn a_32_bit_program_lists_a_hundred_thousand_entries() {
    need!(Root, Fuse, Nix, Compiler32, Ext4);
    let helper = Helper::new(Bits::ThirtyTwo);
    let (_image, store) = on_ext4();
    let wide = wide(&store, 100_000);
    let view = Program::on(&store).args(["--system", &wide.path]).mount();
    let mut wrong = Vec::new();
    let real = tree::list(&store.physical().join(&wide.base)).unwrap();
    check_unchanged(&helper, &view.path().join(&wide.base), real, &mut wrong);
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// What happens to a view while a program keeps a directory open.
#[derive(Clone, Copy, Debug)]
enum Between {
    Kill,
    Reload,
    ReloadThenKill,
    KillBothThenReload,
}

fn positions_last(bits: Bits) {
    let helper = Helper::new(bits);
    let (_image, store) = on_ext4();
    let wide = wide(&store, 3000);
    let few = store.add_files("few", 200);
    let mut references: Vec<&Member> = few.iter().collect();
    references.push(&wide);
    let mut wrong = Vec::new();
    for between in [Between::Kill, Between::Reload, Between::ReloadThenKill, Between::KillBothThenReload] {
        // Several more, so that some of them come before most of what was there.
        let more = store.add_files(&format!("more-{between:?}"), 7);
        let system = |name: &str, references: &[&Member]| {
            store.add(&format!("{name}-{between:?}"), references, |path| {
                fs::write(path, "a system\n").unwrap()
            })
        };
        let old = system("old", &references);
        let all: Vec<&Member> = references.iter().copied().chain(&more).chain([&old]).collect();
        let new = system("new", &all);
        let link = store.profile(&format!("{between:?}/system"), &old.path);
        let mut service = Service::new(&store).with([Path::new("--system"), &link]);
        service.start_ready();

        let [root, below] = [service.path().to_owned(), service.path().join(&wide.base)];
        let helpers = [&root, &below].map(|directory| {
            let dir = util::scratch();
            // Each has files of its own.
            let own = Helper { program: helper.program.clone(), seed: helper.seed, dir };
            let paused = own.list(directory);
            (own, paused)
        });
        let reload = |service: &Service| {
            let next = link.with_extension("next");
            symlink(&new.path, &next).unwrap();
            fs::rename(&next, &link).unwrap();
            service.reload_well();
        };
        match between {
            Between::Kill => service.kill(Victim::Server),
            Between::Reload => reload(&service),
            Between::ReloadThenKill => {
                reload(&service);
                service.kill(Victim::Server);
            }
            Between::KillBothThenReload => {
                service.kill(Victim::Both);
                service.start_ready();
                reload(&service);
            }
        }
        let members = |system: &Member| -> Vec<PathBuf> {
            let closure = store.closure(&[system]);
            closure.iter().map(|path| path.strip_prefix("/nix/store/").unwrap().into()).collect()
        };
        let after = if matches!(between, Between::Kill) { members(&old) } else { members(&new) };
        let real = tree::list(&store.physical().join(&wide.base)).unwrap();
        let expected = [("the root", members(&old), after), ("a directory", real.clone(), real)];
        for ((own, paused), (what, first, again)) in helpers.into_iter().zip(expected) {
            let paused = match paused {
                Ok(paused) => paused,
                Err(why) => {
                    wrong.push(format!("{between:?}: {what}, before it: {why}"));
                    continue;
                }
            };
            if sorted(&paused.names) != with_dots(first) {
                wrong.push(format!("{between:?}: {what} has {} entries before it", paused.names.len()));
            }
            match own.go_on(paused) {
                Ok(names) if names == with_dots(again) => {}
                Ok(names) => wrong.push(format!("{between:?}: {what} has {} entries after it", names.len())),
                Err(why) => wrong.push(format!("{between:?}: {what}, after it: {why}")),
            }
        }
        service.stop();
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Positions that a 32-bit program has noted lead to the same entries when the server is killed, and when a reload adds
/// members in between.
#[test]
fn positions_of_a_32_bit_program_outlive_the_server_and_a_reload() {
    need!(Root, Fuse, Nix, Compiler32, Ext4);
    positions_last(Bits::ThirtyTwo);
}

/// The same with a 64-bit program.
#[test]
fn positions_of_a_64_bit_program_outlive_the_server_and_a_reload() {
    need!(Root, Fuse, Nix, Ext4);
    positions_last(Bits::SixtyFour);
}
