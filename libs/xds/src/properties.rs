//! X1 to X5 with clients that ask, answer late and come back while pools and endpoints come and go.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::Bytes;
use proptest::{collection::vec, prelude::*};
use tether_proto::{
    common::{Endpoint, WorkerRef},
    discovery::{EndpointRemoval, WatchEndpointsResponse},
};

use crate::{
    Balance, Catalog, Delta, Heard, Kind, NAMES_MAX, Part, Sotw, Stream, TooManyNames, delta,
    resource::Version,
    sotw,
    wire::{
        envoy::service::discovery::v3::{
            DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse,
        },
        google::rpc::Status,
    },
};

const POOLS: [&str; 3] = ["a", "b", "c"];

#[derive(Debug, Clone, Copy)]
enum Act {
    AddPool(usize),
    /// With all its endpoints.
    RemovePool(usize),
    Put(usize, u32, u16),
    Remove(usize, u32),
    /// The watcher starts over.
    Snapshot,
    Want(Kind, usize),
    Drop(Kind, usize),
    /// The transport takes what there is to be told.
    Pull,
    /// A response arrives, and its answer.
    Deliver(Kind),
    Reconnect,
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let kind = || prop::sample::select(Kind::ALL.to_vec());
    let pool = || 0..POOLS.len();
    let act = prop_oneof![
        2 => pool().prop_map(Act::AddPool),
        1 => pool().prop_map(Act::RemovePool),
        4 => (pool(), 0..3u32, 1..4u16).prop_map(|(pool, slot, port)| Act::Put(pool, slot, port)),
        2 => (pool(), 0..3u32).prop_map(|(pool, slot)| Act::Remove(pool, slot)),
        1 => Just(Act::Snapshot),
        4 => (kind(), pool()).prop_map(|(kind, pool)| Act::Want(kind, pool)),
        2 => (kind(), pool()).prop_map(|(kind, pool)| Act::Drop(kind, pool)),
        4 => Just(Act::Pull),
        5 => kind().prop_map(Act::Deliver),
        1 => Just(Act::Reconnect),
    ];
    vec(act, 1..80)
}

/// The truth, and how a watcher is told of it.
#[derive(Default)]
struct World {
    pools: BTreeSet<usize>,
    endpoints: BTreeMap<(usize, u32), Endpoint>,
    incarnation: u64,
}

impl World {
    fn act(&mut self, act: Act) -> Option<WatchEndpointsResponse> {
        let mut message = WatchEndpointsResponse::default();
        match act {
            Act::AddPool(pool) => {
                self.pools.insert(pool);
                message.pools = vec![POOLS[pool].to_owned()];
            }
            Act::RemovePool(pool) => {
                self.pools.remove(&pool);
                let gone = self.endpoints.extract_if(.., |place, _| place.0 == pool);
                message.removals = gone.map(|(_, endpoint)| removal(endpoint)).collect();
                message.removed_pools = vec![POOLS[pool].to_owned()];
            }
            Act::Put(pool, slot, port) => {
                self.incarnation += 1;
                let endpoint = Endpoint {
                    worker: Some(WorkerRef {
                        pool: POOLS[pool].to_owned(),
                        slot,
                        incarnation: self.incarnation,
                    }),
                    address: format!("10.0.0.1:{port}"),
                    draining: port == 3,
                    ..Endpoint::default()
                };
                let old = self.endpoints.insert((pool, slot), endpoint.clone());
                message.removals.extend(old.map(removal));
                message.upserts.push(endpoint);
            }
            Act::Remove(pool, slot) => {
                let gone = self.endpoints.remove(&(pool, slot))?;
                message.removals.push(removal(gone));
            }
            Act::Snapshot => {
                message.snapshot = true;
                message.pools = self.pools.iter().map(|&p| POOLS[p].to_owned()).collect();
                message.upserts = self.endpoints.values().cloned().collect();
            }
            Act::Want(..) | Act::Drop(..) | Act::Pull | Act::Deliver(_) | Act::Reconnect => {
                return None;
            }
        }
        Some(message)
    }
}

fn removal(endpoint: Endpoint) -> EndpointRemoval {
    EndpointRemoval {
        worker: endpoint.worker,
        death: None,
    }
}

type Known = BTreeMap<String, Bytes>;

