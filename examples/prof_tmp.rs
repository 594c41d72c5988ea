use shmirror::{Replica, ResendPolicy, Source, Wait};
fn main() {
    let n: u64 = std::env::args().nth(1).unwrap().parse().unwrap();
    let mode = std::env::args().nth(2).unwrap_or_default();
    let dir = tempfile::tempdir().unwrap();
    let policy = ResendPolicy { interval: std::time::Duration::from_secs(3600), ..Default::default() };
    let source = Source::options().runtime_dir(dir.path()).resend(policy).create("bench").unwrap();
    let table = source.table("t").unwrap();
    table.ready();
    let mut replica = Replica::options().runtime_dir(dir.path()).wait(Wait::Spin).connect("bench").unwrap();
    replica.wait_synced(std::time::Duration::from_secs(100)).unwrap();
    let mut value = [0u8; 64];
    let mut c = 0u64;
    for round in 0..(n / 32) {
        if mode == "many" {
            let vals: Vec<(u64, [u8; 64])> = (0..32)
                .map(|i| {
                    c += 1;
                    value[..8].copy_from_slice(&c.to_ne_bytes());
                    let _ = i;
                    (c % 1000, value)
                })
                .collect();
            table.set_many(vals).unwrap();
        } else {
            for _ in 0..32 {
                c += 1;
                value[..8].copy_from_slice(&c.to_ne_bytes());
                table.set(c % 1000, &value).unwrap();
            }
        }
        let got = replica.update().unwrap();
        assert!(got == 32 || round < 3, "{got} {round}");
    }
    assert_eq!(replica.table("t").len() as u64, n.min(1000));
}
