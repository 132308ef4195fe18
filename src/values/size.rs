//! A number of bytes as people read it: `1.5 KiB`.
//!
//! Only for people. What programs read has the exact number.

use std::fmt;

const UNITS: [&str; 7] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];

/// A number of bytes, shown in the largest unit of which there is at least one, with one decimal.
///
/// The page of `--dump-closure=html` has the same rule in its script.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Size(pub u64);

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes = u128::from(self.0);
        let mut units = UNITS.into_iter();
        let mut unit = units.next().unwrap_or_default();
        let mut one: u128 = 1;
        // 1023.96 KiB would be rounded to 1024.0 of them, and is 1.0 MiB.
        while tenths(bytes, one) >= 10_240 {
            let Some(next) = units.next() else { break };
            unit = next;
            one *= 1024;
        }
        let text = match (one, tenths(bytes, one)) {
            (1, _) => format!("{bytes} {unit}"),
            (_, tenths) => format!("{}.{} {unit}", tenths / 10, tenths % 10),
        };
        f.pad(&text)
    }
}

/// How many tenths of `one` there are in `bytes`, rounded.
fn tenths(bytes: u128, one: u128) -> u128 {
    (bytes * 10 + one / 2) / one
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn sizes_read_as_people_write_them() {
        for (bytes, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.0 KiB"),
            (1536, "1.5 KiB"),
            (1_048_524, "1023.9 KiB"),
            (1_048_525, "1.0 MiB"),
            (1 << 30, "1.0 GiB"),
            (u64::MAX, "16.0 EiB"),
        ] {
            assert_eq!(Size(bytes).to_string(), text);
        }
        assert_eq!(format!("{:>9}", Size(1024)), "  1.0 KiB");
    }

    proptest! {
        /// The text, read again, is within half of its last digit, and never longer than a column.
        #[test]
        fn a_size_is_rounded_and_not_wrong(shift in 0u32..64, bytes in any::<u64>()) {
            let bytes = bytes >> shift;
            let text = Size(bytes).to_string();
            let (number, unit) = text.split_once(' ').unwrap();
            let power = u32::try_from(UNITS.iter().position(|known| *known == unit).unwrap()).unwrap();
            let one = 1024u128.pow(power);
            let (whole, tenth) = number.split_once('.').unwrap_or((number, "0"));
            let tenths: u128 = whole.parse::<u128>().unwrap() * 10 + tenth.parse::<u128>().unwrap();
            prop_assert!((tenths * one).abs_diff(u128::from(bytes) * 10) <= one / 2);
            prop_assert!(text.len() <= 10 && (power == 0 || tenths >= 10) && tenths < 10_240);
        }
    }
}
