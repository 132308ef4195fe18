//! Whether the sanitizers are at work with which scripts/sanitize runs the tests of the store: they find what cpp/wrong.cc does.

use std::process::Command;

/// What the process that is to be ended is asked for.
const JOB: &str = "NSF_WRONG";

#[cfg(sanitized)]
#[allow(unsafe_code)]
fn go_wrong(job: &str) {
    unsafe extern "C" {
        fn nsf_read_behind(bytes: *const u8, length: usize) -> u8;
        fn nsf_overflow(one: i32) -> i32;
    }
    let bytes = b"text".to_vec();
    let read = match job {
        // SAFETY: none. It reads a byte behind the vector; the sanitizer ends the process.
        "read" => i32::from(unsafe { nsf_read_behind(bytes.as_ptr(), bytes.capacity()) }),
        // SAFETY: none, as above.
        _ => unsafe { nsf_overflow(job.len() as i32) },
    };
    println!("nobody has noticed: {read}");
}

#[cfg(not(sanitized))]
fn go_wrong(_: &str) {
    println!("this build has no sanitizers: NIX_STORE_FS_SANITIZE is not set");
}

#[test]
#[ignore = "run by scripts/sanitize"]
fn the_sanitizers_are_at_work() {
    if let Ok(job) = std::env::var(JOB) {
        return go_wrong(&job);
    }
    let test = "store::sanitize_tests::the_sanitizers_are_at_work";
    for (job, report) in [
        ("read", "AddressSanitizer: heap-buffer-overflow"),
        ("overflow", "runtime error: signed integer overflow"),
    ] {
        let output = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", test, "--ignored", "--nocapture"])
            .env(JOB, job)
            .output()
            .unwrap();
        let said =
            [output.stdout, output.stderr].map(|said| String::from_utf8_lossy(&said).into_owned()).concat();
        assert!(!output.status.success() && said.contains(report), "{job}: {}\n{said}", output.status);
    }
}
