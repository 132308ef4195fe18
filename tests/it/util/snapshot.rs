//! Snapshots of what a user reads, without what differs from run to run.

use super::program::Finished;

/// What the user got: exit code, standard output, standard error.
pub(crate) fn render(finished: &Finished) -> String {
    let code = finished.status.code().map_or_else(|| finished.status.to_string(), |code| code.to_string());
    format!("exit code: {code}\n--- stdout\n{}--- stderr\n{}", finished.stdout, finished.stderr)
}

/// What of a snapshot is replaced by a name in brackets.
pub(crate) fn settings() -> insta::Settings {
    let mut settings = insta::Settings::clone_current();
    let temp = std::env::temp_dir().display().to_string().replace('.', r"\.");
    settings.add_filter(&format!(r"{temp}/nsf-it\.\w+"), "[DIR]");
    settings.add_filter(r"\bit-\d+-\d+\b", "[NAME]");
    settings.add_filter(r"\b[0-9abcdfghijklmnpqrsvwxyz]{32}-", "[HASH]-");
    settings.add_filter(r"\bsha256-[0-9A-Za-z+/]{43}=", "sha256-[BASE64]");
    settings.add_filter(r"\bsha256:[0-9a-z]{52}\b", "sha256:[BASE32]");
    settings.add_filter(r#"("registrationTime": ?)\d+"#, "$1[TIME]");
    settings.set_omit_expression(true);
    settings.set_prepend_module_to_snapshot(false);
    settings.set_snapshot_path(std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/snapshots"));
    settings
}

/// Compares a finished run with its snapshot.
macro_rules! assert_run {
    ($name:expr, $finished:expr) => {
        $crate::util::snapshot::settings().bind(|| {
            insta::assert_snapshot!($name, $crate::util::snapshot::render($finished));
        })
    };
}
