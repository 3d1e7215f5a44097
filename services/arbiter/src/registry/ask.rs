//! What is asked for, checked where it comes in.

use std::time::Duration;

use tether_proto::{Failure, common::EndpointHealth, registry as wire};
use tether_types::{
    Address, Epoch, InstanceName, PoolName, Reason, TEXT_MAX, WEIGHT_MAX, is_plain,
};

use super::Key;

/// How endpoints are spoken to; the first where nothing is said.
const PROTOCOLS: [&str; 2] = ["grpc", "grpcs"];

/// What is to be registered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Registrant {
    pub(crate) key: Key,
    pub(crate) life: String,
    pub(crate) address: Address,
    pub(crate) protocol: String,
    /// Wished; zero for whatever is usual.
    pub(crate) ttl: Duration,
    /// Under which it believes to be registered; 0 for none.
    pub(crate) epoch: Epoch,
}

impl Registrant {
    /// Reads what was asked for; the word for its life is looked at by whoever took it in.
    ///
    /// # Errors
    /// Says what cannot be.
    pub(crate) fn read(asked: wire::Registrant) -> Result<Self, Failure> {
        let pool = PoolName::new(asked.pool).map_err(|error| refused("pool", error.to_string()))?;
        let name =
            InstanceName::new(asked.name).map_err(|error| refused("name", error.to_string()))?;
        let address: Address = asked
            .address
            .parse()
            .map_err(|error: tether_types::InvalidAddress| refused("address", error.to_string()))?;
        address
            .check_callable()
            .map_err(|why| refused("address", why.to_string()))?;
        if !is_plain(&asked.address) {
            let text = format!(
                "an address has at most {TEXT_MAX} bytes and no control characters, `{}` has",
                address.to_string().escape_default()
            );
            return Err(refused("address", text));
        }
        let protocol = match asked.protocol.as_str() {
            "" => PROTOCOLS[0],
            said => said,
        };
        if !PROTOCOLS.contains(&protocol) {
            let text = format!(
                "nobody speaks `{}` to workers: use {}",
                protocol.escape_default(),
                PROTOCOLS.join(" or ")
            );
            return Err(refused("protocol", text));
        }
        Ok(Self {
            key: (pool, name),
            life: asked.life,
            address,
            protocol: protocol.to_owned(),
            ttl: Duration::from_millis(asked.ttl_ms),
            epoch: Epoch(asked.epoch),
        })
    }
}

/// Whether a worker can be like this.
///
/// # Errors
/// Says what cannot be.
pub(crate) fn check_condition(condition: &wire::Condition) -> Result<(), Failure> {
    if !is_plain(&condition.zone) {
        let text = format!("a zone has at most {TEXT_MAX} bytes and no control characters");
        return Err(refused("zone", text));
    }
    if condition.weight > WEIGHT_MAX {
        let text = format!("a weight of {} is over {WEIGHT_MAX}", condition.weight);
        return Err(refused("weight", text));
    }
    match EndpointHealth::try_from(condition.health) {
        Ok(
            EndpointHealth::Unspecified
            | EndpointHealth::Passing
            | EndpointHealth::Unchecked
            | EndpointHealth::Failing,
        ) => Ok(()),
        Ok(EndpointHealth::Held) | Err(_) => {
            let text = "who registers a worker says of it that it passes, fails or was not checked, and nothing else";
            Err(refused("health", text.to_owned()))
        }
    }
}

fn refused(field: &'static str, text: String) -> Failure {
    Failure::new(Reason::ConfigInvalid, text).fact("field", field)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(change: impl FnOnce(&mut wire::Registrant)) -> Result<Registrant, Failure> {
        let mut asked = wire::Registrant {
            pool: "digits".to_owned(),
            name: "host-1-4711".to_owned(),
            life: "a".to_owned(),
            address: "10.0.0.1:50051".to_owned(),
            ..wire::Registrant::default()
        };
        change(&mut asked);
        Registrant::read(asked)
    }

    #[test]
    fn what_could_not_be_called_or_named_is_refused_with_the_field_at_fault() {
        assert_eq!(asked(|_| {}).unwrap().protocol, "grpc");
        type Change = fn(&mut wire::Registrant);
        let bad: [(&str, Change); 6] = [
            ("pool name", |asked| asked.pool = "a/b".to_owned()),
            ("registration name", |asked| asked.name = "x".repeat(64)),
            ("is not an address", |asked| {
                asked.address = "10.0.0.1".to_owned()
            }),
            ("port 0", |asked| asked.address = "10.0.0.1:0".to_owned()),
            ("has room for 107", |asked| {
                asked.address = format!("unix:/{}", "x".repeat(300));
            }),
            ("`http`", |asked| asked.protocol = "http".to_owned()),
        ];
        for (part, change) in bad {
            let error = asked(change).unwrap_err();
            assert_eq!(error.reason(), Reason::ConfigInvalid);
            assert!(error.to_string().contains(part), "{error}");
        }
    }

    #[test]
    fn nobody_says_of_a_worker_what_only_discovery_finds_out() {
        let condition = |health: EndpointHealth, weight| wire::Condition {
            health: health.into(),
            weight,
            ..wire::Condition::default()
        };
        check_condition(&condition(EndpointHealth::Failing, WEIGHT_MAX)).unwrap();
        check_condition(&condition(EndpointHealth::Held, 1)).unwrap_err();
        check_condition(&condition(EndpointHealth::Passing, WEIGHT_MAX + 1)).unwrap_err();
    }
}
