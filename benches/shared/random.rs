//! Pseudo-random numbers (xorshift64*): the same for the same seed.

/// The digits of a store path's hash (Nix manual, "Store Path").
const DIGITS: &[u8] = b"0123456789abcdfghijklmnpqrsvwxyz";

/// A seed that is not 0, or what came of it.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        // The lowest bits are the weakest.
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 16
    }

    /// The hash of a store path that nobody has.
    pub(crate) fn hash(&mut self) -> String {
        (0..32).map(|_| char::from(DIGITS[(self.next() % 32) as usize])).collect()
    }
}
