//! Hashes as Nix writes them, and the content addresses that they are part of.
//!
//! Nix writes one hash in three ways: SRI (`sha256-` and base 64) in JSON, base 32 with an alphabet and an order of its own in
//! content addresses and signatures, base 16 in the registrations of `nix-store --load-db`. A [`struct@Hash`] has the length that its
//! algorithm gives, so each of them can be written without an error.

use std::fmt;

use data_encoding::{BASE64, HEXLOWER};

/// Nix's base 32 leaves out `e`, `o`, `t` and `u` (Nix manual, "Store Path").
const NIX32: &[u8; 32] = b"0123456789abcdfghijklmnpqrsvwxyz";

/// What a hash was computed with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Algorithm {
    /// 16 bytes.
    Md5,
    /// 20 bytes.
    Sha1,
    /// 32 bytes; what Nix takes of every NAR.
    Sha256,
    /// 64 bytes.
    Sha512,
    /// 32 bytes.
    Blake3,
}

impl Algorithm {
    const ALL: [Self; 5] = [Self::Md5, Self::Sha1, Self::Sha256, Self::Sha512, Self::Blake3];

    /// As Nix spells it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Md5 => "md5",
            Self::Sha1 => "sha1",
            Self::Sha256 => "sha256",
            Self::Sha512 => "sha512",
            Self::Blake3 => "blake3",
        }
    }

    fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|algorithm| algorithm.name() == text)
    }

    /// Length of its hashes in bytes.
    fn len(self) -> usize {
        match self {
            Self::Md5 => 16,
            Self::Sha1 => 20,
            Self::Sha256 | Self::Blake3 => 32,
            Self::Sha512 => 64,
        }
    }
}

/// A hash with its algorithm.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hash {
    algorithm: Algorithm,
    digest: Box<[u8]>,
}

impl Hash {
    /// A hash of the length that `algorithm` gives.
    #[must_use]
    pub fn new(algorithm: Algorithm, digest: &[u8]) -> Option<Self> {
        (digest.len() == algorithm.len()).then(|| Self { algorithm, digest: digest.into() })
    }

    /// Reads `sha256-<base 64>`.
    #[must_use]
    pub fn parse_sri(text: &str) -> Option<Self> {
        let (algorithm, digest) = text.split_once('-')?;
        Self::new(Algorithm::parse(algorithm)?, &BASE64.decode(digest.as_bytes()).ok()?)
    }

    /// Reads `sha256:<Nix's base 32>`.
    #[must_use]
    pub fn parse_nix32(text: &str) -> Option<Self> {
        let (algorithm, digest) = text.split_once(':')?;
        let algorithm = Algorithm::parse(algorithm)?;
        Self::new(algorithm, &decode_nix32(digest, algorithm.len())?)
    }

    /// What it was computed with.
    #[must_use]
    pub fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// `sha256-<base 64>`.
    #[must_use]
    pub fn sri(&self) -> String {
        format!("{}-{}", self.algorithm.name(), BASE64.encode(&self.digest))
    }

    /// `sha256:<Nix's base 32>`.
    #[must_use]
    pub fn nix32(&self) -> String {
        format!("{}:{}", self.algorithm.name(), encode_nix32(&self.digest))
    }

    /// The digest in base 16, without the algorithm.
    #[must_use]
    pub fn base16(&self) -> String {
        HEXLOWER.encode(&self.digest)
    }
}

/// Digits of a number whose lowest byte comes first, highest digit first.
fn encode_nix32(digest: &[u8]) -> String {
    let byte = |place: usize| u16::from(digest.get(place).copied().unwrap_or(0));
    (0..(digest.len() * 8).div_ceil(5))
        .rev()
        .map(|digit| {
            let (place, shift) = (digit * 5 / 8, digit * 5 % 8);
            let five = ((byte(place) | byte(place + 1) << 8) >> shift) & 31;
            char::from(NIX32.get(usize::from(five)).copied().unwrap_or_default())
        })
        .collect()
}

fn decode_nix32(text: &str, len: usize) -> Option<Vec<u8>> {
    if text.len() != (len * 8).div_ceil(5) {
        return None;
    }
    let mut digest = vec![0_u8; len];
    for (digit, symbol) in text.bytes().rev().enumerate() {
        let five = NIX32.iter().position(|known| *known == symbol)?;
        let (place, shift) = (digit * 5 / 8, digit * 5 % 8);
        let [low, high] = u16::try_from(five << shift).ok()?.to_le_bytes();
        *digest.get_mut(place)? |= low;
        match digest.get_mut(place + 1) {
            Some(byte) => *byte |= high,
            // The highest digit has more bits than the number.
            None if high != 0 => return None,
            None => {}
        }
    }
    Some(digest)
}

