//! What a `dns://` source asks for, and of whom, read from its URL. Pure.

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use hickory_resolver::proto::rr::Name;
use tether_types::Address;

use super::pace::Bounds;
use crate::{Options, target};

/// More name servers than this are a mistake: each is asked in its turn while none answers.
const SERVERS_MAX: usize = 8;
const SEARCH_MAX: usize = 8;

/// A source, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Terms {
    pub(super) name: Name,
    pub(super) wanted: Wanted,
    /// Whom to ask, in this order; the system's where there are none.
    pub(super) servers: Vec<SocketAddr>,
    pub(super) over: Over,
    pub(super) search: Search,
    pub(super) bounds: Bounds,
    /// Whether a name that does not exist is served by nobody, and no error.
    pub(super) missing_is_empty: bool,
}

/// Which records are asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wanted {
    /// A and AAAA; who serves there listens on this port.
    Addresses {
        /// The same for all.
        port: u16,
    },
    /// SRV, and the addresses of their targets.
    Services,
}

/// How servers are asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Over {
    /// By a datagram, and over TCP where that says that it is not all.
    Either,
    /// Of a server that does not say so.
    Tcp,
}

/// What a name may be the beginning of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Search {
    /// It is complete.
    Complete,
    /// Of a name in one of the domains of `/etc/resolv.conf`.
    System,
    /// Of a name in one of these.
    Domains(Vec<Name>),
}

impl Terms {
    pub(super) fn parse(text: &str, options: &mut Options) -> Result<Self, String> {
        let services = switch(options, "srv")?;
        let over = match switch(options, "tcp")? {
            true => Over::Tcp,
            false => Over::Either,
        };
        let listed = options.text("servers");
        let (server, text) = match text.split_once('/') {
            Some((server, text)) => (Some(server), text),
            None => (None, text),
        };
        let servers = match (server, listed.as_deref()) {
            (Some(_), Some(_)) => {
                let why = "a server stands before the name and in the option `servers`: write all of them there";
                return Err(why.to_owned());
            }
            (Some(one), None) => vec![server_at(one)?],
            (None, Some(list)) => some_of(list, SERVERS_MAX, "servers")?
                .map(server_at)
                .collect::<Result<_, _>>()?,
            (None, None) => Vec::new(),
        };
        let (host, wanted) = if services {
            (service(text)?, Wanted::Services)
        } else {
            let (host, port) = host_and_port(text)?;
            (host, Wanted::Addresses { port })
        };
        let search = match options.text("search").as_deref() {
            None | Some("0") => Search::Complete,
            Some("1") => Search::System,
            Some(list) => {
                let domains = some_of(list, SEARCH_MAX, "search")?;
                Search::Domains(domains.map(complete).collect::<Result<_, _>>()?)
            }
        };
        let name = match search {
            Search::Complete => complete(&host)?,
            Search::System | Search::Domains(_) => name(&host)?,
        };
        let missing_is_empty = match options.text("nxdomain").as_deref() {
            None | Some("error") => false,
            Some("empty") => true,
            Some(other) => {
                return Err(format!(
                    "the option `nxdomain` is `{other}`, and not `error` or `empty`"
                ));
            }
        };
        Ok(Self {
            name,
            wanted,
            servers,
            over,
            search,
            bounds: bounds(options)?,
            missing_is_empty,
        })
    }
}

/// The names to ask for, in this order: the first one that exists counts. As resolvers do, one with at least
/// `ndots` dots is taken as complete before domains are tried.
pub(super) fn candidates(name: &Name, domains: &[Name], ndots: usize) -> Vec<Name> {
    if name.is_fqdn() {
        return vec![name.clone()];
    }
    let mut complete = name.clone();
    complete.set_fqdn(true);
    let mut names: Vec<Name> = domains
        .iter()
        .filter_map(|domain| name.clone().append_domain(domain).ok())
        .collect();
    let at = match usize::from(name.num_labels()) > ndots {
        true => 0,
        false => names.len(),
    };
    names.insert(at, complete);
    names
}

fn bounds(options: &mut Options) -> Result<Bounds, String> {
    let floor = options
        .duration("floor")?
        .unwrap_or_else(|| Bounds::default().floor);
    let ceiling = options.duration("ceiling")?;
    let ceiling = ceiling.unwrap_or_else(|| Bounds::default().ceiling.max(floor));
    // A source asked more often than this is a flood, whatever its records say.
    if floor < Duration::from_millis(100) {
        return Err("the option `floor` is at least `100ms`".to_owned());
    }
    if ceiling < floor {
        return Err("the option `ceiling` is below `floor`".to_owned());
    }
    Ok(Bounds { floor, ceiling })
}

fn host_and_port(text: &str) -> Result<(String, u16), String> {
    let hint = |why: String| match text.starts_with('_') {
        true => format!("{why}; for its SRV records add `?srv=1`"),
        false => why,
    };
    match target(text).map_err(hint)? {
        Address::Unix(_) => Err("a socket has no name to ask for".to_owned()),
        Address::Tcp { host, .. } if host.parse::<IpAddr>().is_ok() => {
            Err(format!("`{host}` is an address already, use `static://`"))
        }
        Address::Tcp { host, port } => Ok((host, port)),
    }
}

fn service(text: &str) -> Result<String, String> {
    match text {
        "" => Err("it names nothing".to_owned()),
        text if text.contains(':') => Err(format!(
            "`{text}` has a port, and SRV records say the port themselves"
        )),
        text => Ok(text.to_owned()),
    }
}

