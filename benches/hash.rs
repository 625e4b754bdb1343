//! What does a digest cost over the bare hash? It should cost nothing.
//!
//! On one thread, from memory; the floor is `blake3::hash`. From 1 KiB up there is room for all
//! lanes of the processor, so speed grows with size.

mod common;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use larder::Digest;
use std::hint::black_box;

const SIZES: [(&str, usize); 3] = [("1 KiB", 1 << 10), ("64 KiB", 64 << 10), ("1 MiB", 1 << 20)];

fn hash(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("hash");
    for (size, size_bytes) in SIZES {
        let bytes = vec![0x5a_u8; size_bytes];
        group.throughput(Throughput::Bytes(size_bytes as u64));
        group.bench_function(BenchmarkId::new("Digest::of", size), |bencher| {
            bencher.iter(|| Digest::of(black_box(&bytes)));
        });
        group.bench_function(BenchmarkId::new("floor: blake3::hash", size), |bencher| {
            bencher.iter(|| blake3::hash(black_box(&bytes)));
        });
    }
    group.finish();
}

criterion_group! {
    name = benches;
    config = common::criterion();
    targets = hash
}
criterion_main!(benches);
