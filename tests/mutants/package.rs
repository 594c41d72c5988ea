//! A package with nothing but the protocol and its tests, and the faults in it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs, io};

use crate::schema::{self, Edit};
use crate::table::Mutant;

/// What the protocol is made of: files and directories below `src/`.
const PARTS: [&str; 7] =
    ["opcode.rs", "proto", "retention.rs", "seq.rs", "snapshot.rs", "subscription.rs", "wire"];

/// What it and its tests need; versions and features are those of the project.
const DEPENDENCIES: [&str; 5] = ["fastrand", "hashbrown", "smallvec", "stateright", "thiserror"];

const ROOT: &str = "\
//! The protocol with faults in it, at most one of which is effective: that of the number in SHMIRROR_MUTANT.
#![allow(warnings)]

mod opcode;
mod proto;
mod retention;
mod seq;
mod snapshot;
mod subscription;
mod wire;

pub use seq::SyncSeq;

pub(crate) fn mutant(number: usize) -> bool {
    static CHOSEN: std::sync::OnceLock<usize> = std::sync::OnceLock::new();
    let chosen = || std::env::var(\"SHMIRROR_MUTANT\").map_or(0, |number| number.parse().unwrap());
    *CHOSEN.get_or_init(chosen) == number
}
";

/// Writes the package and builds its tests; answers the test binary. Mutants have numbers from 1 on.
pub(crate) fn build(mutants: &[&Mutant]) -> PathBuf {
    let project = Path::new(env!("CARGO_MANIFEST_DIR"));
    let package = Path::new(env!("CARGO_TARGET_TMPDIR")).join("mutants");
    write(project, &package, mutants);
    let output = Command::new(env::var_os("CARGO").unwrap_or("cargo".into()))
        .args(["test", "--lib", "--no-run", "--offline", "--message-format=json-render-diagnostics"])
        .arg("--target-dir")
        .arg(package.join("target"))
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
    for from in PARTS.iter().flat_map(|part| files(&project.join("src").join(part)).unwrap()) {
        let to = package.join(from.strip_prefix(project).expect("a file of the project"));
        let text = fs::read_to_string(&from).unwrap();
        let edits = edits.remove(&from).unwrap_or_default();
        let text =
            schema::insert(&text, &edits).unwrap_or_else(|error| panic!("{}: {error}", from.display()));
        fs::create_dir_all(to.parent().expect("it is below src")).unwrap();
        fs::write(to, text).unwrap();
    }
    assert!(edits.is_empty(), "no part of the protocol: {:?}", edits.keys());
    fs::write(source.join("lib.rs"), ROOT).unwrap();
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

/// Of the same name as the project, so that its lock file fits.
fn manifest(project: &Path) -> String {
    let whole = fs::read_to_string(project.join("Cargo.toml")).unwrap();
    let line =
        |of: &str| whole.lines().find(|line| line.starts_with(&format!("{of} = "))).map(str::to_string);
    let lines = |of: &[&str]| -> String {
        of.iter().map(|of| line(of).unwrap_or_else(|| panic!("Cargo.toml has {of}")) + "\n").collect()
    };
    format!(
        "[package]\n{}publish = false\n\n[dependencies]\n{}\n[profile.dev]\nopt-level = 1\n\n[profile.dev.package.\"*\"]\nopt-level = 0\n\n[workspace]\n",
        lines(&["name", "version", "edition", "rust-version"]),
        lines(&DEPENDENCIES),
    )
}
