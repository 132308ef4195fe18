//! Finds Nix's store library with pkg-config and compiles the C++ that speaks to it.
//!
//! Two compilations: the code that cxx generates sees no header of Nix; `cpp/store.cc` alone has Nix's include
//! paths (before 2.28 those hold headers with names as common as `util.hh`) and the C++ standard that they want.
//!
//! With `NIX_STORE_FS_SANITIZE` set both are compiled with GCC's AddressSanitizer and UndefinedBehaviorSanitizer, which
//! scripts/sanitize runs the store's tests with. A stable Rust has no `-Z sanitizer`, and needs none to be linked with their
//! libraries. AddressSanitizer's is linked statically: it has to come before all others, so that its allocator is everybody's. So memory
//! that Rust has allocated is watched as well where C++ touches it.

use std::path::Path;
use std::process::ExitCode;

/// The oldest Nix that `cpp/nix-compat.hh` knows, and the first major version that it does not.
const NIX_VERSIONS: std::ops::Range<&str> = "2.24".."3";
/// From this minor version on Nix's headers use C++23.
const FIRST_CPP23: u32 = 31;
/// The only one of our own sources that includes Nix's headers, and the others that it is made of.
const SHIM: &str = "cpp/store.cc";
const SHIM_HEADERS: [&str; 4] = ["cpp/store.hh", "cpp/nix-compat.hh", "cpp/questions.hh", "cpp/tables.hh"];
/// What the sanitizers have to notice.
const WRONG: &str = "cpp/wrong.cc";
const SANITIZE: &str = "NIX_STORE_FS_SANITIZE";
const SANITIZERS: &str = "-fsanitize=address,undefined";
const BRIDGE: &str = "src/store/ffi.rs";
/// Where the dynamic loader looks without being told.
const SYSTEM_LIBRARY_DIRS: [&str; 4] = ["/lib", "/lib64", "/usr/lib", "/usr/lib64"];

fn main() -> ExitCode {
    match build() {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("{message}");
            ExitCode::FAILURE
        }
    }
}

fn build() -> Result<(), String> {
    println!("cargo:rerun-if-env-changed={SANITIZE}");
    println!("cargo:rustc-check-cfg=cfg(sanitized)");
    let sanitized = std::env::var_os(SANITIZE).is_some();
    for input in [BRIDGE, SHIM, WRONG].into_iter().chain(SHIM_HEADERS) {
        println!("cargo:rerun-if-changed={input}");
    }
    // pkg-config prints its own `rerun-if-env-changed` lines for PKG_CONFIG_PATH and its relatives.
    let mut probe = pkg_config::Config::new();
    probe.range_version(NIX_VERSIONS);
    let nix = probe.clone().cargo_metadata(false).probe("nix-store").map_err(|e| missing(&e))?;
    let minor = minor_version(&nix.version)
        .ok_or_else(|| format!("pkg-config gives Nix's version as '{}', which is no version", nix.version))?;
    println!("cargo:rustc-env=NIX_STORE_FS_NIX_VERSION={}", nix.version);
    let store_dir = pkg_config::get_variable("nix-store", "storedir").unwrap_or_default();
    let store_dir = if store_dir.is_empty() { "/nix/store" } else { &store_dir };
    println!("cargo:rustc-env=NIX_STORE_FS_STORE_DIR={store_dir}");

    // -w: warnings in code that cxx generates are not ours to correct.
    let mut bridge = cxx_build::bridge(BRIDGE);
    sanitize(&mut bridge, sanitized);
    bridge.std("c++20").warnings(false).flag("-w").compile("nix-store-fs-bridge");

    let mut shim = cc::Build::new();
    // The pkg-config crate passes on neither -std nor the order of system directories: /usr/include as -I or
    // -isystem would come before the compiler's own and break its #include_next.
    for dir in nix.include_paths.iter().filter(|dir| dir.as_path() != Path::new("/usr/include")) {
        // -isystem: warnings in Nix's headers are not ours to mend.
        shim.flag("-isystem").flag(dir);
    }
    sanitize(&mut shim, sanitized);
    shim.cpp(true)
        // A shared library refers to what Nix's headers have every source make, such as virtual tables, and the linker would keep ours
        // for it: in the server as well, which calls nothing of Nix's and would need its library to start.
        .flag("-fvisibility=hidden")
        .std(if minor >= FIRST_CPP23 { "c++23" } else { "c++20" })
        .includes(cxx_includes()?)
        .warnings(true)
        .extra_warnings(true)
        // Not in a release: whoever packages this has a newer compiler, with newer warnings.
        .warnings_into_errors(std::env::var_os("PROFILE").is_some_and(|profile| profile == "debug"))
        .file(SHIM)
        .try_compile("nix-store-fs-shim")
        .map_err(|e| format!("cpp/store.cc does not compile with Nix {}: {e}", nix.version))?;

    if sanitized {
        let mut wrong = cc::Build::new();
        sanitize(&mut wrong, true);
        wrong.cpp(true).file(WRONG).try_compile("nix-store-fs-wrong").map_err(|e| e.to_string())?;
        println!("cargo:rustc-cfg=sanitized");
        // rustc tells the compiler that calls the linker to add no libraries (-nodefaultlibs).
        for argument in ["-Wl,--whole-archive,-l:libasan.a,--no-whole-archive", "-lubsan", "-ldl", "-lm"] {
            println!("cargo:rustc-link-arg={argument}");
        }
    }

    // Again, and last, so that the linker sees Nix's libraries after the archives that need them.
    probe.probe("nix-store").map_err(|e| missing(&e))?;
    for dir in nix.link_paths.iter().filter(|dir| !is_system_library_dir(dir)) {
        println!("cargo:rustc-link-arg=-Wl,-rpath,{}", dir.display());
    }
    Ok(())
}

