//! Every ground: one line each.

use std::collections::BTreeSet;

use tether_discovery_backends::ALL;

use crate::ground::Ground as _;

mod dns;
mod file;
mod fixed;

fixed_rules! { of_static: crate::grounds::fixed::Fixed }
all_rules! { of_file: crate::grounds::file::ListFile }
// An answer of 10,000 records fits into no message of DNS.
changing_rules! { of_dns: crate::grounds::dns::Name }

#[test]
fn every_backend_has_a_ground() {
    let grounds = [
        fixed::Fixed::SCHEME,
        file::ListFile::SCHEME,
        dns::Name::SCHEME,
    ];
    let schemes: BTreeSet<_> = ALL.iter().map(|backend| backend.scheme()).collect();
    assert_eq!(BTreeSet::from(grounds), schemes);
}