/// What a client has, and what is on its way to it.
struct Client<S: Form> {
    stream: Stream<S>,
    wanted: [BTreeSet<String>; 4],
    known: [Known; 4],
    versions: [BTreeMap<String, String>; 4],
    /// The version and the nonce that it received last.
    last: [(String, String); 4],
    /// Whether a kind was asked for on this stream, and whether it may be told again what it knows.
    asked: [bool; 4],
    may_repeat: [bool; 4],
    /// What may be told again: it has it of a pool that was gone since, whose end the state of the world cannot tell of
    /// every kind, or it gave it up and wants it again.
    anew: BTreeSet<(Kind, String)>,
    on_its_way: VecDeque<(Kind, S::Response)>,
}

/// One of the two forms.
trait Form: Part {
    fn ask(client: &mut Client<Self>, kind: Kind, add: &[&str], drop: &[&str], nonce: &str);
    fn receive(client: &mut Client<Self>, kind: Kind, response: Self::Response);
    fn kind(response: &Self::Response) -> Kind;
}

impl<S: Form> Client<S> {
    fn new() -> Self {
        let mut client = Self {
            stream: Stream::new(None),
            wanted: Default::default(),
            known: Default::default(),
            versions: Default::default(),
            last: Default::default(),
            asked: Default::default(),
            may_repeat: Default::default(),
            anew: BTreeSet::new(),
            on_its_way: VecDeque::new(),
        };
        S::ask(&mut client, Kind::Cluster, &[], &[], "");
        client
    }

    fn act(&mut self, act: Act, catalog: &Catalog) {
        match act {
            Act::Want(kind, pool) if kind != Kind::Cluster => {
                let name = POOLS[pool];
                if self.wanted[kind.index()].insert(name.to_owned()) {
                    if self.on_its_way.iter().any(|(other, _)| *other == kind) {
                        // It may be in there, wanted earlier and given up in between, and comes again.
                        self.anew.insert((kind, name.to_owned()));
                    }
                    let nonce = self.last[kind.index()].1.clone();
                    S::ask(self, kind, &[name], &[], &nonce);
                }
            }
            Act::Drop(kind, pool) if kind != Kind::Cluster => {
                let name = POOLS[pool];
                if self.wanted[kind.index()].remove(name) {
                    self.known[kind.index()].remove(name);
                    self.versions[kind.index()].remove(name);
                    let nonce = self.last[kind.index()].1.clone();
                    S::ask(self, kind, &[], &[name], &nonce);
                }
            }
            Act::Pull => self.pull(catalog),
            Act::Deliver(kind) => self.deliver(kind),
            Act::Reconnect => {
                self.stream = Stream::new(None);
                self.on_its_way.clear();
                self.asked = Default::default();
                self.may_repeat = [true; 4];
                for kind in Kind::ALL {
                    self.last[kind.index()].1.clear();
                    let wanted = self.wanted[kind.index()].clone();
                    let wanted: Vec<_> = wanted.iter().map(String::as_str).collect();
                    if kind == Kind::Cluster || !wanted.is_empty() {
                        S::ask(self, kind, &wanted, &[], "");
                    }
                }
            }
            _ => {}
        }
    }

    fn pull(&mut self, catalog: &Catalog) {
        while let Some(response) = self.stream.next(catalog) {
            let kind = S::kind(&response);
            let twice = self.on_its_way.iter().any(|(other, _)| *other == kind);
            assert!(!twice, "X3: {kind:?} is under way already");
            self.on_its_way.push_back((kind, response));
        }
    }

    fn deliver(&mut self, kind: Kind) {
        let at = self.on_its_way.iter().position(|(other, _)| *other == kind);
        let Some((_, response)) = at.and_then(|at| self.on_its_way.remove(at)) else {
            return;
        };
        S::receive(self, kind, response);
        self.may_repeat[kind.index()] = false;
        let nonce = self.last[kind.index()].1.clone();
        S::ask(self, kind, &[], &[], &nonce);
    }

    /// A resource arrives; in the order of kinds, so that clusters come before endpoints.
    fn learn(&mut self, kind: Kind, name: &str, version: &str, value: Bytes) {
        let known = &mut self.known[kind.index()];
        let old = known.insert(name.to_owned(), value.clone());
        let same = old.as_ref() == Some(&value);
        let again = same && !self.anew.remove(&(kind, name.to_owned()));
        assert!(
            !again || kind.is_whole() || self.may_repeat[kind.index()],
            "X2: {kind:?} {name} is told twice"
        );
        self.versions[kind.index()].insert(name.to_owned(), version.to_owned());
    }

