//! What SRV records say of who serves. Pure.

use std::{collections::BTreeMap, net::IpAddr};

use hickory_resolver::proto::rr::{Name, RData, Record, rdata::SRV};
use tether_types::Address;

use crate::{Answer, Traits};

/// Addresses of a host, and for how many seconds they hold.
pub(super) type Host = (Vec<IpAddr>, u32);

/// Those of one priority, lowest first: only where none of them has an address do the next ones serve. None where
/// the one record says that the service is not to be had (a target of `.`).
pub(super) fn groups(records: &[Record]) -> Vec<Vec<&SRV>> {
    let mut groups: BTreeMap<u16, Vec<&SRV>> = BTreeMap::new();
    for record in records {
        if let RData::SRV(service) = &record.data
            && !service.target.is_root()
        {
            groups.entry(service.priority).or_default().push(service);
        }
    }
    groups.into_values().collect()
}

/// The addresses of `target` that came with its SRV record.
pub(super) fn told(target: &Name, additionals: &[Record]) -> Option<Host> {
    let of_target = additionals.iter().filter(|record| record.name == *target);
    let addresses = of_target.filter_map(|record| Some((record.data.ip_addr()?, record.ttl)));
    let (addresses, times): (Vec<_>, Vec<_>) = addresses.unzip();
    Some((addresses, times.into_iter().min()?))
}

/// Everyone of a group whose address is known.
///
/// # Errors
/// Where there are too many.
pub(super) fn answer(
    group: &[&SRV],
    hosts: &BTreeMap<Name, Result<Host, String>>,
) -> Result<Answer, String> {
    let mut answer = Answer::default();
    for service in group {
        let addresses = match hosts.get(&service.target) {
            Some(Ok((addresses, _))) => addresses,
            Some(Err(why)) => {
                answer.leave_out(format!("the target `{}`: {why}", service.target));
                continue;
            }
            None => continue,
        };
        for ip in addresses {
            let address = Address::Tcp {
                host: ip.to_string(),
                port: service.port,
            };
            let traits = Traits {
                // 0 asks for next to nothing beside others, and not for an end to calls.
                weight: u32::from(service.weight.max(1)),
                ..Traits::default()
            };
            answer.take(address, traits)?;
        }
    }
    Ok(answer)
}

#[cfg(test)]
mod tests {
    use hickory_resolver::proto::rr::rdata::{A, AAAA};

    use super::*;

    fn name(text: &str) -> Name {
        Name::from_ascii(text).unwrap()
    }

    fn service(priority: u16, weight: u16, port: u16, target: &str) -> Record {
        let service = SRV::new(priority, weight, port, name(target));
        Record::from_rdata(name("_grpc._tcp.test."), 5, RData::SRV(service))
    }

    #[test]
    fn the_lowest_priority_comes_first_and_a_service_that_is_not_to_be_had_is_nobodys() {
        let records = [
            service(20, 1, 1, "c.test."),
            service(10, 1, 1, "a.test."),
            service(10, 1, 1, "b.test."),
        ];
        let targets = |records: &[Record]| -> Vec<Vec<String>> {
            let groups = groups(records).into_iter();
            let names = |group: Vec<&SRV>| group.iter().map(|one| one.target.to_ascii()).collect();
            groups.map(names).collect()
        };
        assert_eq!(
            targets(&records),
            [vec!["a.test.", "b.test."], vec!["c.test."]]
        );
        assert!(targets(&[service(0, 0, 0, ".")]).is_empty());
    }

    #[test]
    fn ports_and_weights_are_taken_from_the_record_and_who_has_no_address_is_left_out() {
        let records = [
            service(0, 7, 1001, "a.test."),
            service(0, 0, 1002, "a.test."),
            service(0, 7, 0, "a.test."),
            service(0, 7, 1003, "gone.test."),
        ];
        let six = RData::AAAA(AAAA::new(0xfd00, 0, 0, 0, 0, 0, 0, 1));
        let additionals = [
            Record::from_rdata(name("A.test."), 9, RData::A(A::new(10, 0, 0, 1))),
            Record::from_rdata(name("a.test."), 3, six),
            Record::from_rdata(name("other.test."), 1, RData::A(A::new(10, 0, 0, 2))),
        ];
        let host = told(&name("a.test."), &additionals).unwrap();
        assert_eq!((host.0.len(), host.1), (2, 3));
        assert_eq!(told(&name("gone.test."), &additionals), None);

        let circle = Err("its aliases lead in a circle".to_owned());
        let hosts = BTreeMap::from([(name("a.test."), Ok(host)), (name("gone.test."), circle)]);
        let answer = answer(&groups(&records)[0], &hosts).unwrap();

        let taken = answer.targets.iter();
        let taken: Vec<_> = taken.map(|(a, t)| (a.to_string(), t.weight)).collect();
        let expected = [
            ("10.0.0.1:1001", 7),
            ("10.0.0.1:1002", 1),
            ("[fd00::1]:1001", 7),
            ("[fd00::1]:1002", 1),
        ];
        assert_eq!(
            taken,
            expected.map(|(address, weight)| (address.to_owned(), weight))
        );
        // Twice at port 0, and once without an address.
        assert_eq!(answer.left_out, 3);
        let why = answer.reasons.last().unwrap();
        assert!(
            why.contains("`gone.test.`") && why.contains("circle"),
            "{why}"
        );
    }
}
