//! The command: where it is, and why it cannot be executed.
//!
//! It is looked for as execvp(3) does, with the variables that it gets.

use std::ffi::{CString, OsStr, OsString};
use std::fs::File;
use std::io::Read;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use super::RunError;

/// Where programs are looked for without PATH: the C library's default (confstr(3), _CS_PATH).
const PATH: &str = "/bin:/usr/bin";
/// The shell of scripts that do not name one (execvp(3)).
const SHELL: &str = "/bin/sh";
/// Bytes of a program's beginning that are read to tell what it needs: more than the kernel reads of a script's first line.
const HEAD: u64 = 4096;

/// The files that `name` may be, in the order in which they are tried.
#[must_use]
pub(super) fn candidates(name: &OsStr, path: Option<&OsStr>) -> Vec<PathBuf> {
    if name.is_empty() {
        return Vec::new();
    }
    if name.as_bytes().contains(&b'/') {
        return vec![name.into()];
    }
    let path = path.unwrap_or(OsStr::new(PATH)).as_bytes();
    path.split(|byte| *byte == b':').map(|dir| Path::new(OsStr::from_bytes(dir)).join(name)).collect()
}

/// The file that `name` is, followed to its end, if it can be found by `path`.
#[must_use]
pub fn found(name: &OsStr, path: Option<&OsStr>) -> Option<PathBuf> {
    let is_program =
        |file: &PathBuf| file.is_file() && rustix::fs::access(file, rustix::fs::Access::EXEC_OK).is_ok();
    candidates(name, path).into_iter().find(is_program)?.canonicalize().ok()
}

/// What the object of the store at `dir` is called that `file` is in.
#[must_use]
pub fn object(file: &Path, dir: &Path) -> Option<OsString> {
    Some(file.strip_prefix(dir).ok()?.components().next()?.as_os_str().to_owned())
}

/// Becomes the command; returns why it could not.
#[must_use]
pub(super) fn execute(words: &[OsString], variables: &[(OsString, OsString)]) -> RunError {
    let name = words.first().cloned().unwrap_or_default();
    let path = variables.iter().rfind(|(variable, _)| variable == "PATH").map(|(_, path)| path.as_os_str());
    let (Some(arguments), Some(environment)) = (strings(words.iter().cloned()), strings(joined(variables)))
    else {
        return RunError::NotFound { name, hint: None };
    };
    let mut denied = None;
    for file in candidates(&name, path) {
        let Ok(program) = CString::new(file.as_os_str().as_bytes()) else { continue };
        let mut error =
            nix::unistd::execve(&program, &arguments, &environment).err().unwrap_or(nix::Error::EIO);
        if error == nix::Error::ENOEXEC {
            let shell = CString::new(SHELL).unwrap_or_default();
            let rest = arguments.iter().skip(1).cloned();
            let all: Vec<CString> = [shell.clone(), program.clone()].into_iter().chain(rest).collect();
            error = nix::unistd::execve(&shell, &all, &environment).err().unwrap_or(error);
        }
        match error {
            nix::Error::ENOENT if file.is_file() => {
                let interpreter = interpreter(&file);
                return RunError::NoInterpreter { file, interpreter, root: None };
            }
            nix::Error::ENOENT | nix::Error::ENOTDIR => {}
            nix::Error::EACCES => {
                denied.get_or_insert(RunError::NotExecutable { file, source: error.into() });
            }
            _ => return RunError::NotExecutable { file, source: error.into() },
        }
    }
    denied.unwrap_or(RunError::NotFound { name, hint: None })
}

/// None: one has a zero byte in it, which no program can be given.
fn strings(all: impl Iterator<Item = OsString>) -> Option<Vec<CString>> {
    all.map(|one| CString::new(one.into_vec()).ok()).collect()
}

fn joined(variables: &[(OsString, OsString)]) -> impl Iterator<Item = OsString> {
    variables.iter().map(|(name, value)| {
        let mut joined = name.clone();
        joined.push("=");
        joined.push(value);
        joined
    })
}