    fn note_gone(&mut self, catalog: &Catalog) {
        for kind in Kind::ALL {
            let names = self.known[kind.index()].keys();
            let gone = names.filter(|name| catalog.get(kind, name).is_none());
            self.anew.extend(gone.map(|name| (kind, name.clone())));
        }
    }

    /// What a client does as a cluster goes.
    fn lose_cluster(&mut self, name: &str) {
        if self
            .on_its_way
            .iter()
            .any(|(kind, _)| *kind == Kind::Endpoints)
        {
            // They may be in there, and come again with the cluster.
            self.anew.insert((Kind::Endpoints, name.to_owned()));
        }
        self.known[Kind::Endpoints.index()].remove(name);
        self.versions[Kind::Endpoints.index()].remove(name);
    }

    /// Until there is nothing left to be told.
    fn settle(&mut self, catalog: &Catalog) {
        loop {
            self.pull(catalog);
            let Some((kind, _)) = self.on_its_way.front() else {
                return;
            };
            self.deliver(*kind);
        }
    }

    fn check(&self, catalog: &Catalog) {
        for kind in Kind::ALL {
            let wanted: BTreeSet<_> = match kind {
                Kind::Cluster => catalog.pools().map(str::to_owned).collect(),
                _ => self.wanted[kind.index()].clone(),
            };
            let there = wanted.into_iter().filter_map(|name| {
                let value = catalog.get(kind, &name)?.any.value.clone();
                Some((name, value))
            });
            let there: Known = there.collect();
            let mut known = self.known[kind.index()].clone();
            // Nothing tells of their end in the state of the world, but the end of the cluster.
            known.retain(|name, _| kind.is_whole() || catalog.pools().any(|pool| pool == name));
            assert_eq!(known, there, "X1: {kind:?}");
        }
    }
}

fn name_of(kind: Kind, catalog_value: &Bytes) -> String {
    use crate::wire::envoy::config;
    use prost::Message as _;
    let value = catalog_value.clone();
    match kind {
        Kind::Cluster => config::cluster::v3::Cluster::decode(value).unwrap().name,
        Kind::Endpoints => {
            config::endpoint::v3::ClusterLoadAssignment::decode(value)
                .unwrap()
                .cluster_name
        }
        Kind::Listener => config::listener::v3::Listener::decode(value).unwrap().name,
        Kind::Route => {
            config::route::v3::RouteConfiguration::decode(value)
                .unwrap()
                .name
        }
    }
}

impl Form for sotw::Part {
    fn ask(client: &mut Client<Self>, kind: Kind, _: &[&str], _: &[&str], nonce: &str) {
        let request = DiscoveryRequest {
            version_info: client.last[kind.index()].0.clone(),
            resource_names: client.wanted[kind.index()].iter().cloned().collect(),
            type_url: kind.type_url().to_owned(),
            response_nonce: nonce.to_owned(),
            ..DiscoveryRequest::default()
        };
        assert_eq!(client.stream.on_request(&request), Ok(Heard::Fine));
    }

    fn receive(client: &mut Client<Self>, kind: Kind, response: DiscoveryResponse) {
        client.last[kind.index()] = (response.version_info, response.nonce);
        let before = client.known[kind.index()].clone();
        let mut named = BTreeSet::new();
        for any in response.resources {
            let name = name_of(kind, &any.value);
            named.insert(name.clone());
            let wanted = kind == Kind::Cluster || client.wanted[kind.index()].contains(&name);
            if wanted {
                client.learn(kind, &name, "", any.value);
            }
        }
        if kind.is_whole() {
            for name in before.keys().filter(|name| !named.contains(*name)) {
                client.known[kind.index()].remove(name);
                if kind == Kind::Cluster {
                    client.lose_cluster(name);
                }
            }
            let first = !std::mem::replace(&mut client.asked[kind.index()], true);
            let same = client.known[kind.index()] == before;
            // What was asked for and is not wanted any more when it arrives changes nothing.
            assert!(
                !same || first || kind == Kind::Listener,
                "X2: {kind:?} is told twice"
            );
        }
    }

    fn kind(response: &DiscoveryResponse) -> Kind {
        Kind::of(&response.type_url).unwrap()
    }
}

