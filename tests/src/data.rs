//! The data set of the example worker: digits nobody trained on, to ask about.

use std::{
    io::Read as _,
    process::{Command, Stdio},
};

use crate::programs::{example, python};

/// One handwritten digit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Digit {
    /// 8 x 8 values from 0 to 16.
    pub pixels: Vec<u32>,
    /// What it is.
    pub label: u32,
}

/// The example worker keeps every fifth image out of its training.
const HELD_OUT_EVERY: usize = 5;

/// Some digits of the held-out part of the data set.
///
/// # Panics
/// When the data set cannot be read.
pub fn held_out(count: usize) -> Vec<Digit> {
    // Python unpacks what it will be asked about; no other crate is needed for that.
    let mut unpack = Command::new(python())
        .args([
            "-c",
            "import gzip,sys; sys.stdout.write(gzip.open(sys.argv[1],'rt').read())",
        ])
        .arg(example("digits").join("data/digits.csv.gz"))
        .stdout(Stdio::piped())
        .spawn()
        .expect("Python can be started");
    let mut text = String::new();
    unpack
        .stdout
        .take()
        .expect("it is piped")
        .read_to_string(&mut text)
        .expect("the data set is text");
    unpack.wait().expect("Python ends");
    let rows: Vec<_> = text.lines().map(row).collect();
    rows.into_iter()
        .step_by(HELD_OUT_EVERY)
        .take(count)
        .collect()
}

fn row(line: &str) -> Digit {
    let values: Vec<u32> = line.split(',').map(|value| number(value.trim())).collect();
    let (&label, pixels) = values.split_last().expect("a row has values");
    Digit {
        pixels: pixels.to_vec(),
        label,
    }
}

/// The data set writes whole numbers with a fraction of zero.
fn number(text: &str) -> u32 {
    let whole = text.split('.').next().unwrap_or(text);
    whole.parse().expect("a number")
}
