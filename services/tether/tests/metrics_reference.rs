//! The reference of metrics is written from the code.

#![allow(clippy::unwrap_used, reason = "test helpers outside of test functions")]

use std::{fs, path::Path};

use tether_kit::metrics::{Metrics, PATH};

#[test]
fn the_documented_metrics_match_the_code() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/reference/metrics.md");
    let mut metrics = Metrics::new();
    tether_agent::declare_metrics(&mut metrics);
    let written = document(&metrics);

    if std::env::var_os("UPDATE_DOCS").is_some() {
        fs::write(&path, &written).unwrap();
    }

    let found = fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(
        found, written,
        "run this test with UPDATE_DOCS=1 to write docs/reference/metrics.md again"
    );
}

fn document(metrics: &Metrics) -> String {
    format!(
        "# Metrics\n\n\
         What Prometheus can read of a `tether-agent` or a `tether up` whose configuration says where, at `{PATH}`:\n\n\
         ```toml\n[metrics]\nlisten = \"127.0.0.1:9464\"   # or \"unix:/run/tether/metrics.sock\"\n```\n\n\
         Nothing is served where nothing is set. A count is there from the start, with each value of its label. Written from the\n\
         code; its test writes this page again when run with `UPDATE_DOCS=1`.\n\n{}",
        metrics.reference()
    )
}