impl Form for delta::Part {
    fn ask(client: &mut Client<Self>, kind: Kind, add: &[&str], drop: &[&str], nonce: &str) {
        let first = !std::mem::replace(&mut client.asked[kind.index()], true);
        let owned = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        let initial = match first {
            true => client.versions[kind.index()].clone(),
            false => BTreeMap::new(),
        };
        // It comes back with all that it knows, and is told nothing of that again.
        client.may_repeat[kind.index()] &= initial.is_empty() && !first;
        let request = DeltaDiscoveryRequest {
            type_url: kind.type_url().to_owned(),
            resource_names_subscribe: owned(add),
            resource_names_unsubscribe: owned(drop),
            initial_resource_versions: initial,
            response_nonce: nonce.to_owned(),
            ..DeltaDiscoveryRequest::default()
        };
        assert_eq!(client.stream.on_request(&request), Ok(Heard::Fine));
    }

    fn receive(client: &mut Client<Self>, kind: Kind, response: DeltaDiscoveryResponse) {
        client.last[kind.index()].1 = response.nonce;
        for resource in response.resources {
            let any = resource.resource.unwrap();
            assert_eq!(name_of(kind, &any.value), resource.name);
            let wanted =
                kind == Kind::Cluster || client.wanted[kind.index()].contains(&resource.name);
            if wanted {
                let known = client.known[kind.index()].get(&resource.name);
                let again = kind == Kind::Cluster && known == Some(&any.value);
                assert!(!again, "X2: {kind:?} {} is told twice", resource.name);
                client.learn(kind, &resource.name, &resource.version, any.value);
            }
        }
        for name in response.removed_resources {
            client.known[kind.index()].remove(&name);
            client.versions[kind.index()].remove(&name);
            if kind == Kind::Cluster {
                client.lose_cluster(&name);
            }
        }
    }

    fn kind(response: &DeltaDiscoveryResponse) -> Kind {
        Kind::of(&response.type_url).unwrap()
    }
}

fn known(catalog: &mut Catalog, world: &mut World, act: Act) {
    if let Some(message) = world.act(act) {
        catalog.take(message);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(256) })]

    #[test]
    fn both_forms_tell_what_there_is_and_nothing_twice(acts in acts()) {
        let (mut world, mut catalog) = (World::default(), Catalog::new(Balance::default()));
        known(&mut catalog, &mut world, Act::Snapshot);
        let (mut sotw, mut delta) = (Client::<sotw::Part>::new(), Client::<delta::Part>::new());
        for act in acts {
            known(&mut catalog, &mut world, act);
            sotw.note_gone(&catalog);
            sotw.act(act, &catalog);
            delta.act(act, &catalog);
        }

        sotw.settle(&catalog);
        delta.settle(&catalog);

        sotw.check(&catalog);
        delta.check(&catalog);
        prop_assert_eq!(&sotw.wanted, &delta.wanted);
    }

    #[test]
    fn a_catalog_made_of_changes_is_that_of_a_snapshot(acts in acts()) {
        let (mut world, mut catalog) = (World::default(), Catalog::new(Balance::default()));
        known(&mut catalog, &mut world, Act::Snapshot);
        for act in acts {
            known(&mut catalog, &mut world, act);
        }
        let mut fresh = Catalog::new(Balance::default());
        known(&mut fresh, &mut world, Act::Snapshot);

        let all = |catalog: &Catalog| -> Vec<(String, Version)> {
            let pools = catalog.pools().map(str::to_owned).collect::<Vec<_>>();
            let version = |name: &str| catalog.get(Kind::Endpoints, name).unwrap().version;
            pools.iter().map(|name| (name.clone(), version(name))).collect()
        };
        prop_assert_eq!(all(&catalog), all(&fresh));
    }
}

fn world(acts: &[Act]) -> (World, Catalog) {
    let (mut world, mut catalog) = (World::default(), Catalog::new(Balance::default()));
    for act in [&[Act::Snapshot], acts].concat() {
        known(&mut catalog, &mut world, act);
    }
    (world, catalog)
}

fn sotw(kind: Kind, names: &[&str], nonce: &str) -> DiscoveryRequest {
    DiscoveryRequest {
        resource_names: names.iter().map(|name| (*name).to_owned()).collect(),
        type_url: kind.type_url().to_owned(),
        response_nonce: nonce.to_owned(),
        ..DiscoveryRequest::default()
    }
}

