//! What hashing in chunks costs beside plain BLAKE3: one core, one chunk at a time, values merged to the root.

use std::hint::black_box;

use ccat_xfer::chunk::{ChunkSize, RootBuilder, chunk_value};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};

const LEN: usize = 64 << 20;

fn hash(c: &mut Criterion) {
    let data: Vec<u8> = (0..LEN).map(|n| (n.wrapping_mul(0x9E37_79B9) >> 13).to_le_bytes()[0]).collect();
    let mut group = c.benchmark_group("hash 64 MiB");
    group.throughput(Throughput::Bytes(LEN as u64)).sample_size(10);
    group.bench_function("plain blake3", |b| b.iter(|| blake3::hash(black_box(&data))));
    for log2 in [20, 22, 24] {
        let size = ChunkSize::from_log2(log2).expect("a chunk size");
        group.bench_with_input(BenchmarkId::new("chunks of", size), &size, |b, &size| {
            b.iter(|| {
                let mut root = RootBuilder::new(size, data.len() as u64);
                for (index, chunk) in (0u64..).zip(data.chunks(size.buffer_bytes())) {
                    root.insert(index, chunk_value(size, index, data.len() as u64, black_box(chunk)));
                }
                root.root().expect("all chunks were given")
            });
        });
    }
    group.finish();
}

criterion_group!(benches, hash);
criterion_main!(benches);
