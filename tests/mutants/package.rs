//! A copy of the library and its unit tests, with the faults in it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs, io};

use crate::schema::{self, Edit};
use crate::table::Mutant;

/// The command is left out.
const LEFT_OUT: &str = "src/bin";

const ROOT: &str = "\
#![allow(warnings)] // The library with faults in it, at most one of which is effective: that of the number in SHMIRROR_MUTANT.
";

const CHOICE: &str = "
pub(crate) fn mutant(number: usize) -> bool {
    static CHOSEN: std::sync::OnceLock<usize> = std::sync::OnceLock::new();
    let chosen = || std::env::var(\"SHMIRROR_MUTANT\").map_or(0, |number| number.parse().unwrap());
    *CHOSEN.get_or_init(chosen) == number
}
";

/// Where the package is, and what its tests say.
pub(crate) fn dir() -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join("mutants")
}

/// Writes the package and builds its tests, with the dependencies that are built already; answers the test binary. Mutants have
/// numbers from 1 on.
pub(crate) fn build(mutants: &[&Mutant]) -> PathBuf {
    let project = Path::new(env!("CARGO_MANIFEST_DIR"));
    let package = dir();
    write(project, &package, mutants);
    let output = Command::new(env::var_os("CARGO").unwrap_or("cargo".into()))
        .args(["test", "--lib", "--no-run", "--offline", "--message-format=json-render-diagnostics"])
        .arg("--target-dir")
        .arg(Path::new(env!("CARGO_TARGET_TMPDIR")).parent().expect("it is in the target directory"))
        .current_dir(&package)
        .output()
        .expect("cargo runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let messages = output.stdout.split(|&byte| byte == b'\n');
    let mut messages = messages.filter_map(|line| serde_json::from_slice::<serde_json::Value>(line).ok());
    let executable = messages.find_map(|message| message["executable"].as_str().map(PathBuf::from));
    executable.expect("cargo says where the test binary is")
}

fn write(project: &Path, package: &Path, mutants: &[&Mutant]) {
    let source = package.join("src");
    if source.exists() {
        fs::remove_dir_all(&source).unwrap();
    }
    let mut edits: BTreeMap<PathBuf, Vec<(usize, Edit)>> = BTreeMap::new();
    for (mutant, number) in mutants.iter().zip(1..) {
        let file = project.join("src").join(mutant.file);
        edits.entry(file).or_default().extend(mutant.edits.iter().map(|&(at, to)| (number, Edit { at, to })));
    }
    for from in files(&project.join("src")).unwrap() {
        let below = from.strip_prefix(project).expect("a file of the project");
        if below.starts_with(LEFT_OUT) {
            continue;
        }
        let text = fs::read_to_string(&from).unwrap();
        let edits = edits.remove(&from).unwrap_or_default();
        let mut text =
            schema::insert(&text, &edits).unwrap_or_else(|error| panic!("{}: {error}", from.display()));
        if below.ends_with("src/lib.rs") {
            text = [ROOT, &text, CHOICE].concat();
        }
        let to = package.join(below);
        fs::create_dir_all(to.parent().expect("it is below src")).unwrap();
        fs::write(to, text).unwrap();
    }
    assert!(edits.is_empty(), "no file of the library: {:?}", edits.keys());
    fs::write(package.join("Cargo.toml"), manifest(project)).unwrap();
    fs::copy(project.join("Cargo.lock"), package.join("Cargo.lock")).unwrap();
}

/// The files at a path: itself, or all below it.
fn files(path: &Path) -> io::Result<Vec<PathBuf>> {
    if !path.is_dir() {
        return Ok(vec![path.to_path_buf()]);
    }
    let mut all = Vec::new();
    for entry in fs::read_dir(path)? {
        all.extend(files(&entry?.path())?);
    }
    Ok(all)
}

/// Of the same name and with the same dependencies as the project, so that its lock file fits; without its lints and targets.
fn manifest(project: &Path) -> String {
    let whole = fs::read_to_string(project.join("Cargo.toml")).unwrap();
    let mut kept = String::new();
    for section in whole.split("\n[") {
        let section = format!("[{}\n", section.trim_start_matches('['));
        if KEPT.iter().any(|name| section.starts_with(name)) {
            kept += &section;
        }
    }
    kept.replace("default-run = \"shmirror\"\n", "publish = false\n") + "\n[workspace]\n"
}

/// The sections of the manifest that are needed.
const KEPT: [&str; 5] = ["[package]", "[features]", "[dependencies]", "[dev-dependencies]", "[profile.dev"];
