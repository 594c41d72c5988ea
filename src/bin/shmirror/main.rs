//! The `shmirror` command.
fn main() {}