/// The program that `file` needs to be executed, and that seems to be absent.
fn interpreter(file: &Path) -> Option<PathBuf> {
    let mut head = Vec::new();
    File::open(file).and_then(|file| file.take(HEAD).read_to_end(&mut head)).ok()?;
    of_script(&head).or_else(|| of_program(&head))
}

/// That of a script's first line: execve(2), "Interpreter scripts".
fn of_script(head: &[u8]) -> Option<PathBuf> {
    let line = head.strip_prefix(b"#!")?.split(|byte| *byte == b'\n').next()?;
    let words = line.split(u8::is_ascii_whitespace);
    let word = words.filter(|word| !word.is_empty()).map(OsStr::from_bytes).next()?;
    Some(word.into())
}

/// The loader that an ELF file of 64 bits names, of this machine's byte order (elf(5), `PT_INTERP`).
fn of_program(head: &[u8]) -> Option<PathBuf> {
    const PT_INTERP: u32 = 3;
    let number = |at: usize, length: usize| -> Option<usize> {
        let bytes = head.get(at..at.checked_add(length)?)?;
        let mut whole = [0; 8];
        let end = if cfg!(target_endian = "little") { 0..length } else { 8 - length..8 };
        whole.get_mut(end)?.copy_from_slice(bytes);
        usize::try_from(u64::from_ne_bytes(whole)).ok()
    };
    // Magic number and ELFCLASS64.
    if !head.starts_with(b"\x7fELF\x02") {
        return None;
    }
    let (table, size, count) = (number(32, 8)?, number(54, 2)?, number(56, 2)?);
    let entries = (0..count).map_while(|n| table.checked_add(n.checked_mul(size)?));
    let entry = entries.into_iter().find(|entry| number(*entry, 4) == Some(PT_INTERP as usize))?;
    let (at, length) = (number(entry.checked_add(8)?, 8)?, number(entry.checked_add(32)?, 8)?);
    let name = head.get(at..at.checked_add(length)?)?.strip_suffix(&[0])?;
    Some(OsStr::from_bytes(name).into())
}

/// Whether executing `file` would change the user or the group, where nothing forbids it (execve(2)).
#[must_use]
pub fn is_set_id(file: &Path) -> bool {
    rustix::fs::stat(file).is_ok_and(|found| found.st_mode & 0o6000 != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_looked_for_as_execvp_does() {
        let all = |name: &str, path: Option<&str>| -> Vec<String> {
            let all = candidates(OsStr::new(name), path.map(OsStr::new));
            all.into_iter().map(|file| file.to_str().unwrap().to_owned()).collect()
        };
        assert_eq!(all("a", Some("/x:/y")), ["/x/a", "/y/a"]);
        assert_eq!(all("a", Some("/x::y")), ["/x/a", "a", "y/a"]);
        assert_eq!(all("a", None), ["/bin/a", "/usr/bin/a"]);
        assert_eq!(all("a", Some("")), ["a"]);
        assert_eq!(all("./a", Some("/x")), ["./a"]);
        assert_eq!(all("/b/a", None), ["/b/a"]);
        assert!(all("", Some("/x")).is_empty());
    }

    #[test]
    fn what_a_program_needs_is_named() {
        for (head, expected) in [
            (&b"#!/nix/store/x/bin/sh -e\nrest"[..], Some("/nix/store/x/bin/sh")),
            (b"#! /a\n", Some("/a")),
            (b"#!", None),
            (b"#!\n", None),
            (b"text", None),
            (b"\x7fELF\x02", None),
            (b"", None),
        ] {
            let found = of_script(head).or_else(|| of_program(head));
            assert_eq!(found.as_deref(), expected.map(Path::new), "{head:?}");
        }
    }

    /// The test's own program has a loader, and any beginning of it is no reason to panic.
    #[test]
    fn the_loader_of_this_program_is_found() {
        let mut head = Vec::new();
        File::open("/proc/self/exe").unwrap().take(HEAD).read_to_end(&mut head).unwrap();
        let loader = of_program(&head).unwrap();
        assert!(loader.is_file(), "{}", loader.display());
        for length in 0..head.len() {
            let _ = of_program(&head[..length]);
            let mut changed = head.clone();
            changed[length] = 0xff;
            let _ = of_program(&changed);
        }
    }
}
