//! Bytes that both sides know, whichever language they speak, and their checksum.

use bytes::Bytes;

/// A prime length, so that bytes that moved by a frame or a window show.
const PERIOD: usize = 251;

pub(super) fn pattern(size: usize) -> Bytes {
    let period: Vec<u8> = (0..PERIOD)
        .map(|at| u8::try_from((31 * at + 7) % PERIOD).unwrap_or(0))
        .collect();
    let mut whole = period.repeat(size / PERIOD + 1);
    whole.truncate(size);
    whole.into()
}

pub(super) fn crc(bytes: &[u8]) -> u32 {
    let mut crc = flate2::Crc::new();
    crc.update(bytes);
    crc.sum()
}

pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

pub(super) fn unhex(text: &str) -> Vec<u8> {
    let digits = text.as_bytes().chunks(2);
    let byte = |digits: &[u8]| {
        let digits = std::str::from_utf8(digits).expect("it is ASCII");
        u8::from_str_radix(digits, 16).expect("it is hexadecimal")
    };
    digits.map(byte).collect()
}
