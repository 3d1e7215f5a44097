//! The kinds of resources.

/// A kind of resource that is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// CDS: how a pool is spoken to.
    Cluster,
    /// EDS: the endpoints of a pool.
    Endpoints,
    /// LDS: what `xds:///POOL` stands for.
    Listener,
    /// RDS: where calls go.
    Route,
}

impl Kind {
    /// All of them, in the order in which they are told (X4).
    pub const ALL: [Self; 4] = [Self::Cluster, Self::Endpoints, Self::Listener, Self::Route];

    /// What names it on the wire.
    pub const fn type_url(self) -> &'static str {
        match self {
            Self::Cluster => "type.googleapis.com/envoy.config.cluster.v3.Cluster",
            Self::Endpoints => "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment",
            Self::Listener => "type.googleapis.com/envoy.config.listener.v3.Listener",
            Self::Route => "type.googleapis.com/envoy.config.route.v3.RouteConfiguration",
        }
    }

    /// The kind of this name, if it is one that is told.
    pub fn of(type_url: &str) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|kind| kind.type_url() == type_url)
    }

    pub(crate) const fn index(self) -> usize {
        self as usize
    }

    /// Whether a response of the state of the world names all that there is, so that what it leaves out is gone.
    pub const fn is_whole(self) -> bool {
        matches!(self, Self::Cluster | Self::Listener)
    }

    /// Whether a client that names nothing at first wants all.
    pub(crate) const fn has_wildcard(self) -> bool {
        self.is_whole()
    }

    /// Whether all of them are told to who wants all. A listener is for the gRPC client that names it; a proxy, which
    /// asks for all, listens where its own configuration says, and can do nothing with it.
    pub const fn is_for_all(self) -> bool {
        !matches!(self, Self::Listener)
    }
}
