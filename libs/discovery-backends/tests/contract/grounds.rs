//! Every ground: one line each.

use std::collections::BTreeSet;

use tether_discovery_backends::ALL;

use crate::ground::Ground as _;

pub(crate) mod consul;
mod dns;
pub(crate) mod etcd;
mod file;
mod fixed;
#[cfg(feature = "kubernetes")]
pub(crate) mod kubernetes;

fixed_rules! { of_static: crate::grounds::fixed::Fixed }
all_rules! { of_file: crate::grounds::file::ListFile }
all_rules! { of_etcd: crate::grounds::etcd::Prefix }
all_rules! { of_consul: crate::grounds::consul::Service }
#[cfg(feature = "kubernetes")]
all_rules! { of_kubernetes: crate::grounds::kubernetes::Service }
// An answer of 10,000 records fits into no message of DNS.
changing_rules! { of_dns: crate::grounds::dns::Name }

#[test]
fn every_backend_has_a_ground() {
    let grounds = [
        fixed::Fixed::SCHEME,
        file::ListFile::SCHEME,
        dns::Name::SCHEME,
        etcd::Prefix::SCHEME,
        consul::Service::SCHEME,
        #[cfg(feature = "kubernetes")]
        kubernetes::Service::SCHEME,
    ];
    let schemes: BTreeSet<_> = ALL.iter().map(|backend| backend.scheme()).collect();
    assert_eq!(BTreeSet::from(grounds), schemes);
}