/// Has what `build` compiles end the process with a report where it does something undefined.
fn sanitize(build: &mut cc::Build, wanted: bool) {
    if wanted {
        build.flag(SANITIZERS).flag("-fno-sanitize-recover=all").flag("-fno-omit-frame-pointer").debug(true);
    }
}

/// The directories with `rust/cxx.h` and with the header generated for the bridge.
fn cxx_includes() -> Result<[std::path::PathBuf; 2], String> {
    let out = std::env::var_os("OUT_DIR").ok_or("cargo gave no OUT_DIR")?;
    let generated = Path::new(&out).join("cxxbridge");
    Ok([generated.join("include"), generated.join("crate")])
}

/// `2.36.0pre20260101` and `2.31.2+1` occur.
fn minor_version(version: &str) -> Option<u32> {
    let minor = version.split('.').nth(1)?;
    let digits = minor.find(|c: char| !c.is_ascii_digit()).unwrap_or(minor.len());
    minor.get(..digits)?.parse().ok()
}

fn is_system_library_dir(dir: &Path) -> bool {
    // Debian's multi-architecture directories lie one below: /usr/lib/x86_64-linux-gnu.
    SYSTEM_LIBRARY_DIRS.iter().any(|system| {
        let system = Path::new(system);
        dir == system || (dir.parent() == Some(system) && dir.to_string_lossy().ends_with("-linux-gnu"))
    })
}

fn missing(error: &pkg_config::Error) -> String {
    let reason = match error {
        pkg_config::Error::Command { .. } => "pkg-config itself is not installed".to_owned(),
        pkg_config::Error::ProbeFailure { output, .. } | pkg_config::Error::Failure { output, .. } => {
            String::from_utf8_lossy(&output.stderr).trim().to_owned()
        }
        other => other.to_string(),
    };
    format!(
        "nix-store-fs needs the development files of Nix's C++ store library, version {} or newer, and \
         pkg-config does not find them:\n  {}\nWhat to do:\n  \
         Debian:           scripts/setup && . scripts/env   (builds the library once, in a few minutes)\n  \
         NixOS, nixpkgs:   nix develop\n  \
         elsewhere:        install pkg-config and Nix's development files, so that\n                    \
         `pkg-config --modversion nix-store` answers; PKG_CONFIG_PATH says where to look",
        NIX_VERSIONS.start,
        reason.replace('\n', "\n  "),
    )
}