#[test]
fn what_a_client_refuses_is_not_told_again_before_it_changes() {
    let (mut world, mut catalog) = world(&[Act::Put(0, 0, 1)]);
    let mut stream = Sotw::new(None);
    stream
        .on_request(&sotw(Kind::Endpoints, &["a"], ""))
        .unwrap();
    let told = stream.next(&catalog).unwrap();
    let refusal = DiscoveryRequest {
        error_detail: Some(Status {
            code: 3,
            message: "no such thing".to_owned(),
        }),
        ..sotw(Kind::Endpoints, &["a"], &told.nonce)
    };

    let heard = stream.on_request(&refusal).unwrap();

    let why = "no such thing".to_owned();
    let kind = Kind::Endpoints;
    assert_eq!(heard, Heard::Refused { kind, why });
    assert_eq!(stream.next(&catalog), None);
    known(&mut catalog, &mut world, Act::Put(0, 0, 2));
    assert!(stream.next(&catalog).is_some());
}

/// The response that is under way brings it back, when it is gone by then.
#[test]
fn what_was_given_up_and_is_wanted_again_goes_when_it_is_gone() {
    let (mut world, mut catalog) = world(&[Act::AddPool(0)]);
    let mut stream = Sotw::new(None);
    let ask = |stream: &mut Sotw, names: &[&str], nonce: &str| {
        stream
            .on_request(&sotw(Kind::Listener, names, nonce))
            .unwrap();
    };
    ask(&mut stream, &["a"], "");
    let brings = stream.next(&catalog).unwrap();
    assert_eq!(brings.resources.len(), 1);

    ask(&mut stream, &[], "");
    ask(&mut stream, &["a"], "");
    known(&mut catalog, &mut world, Act::RemovePool(0));
    ask(&mut stream, &["a"], &brings.nonce);

    assert_eq!(stream.next(&catalog).unwrap().resources, []);
}

#[test]
fn an_answer_to_an_earlier_response_says_no_more_than_what_was_given_up() {
    let (_, catalog) = world(&[Act::Put(0, 0, 1), Act::Put(1, 0, 1)]);
    let mut stream = Sotw::new(None);
    stream
        .on_request(&sotw(Kind::Endpoints, &["a"], ""))
        .unwrap();
    let first = stream.next(&catalog).unwrap();
    let answer = sotw(Kind::Endpoints, &["a", "b"], &first.nonce);
    stream.on_request(&answer).unwrap();
    assert!(stream.next(&catalog).is_some());

    stream
        .on_request(&sotw(Kind::Endpoints, &["b"], &first.nonce))
        .unwrap();

    stream
        .on_request(&sotw(Kind::Endpoints, &["a", "b"], "2"))
        .unwrap();
    let anew = stream.next(&catalog).unwrap().resources;
    let names: Vec<_> = anew
        .iter()
        .map(|any| name_of(Kind::Endpoints, &any.value))
        .collect();
    assert_eq!(names, ["a"], "its client had let go of it");
}

#[test]
fn a_proxy_that_comes_back_to_another_discovery_is_not_told_the_clusters_it_has() {
    let acts = [Act::AddPool(0), Act::Put(1, 0, 1)];
    let (_, catalog) = world(&acts);
    let mut stream = Sotw::new(None);
    stream.on_request(&sotw(Kind::Cluster, &[], "")).unwrap();
    let told = stream.next(&catalog).unwrap();
    assert_eq!(told.resources.len(), 2);

    let (mut world, mut other) = world(&acts);
    let mut again = Sotw::new(None);
    let has = DiscoveryRequest {
        version_info: told.version_info,
        ..sotw(Kind::Cluster, &[], "")
    };
    again.on_request(&has).unwrap();

    assert_eq!(again.next(&other), None);
    known(&mut other, &mut world, Act::AddPool(2));
    assert_eq!(again.next(&other).unwrap().resources.len(), 3);
}

#[test]
fn one_that_wants_all_is_answered_though_there_is_nothing() {
    let (_, catalog) = world(&[]);
    for kind in [Kind::Cluster, Kind::Listener] {
        let mut whole = Sotw::new(None);
        whole.on_request(&sotw(kind, &[], "")).unwrap();
        assert_eq!(whole.next(&catalog).unwrap().resources, []);

        let mut delta = Delta::new(None);
        let request = DeltaDiscoveryRequest {
            type_url: kind.type_url().to_owned(),
            ..DeltaDiscoveryRequest::default()
        };
        delta.on_request(&request).unwrap();
        assert_eq!(delta.next(&catalog).unwrap().resources, []);
        assert_eq!(delta.next(&catalog), None);
    }
}

