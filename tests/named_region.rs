//! Links over segments with names.

mod common;

use common::{PATIENCE, contents, contents_of_source, entries, source_options};
use shmirror::{Region, Replica};

#[test]
fn state_converges_both_sleep() {
    let dir = tempfile::tempdir().unwrap();
    let source = source_options(dir.path()).region(Region::Named).create("s").unwrap();
    let table = source.table("t").unwrap();
    table.set(1u32, b"one").unwrap();
    table.ready();
    let mut replica = Replica::options().runtime_dir(dir.path()).region(Region::Named).connect("s").unwrap();
    replica.wait_synced(PATIENCE).unwrap();
    assert_eq!(contents(&replica, "t"), contents_of_source(&table));
    println!("{:?} {:?}", entries(dir.path()), entries(std::path::Path::new("/dev/shm")));
    drop(table);
    drop(source);
    drop(replica);
    println!("{:?} {:?}", entries(dir.path()), entries(std::path::Path::new("/dev/shm")));
}