/// What a content address is the hash of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    /// A file that may have references.
    Text,
    /// The contents of a file.
    Flat,
    /// The NAR.
    Nar,
    /// A git object.
    Git,
}

impl Method {
    const ALL: [Self; 4] = [Self::Text, Self::Flat, Self::Nar, Self::Git];

    /// As Nix's JSON spells it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Text => "text",
            Self::Flat => "flat",
            Self::Nar => "nar",
            Self::Git => "git",
        }
    }

    /// Reads Nix's JSON.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|method| method.name() == text)
    }

    /// What Nix writes before the hash.
    fn prefix(self) -> &'static str {
        match self {
            Self::Text => "text:",
            Self::Nar => "fixed:r:",
            Self::Git => "fixed:git:",
            Self::Flat => "fixed:",
        }
    }
}

/// A store path's content address: `fixed:r:sha256:<base 32>` in Nix's database, two fields in its JSON.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContentAddress {
    /// What was hashed.
    pub method: Method,
    /// Its hash.
    pub hash: Hash,
}

impl ContentAddress {
    /// Reads what Nix's library gives.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        // `fixed:` begins others as well, but no algorithm has their names.
        Method::ALL.into_iter().find_map(|method| {
            let hash = Hash::parse_nix32(text.strip_prefix(method.prefix())?)?;
            Some(Self { method, hash })
        })
    }
}

impl fmt::Display for ContentAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.method.prefix(), self.hash.nix32())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn any_hash() -> impl Strategy<Value = Hash> {
        (proptest::sample::select(Algorithm::ALL.to_vec()), any::<[u8; 64]>())
            .prop_map(|(algorithm, bytes)| Hash::new(algorithm, &bytes[..algorithm.len()]).unwrap())
    }

    /// As `nix-hash --to-base16`, `--to-base32` and `nix hash to-sri` give it for the empty file.
    #[test]
    fn the_hash_of_nothing() {
        let hash = Hash::parse_sri("sha256-47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=").unwrap();
        assert_eq!(hash.algorithm(), Algorithm::Sha256);
        assert_eq!(hash.base16(), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
        assert_eq!(hash.nix32(), "sha256:0mdqa9w1p6cmli6976v4wi0sw9r4p5prkj7lzfd1877wk11c9c73");
        assert_eq!(Hash::parse_nix32(&hash.nix32()), Some(hash));
    }

    #[test]
    fn what_is_no_hash_is_refused() {
        for text in [
            "",
            "sha256",
            "sha256-",
            "sha256-AAAA",
            "sha256-47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU",
            "sha257-47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=",
            "sha256-47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=\n",
            "sha512-47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=",
        ] {
            assert_eq!(Hash::parse_sri(text), None, "{text:?}");
        }
        let good = "0mdqa9w1p6cmli6976v4wi0sw9r4p5prkj7lzfd1877wk11c9c73";
        for text in
            [good.replacen('m', "e", 1), good.replacen('0', "2", 1), format!("{good}0"), good[1..].into()]
        {
            assert_eq!(Hash::parse_nix32(&format!("sha256:{text}")), None, "{text:?}");
        }
    }

    /// The names of the methods are those of Nix's JSON, the prefixes those of its database.
    #[test]
    fn content_addresses_of_every_method() {
        let hash = "sha256:0mdqa9w1p6cmli6976v4wi0sw9r4p5prkj7lzfd1877wk11c9c73";
        for (prefix, method) in
            [("text:", "text"), ("fixed:", "flat"), ("fixed:r:", "nar"), ("fixed:git:", "git")]
        {
            let text = format!("{prefix}{hash}");
            let address = ContentAddress::parse(&text).unwrap();
            assert_eq!((address.method.name(), address.to_string()), (method, text));
            assert_eq!(Method::parse(method), Some(address.method));
        }
        for text in ["", "fixed", "fixed:", "fixed:x:", "other:", "text:r:", "r:"] {
            assert_eq!(ContentAddress::parse(&format!("{text}{hash}")).is_some(), text == "fixed:", "{text}");
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(hash in any_hash()) {
            prop_assert_eq!(Hash::parse_sri(&hash.sri()), Some(hash.clone()));
            prop_assert_eq!(Hash::parse_nix32(&hash.nix32()), Some(hash));
        }

        #[test]
        fn no_text_panics(text in ".{0,80}") {
            let _refused = (Hash::parse_sri(&text), Hash::parse_nix32(&text), ContentAddress::parse(&text));
        }
    }
}