#[test]
fn a_proxy_that_wants_all_listeners_is_told_of_none() {
    let (_, catalog) = world(&[Act::AddPool(0)]);
    let mut stream = Sotw::new(None);

    stream.on_request(&sotw(Kind::Listener, &[], "")).unwrap();
    let told = stream.next(&catalog).unwrap();
    assert_eq!(told.resources, []);

    stream
        .on_request(&sotw(Kind::Listener, &["a"], &told.nonce))
        .unwrap();
    assert_eq!(stream.next(&catalog).unwrap().resources.len(), 1);
}

#[test]
fn the_increments_say_that_a_name_stands_for_nothing() {
    let (mut world, mut catalog) = world(&[]);
    let mut stream = Delta::new(None);
    let request = DeltaDiscoveryRequest {
        type_url: Kind::Listener.type_url().to_owned(),
        resource_names_subscribe: vec!["a".to_owned()],
        ..DeltaDiscoveryRequest::default()
    };
    stream.on_request(&request).unwrap();

    let told = stream.next(&catalog).unwrap();
    assert_eq!(told.removed_resources, ["a"]);
    let answer = DeltaDiscoveryRequest {
        type_url: told.type_url,
        response_nonce: told.nonce,
        ..DeltaDiscoveryRequest::default()
    };
    stream.on_request(&answer).unwrap();
    assert_eq!(stream.next(&catalog), None);

    known(&mut catalog, &mut world, Act::AddPool(0));
    assert_eq!(stream.next(&catalog).unwrap().resources[0].name, "a");
}

#[test]
fn a_stream_keeps_no_more_names_than_it_may() {
    let names: Vec<_> = (0..=NAMES_MAX).map(|name| name.to_string()).collect();
    let request = DiscoveryRequest {
        resource_names: names.clone(),
        type_url: Kind::Endpoints.type_url().to_owned(),
        ..DiscoveryRequest::default()
    };
    assert_eq!(Sotw::new(None).on_request(&request), Err(TooManyNames));

    let request = DeltaDiscoveryRequest {
        resource_names_subscribe: names,
        type_url: Kind::Endpoints.type_url().to_owned(),
        ..DeltaDiscoveryRequest::default()
    };
    assert_eq!(Delta::new(None).on_request(&request), Err(TooManyNames));
}

#[test]
fn a_kind_that_there_is_none_of_is_not_answered() {
    let (_, catalog) = world(&[Act::AddPool(0)]);
    let type_url = "type.googleapis.com/envoy.service.runtime.v3.Runtime".to_owned();
    let request = DiscoveryRequest {
        type_url: type_url.clone(),
        ..DiscoveryRequest::default()
    };
    let mut stream = Sotw::new(None);
    assert_eq!(stream.on_request(&request), Ok(Heard::Unknown { type_url }));
    assert_eq!(stream.next(&catalog), None);

    let mut clusters = Sotw::new(Some(Kind::Cluster));
    let request = DiscoveryRequest::default();
    assert_eq!(clusters.on_request(&request), Ok(Heard::Fine));
    assert_eq!(clusters.next(&catalog).unwrap().resources.len(), 1);
}

#[test]
fn a_pool_whose_sources_have_said_nothing_yet_is_not_told_to_be_empty() {
    let mut catalog = Catalog::new(Balance::default());
    let snapshot = WatchEndpointsResponse {
        snapshot: true,
        pools: vec!["a".to_owned()],
        unheard_pools: vec!["a".to_owned()],
        ..WatchEndpointsResponse::default()
    };
    let heard = WatchEndpointsResponse {
        heard_pools: vec!["a".to_owned()],
        ..WatchEndpointsResponse::default()
    };
    assert!(catalog.take(snapshot));
    let mut whole = Sotw::new(None);
    whole
        .on_request(&sotw(Kind::Endpoints, &["a"], ""))
        .unwrap();
    let mut delta = Delta::new(None);
    let request = DeltaDiscoveryRequest {
        type_url: Kind::Endpoints.type_url().to_owned(),
        resource_names_subscribe: vec!["a".to_owned()],
        initial_resource_versions: [("a".to_owned(), "1".to_owned())].into(),
        ..DeltaDiscoveryRequest::default()
    };
    delta.on_request(&request).unwrap();
    assert_eq!(whole.next(&catalog), None);
    assert_eq!(delta.next(&catalog), None);

    assert!(catalog.take(heard.clone()));

    assert_eq!(whole.next(&catalog).unwrap().resources.len(), 1);
    assert_eq!(delta.next(&catalog).unwrap().resources.len(), 1);
    assert!(!catalog.take(heard));
}
