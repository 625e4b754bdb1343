//! The same sizes and bytes in each run, without a dependency.

const SIZE_BYTES_MEDIAN: f64 = 1_500.0;
/// Of a log-normal distribution whose mean is 8 KB: `exp(sigma² / 2)` is mean over median.
const SIZE_SIGMA: f64 = 1.83;

/// Marsaglia's xorshift; its state is never 0.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn bits(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// From 0 up to, but not including, 1.
    pub(crate) fn unit(&mut self) -> f64 {
        (self.bits() >> 11) as f64 / (1_u64 << 53) as f64
    }

    pub(crate) fn below(&mut self, end: usize) -> usize {
        (self.bits() % end as u64) as usize
    }

    pub(crate) fn size_bytes(&mut self) -> usize {
        // The sum of twelve has variance 1 and is as good as normal here.
        let normal = (0..12).map(|_| self.unit()).sum::<f64>() - 6.0;
        (SIZE_BYTES_MEDIAN * (SIZE_SIGMA * normal).exp()) as usize
    }
}

/// Bytes that neither compress nor repeat, the same for the same seed.
pub(crate) fn contents(seed: u64, size_bytes: usize) -> Vec<u8> {
    let mut random = Random(seed);
    let words = (0..size_bytes.div_ceil(8)).map(|_| random.bits());
    let mut bytes: Vec<u8> = words.flat_map(u64::to_le_bytes).collect();
    bytes.truncate(size_bytes);
    bytes
}
