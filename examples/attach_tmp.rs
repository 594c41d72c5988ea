//! tmp
use shmirror::*;
use std::time::*;
fn main() {
    let n: u64 = std::env::args().nth(1).unwrap().parse().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let source = Source::options().runtime_dir(dir.path()).create("bench").unwrap();
    let table = source.table("t").unwrap();
    for i in 0..n {
        table.set(i, [i as u8; 64]).unwrap();
    }
    table.ready();
    for _ in 0..3 {
        let t = Instant::now();
        let mut r = Replica::options().runtime_dir(dir.path()).wait(Wait::Spin).connect("bench").unwrap();
        while !r.is_attached() {
            r.wait(Duration::from_secs(1)).unwrap();
        }
        let a = t.elapsed();
        r.wait_synced(Duration::from_secs(10)).unwrap();
        println!("attached {a:?} synced {:?} items {}", t.elapsed(), r.table("t").len());
        let d = Instant::now();
        drop(r);
        println!("drop {:?}", d.elapsed());
    }
}
