//! The Rust client of the gateway: typed control calls, and owner sessions and registrations that keep their leases
//! alive by themselves.
//!
//! ```no_run
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! use tether_client::{Client, SessionOptions};
//!
//! let client = Client::connect(&"unix:/run/tether/gateway.sock".parse()?);
//! let session = client.open_session("checkout@host-1".parse()?, SessionOptions::default()).await?;
//! println!("epoch {}", session.epoch());
//! session.close().await?;
//! # Ok(())
//! # }
//! ```

mod keepalive;
mod kept;
mod problem;
mod registration;
mod session;
mod standing;

use tether_proto::{
    discovery::discovery_service_client::DiscoveryServiceClient,
    job::job_service_client::JobServiceClient, pool::pool_service_client::PoolServiceClient,
    registry::registry_service_client::RegistryServiceClient,
    session::session_service_client::SessionServiceClient,
    worker::worker_service_client::WorkerServiceClient,
};
use tether_types::{Address, OwnerName};
use tonic::transport::Channel;

pub use kept::Lost;
pub use problem::Problem;
pub use registration::{Registrant, Registration};
pub use session::{Session, SessionOptions};
pub use standing::Acting;
pub use tether_lease::{Holder, Standing};
pub use tether_proto::registry::Condition;

/// A connection to one gateway; cheap to clone.
#[derive(Debug, Clone)]
pub struct Client {
    channel: Channel,
}

impl Client {
    /// A client of the gateway at `address`. Connects with the first call, and again when needed.
    pub fn connect(address: &Address) -> Self {
        Self {
            channel: tether_kit::channel::connect(address),
        }
    }

    /// A client over a channel that finds its gateway by itself.
    pub fn over(channel: Channel) -> Self {
        Self { channel }
    }

    /// The channel, for calls to workers: set the metadata `tether-pool` on each. Calls in the name of a
    /// session go over [`Session::channel`].
    pub fn channel(&self) -> Channel {
        self.channel.clone()
    }

    /// Opens a session for `owner` and keeps it alive until it is closed, dropped or lost.
    ///
    /// # Errors
    /// As the arbiter or the gateway says.
    pub async fn open_session(
        &self,
        owner: OwnerName,
        options: SessionOptions,
    ) -> Result<Session, Problem> {
        Session::open(self.clone(), owner, options).await
    }

    /// Registers a worker that no agent runs, and keeps it registered until that is closed, dropped or lost.
    ///
    /// # Errors
    /// As the arbiter or the gateway says.
    pub async fn register(
        &self,
        registrant: Registrant,
        condition: Condition,
    ) -> Result<Registration, Problem> {
        Registration::open(self.clone(), registrant, condition).await
    }

    /// Owner sessions.
    pub fn sessions(&self) -> SessionServiceClient<Channel> {
        SessionServiceClient::new(self.channel())
    }

    /// Pools.
    pub fn pools(&self) -> PoolServiceClient<Channel> {
        PoolServiceClient::new(self.channel())
    }

    /// Workers, logs and events.
    pub fn workers(&self) -> WorkerServiceClient<Channel> {
        WorkerServiceClient::new(self.channel())
    }

    /// Who serves which pool, as gateways hear it.
    pub fn discovery(&self) -> DiscoveryServiceClient<Channel> {
        // A snapshot is as large as what there is to tell.
        DiscoveryServiceClient::new(self.channel()).max_decoding_message_size(usize::MAX)
    }

    /// Registrations.
    pub fn registrations(&self) -> RegistryServiceClient<Channel> {
        RegistryServiceClient::new(self.channel())
    }

    /// Jobs.
    pub fn jobs(&self) -> JobServiceClient<Channel> {
        // A list is as long as there are jobs.
        JobServiceClient::new(self.channel()).max_decoding_message_size(usize::MAX)
    }
}