fn name(text: &str) -> Result<Name, String> {
    let why =
        |why: &dyn std::fmt::Display| format!("`{}` is no name: {why}", text.escape_default());
    let odd = |c: char| !(c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'));
    if let Some(odd) = text.chars().find(|&c| odd(c)) {
        return Err(why(&format!("it has the character {odd:?}")));
    }
    let name = Name::from_ascii(text).map_err(|error| why(&error))?;
    match name.is_root() || text.is_empty() {
        true => Err(why(&"it is empty")),
        false => Ok(name),
    }
}

fn complete(text: &str) -> Result<Name, String> {
    let mut name = name(text)?;
    name.set_fqdn(true);
    Ok(name)
}

fn some_of<'a>(
    list: &'a str,
    most: usize,
    option: &str,
) -> Result<impl Iterator<Item = &'a str>, String> {
    match list.split(',').count() {
        count if count > most => Err(format!(
            "the option `{option}` lists {count}, at most {most} are allowed"
        )),
        _ => Ok(list.split(',')),
    }
}

fn server_at(text: &str) -> Result<SocketAddr, String> {
    let with_port = text.parse().ok();
    let without = || Some(SocketAddr::new(text.parse().ok()?, 53));
    let server = with_port.or_else(without).ok_or_else(|| {
        format!("the server `{text}` is not an IP address with or without a port")
    })?;
    match server.port() {
        0 => Err(format!("no server answers at port 0 of `{text}`")),
        _ => Ok(server),
    }
}

fn switch(options: &mut Options, name: &'static str) -> Result<bool, String> {
    match options.text(name).as_deref() {
        None | Some("0") => Ok(false),
        Some("1") => Ok(true),
        Some(other) => Err(format!("the option `{name}` is `{other}`, and not 0 or 1")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Terms, String> {
        let (target, options) = text.split_once('?').unwrap_or((text, ""));
        let mut options = Options::parse(options)?;
        let terms = Terms::parse(target, &mut options)?;
        options.finish()?;
        Ok(terms)
    }

    fn named(text: &str) -> Name {
        Name::from_ascii(text).unwrap()
    }

    #[test]
    fn a_source_says_what_to_ask_and_of_whom() {
        let plain = parse("workers.internal:50051").unwrap();
        assert_eq!(plain.name, named("workers.internal."));
        assert_eq!(plain.wanted, Wanted::Addresses { port: 50051 });
        assert!(plain.servers.is_empty() && plain.search == Search::Complete);
        assert_eq!(plain.bounds, Bounds::default());

        let one = parse("10.0.0.1:8600/workers.internal.:1?nxdomain=empty&floor=50s").unwrap();
        assert_eq!(one.servers, ["10.0.0.1:8600".parse().unwrap()]);
        assert!(one.missing_is_empty && one.bounds.ceiling == Duration::from_secs(50));

        let all = parse(
            "_grpc._tcp.workers?srv=1&servers=10.0.0.2,[fd00::1]:5353,fd00::2&search=a.test,b.test",
        )
        .unwrap();
        assert_eq!(all.wanted, Wanted::Services);
        let servers: Vec<_> = all.servers.iter().map(ToString::to_string).collect();
        assert_eq!(servers, ["10.0.0.2:53", "[fd00::1]:5353", "[fd00::2]:53"]);
        assert!(!all.name.is_fqdn());
        let domains = vec![named("a.test."), named("b.test.")];
        assert_eq!(all.search, Search::Domains(domains));
    }

    #[test]
    fn what_cannot_be_asked_is_refused_with_its_reason() {
        let long = format!("{}.test:1", "a".repeat(64));
        for (text, part) in [
            ("_grpc._tcp.workers", "`?srv=1`"),
            ("workers:1?srv=1", "has a port"),
            ("?srv=1", "nothing"),
            ("a b?srv=1", "' '"),
            ("a..b?srv=1", "no name"),
            (".?srv=1", "empty"),
            ("workers:1?srv=yes", "0 or 1"),
            (long.as_str(), "no name"),
            ("10.0.0.1:1", "static://"),
            ("10.0.0.1/w:1?servers=10.0.0.2", "all of them there"),
            ("w:1?servers=", "not an IP address"),
            ("w:1?servers=10.0.0.1:0", "port 0"),
            (
                "w:1?servers=1.1.1.1,1.1.1.1,1.1.1.1,1.1.1.1,1.1.1.1,1.1.1.1,1.1.1.1,1.1.1.1,1.1.1.1",
                "at most 8",
            ),
            ("w:1?search=a..b", "no name"),
            ("w:1?floor=10ms", "at least"),
            ("w:1?floor=2s&ceiling=1s", "below"),
            ("w:1?tcp=yes", "0 or 1"),
            ("w:1?nxdomain=maybe", "`error` or `empty`"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.contains(part), "{text}: {error}");
        }
    }

    #[test]
    fn domains_are_searched_as_resolvers_do() {
        let domains = [named("a.test."), named("b.test.")];
        let all = |name: &str, ndots| -> Vec<String> {
            let names = candidates(&named(name), &domains, ndots);
            names.iter().map(Name::to_ascii).collect()
        };
        assert_eq!(all("web", 1), ["web.a.test.", "web.b.test.", "web."]);
        assert_eq!(
            all("web.x", 1),
            ["web.x.", "web.x.a.test.", "web.x.b.test."]
        );
        assert_eq!(
            all("web.x", 5),
            ["web.x.a.test.", "web.x.b.test.", "web.x."]
        );
        assert_eq!(all("web.x.", 5), ["web.x."]);
    }
}
