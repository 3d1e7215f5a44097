//! A wire to a member that can be cut in one direction.

use std::{net::SocketAddr, sync::Arc};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::watch,
    task::JoinSet,
};

/// What gets through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flow {
    /// Everything.
    Both,
    /// What the client says. What the member answers is lost.
    OnlyUp,
    /// What the member says. What the client asks is lost.
    OnlyDown,
}

impl Flow {
    fn up(self) -> bool {
        self != Self::OnlyDown
    }

    fn down(self) -> bool {
        self != Self::OnlyUp
    }
}

/// A TCP proxy in front of one member. Cutting loses bytes and closes nothing, as a network does that
/// drops packets; what was lost is not sent again, so a connection that was cut stays useless.
#[derive(Debug)]
pub struct Wire {
    address: SocketAddr,
    flow: Arc<watch::Sender<Flow>>,
    _tasks: JoinSet<()>,
}

impl Wire {
    /// A wire to the member that listens at `to`.
    ///
    /// # Panics
    /// When it cannot listen.
    pub async fn to(to: String) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("it listens");
        let address = listener.local_addr().expect("it has an address");
        let flow = Arc::new(watch::Sender::new(Flow::Both));
        let mut tasks = JoinSet::new();
        let flows = Arc::clone(&flow);
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((client, _)) = listener.accept().await {
                let Ok(member) = TcpStream::connect(&to).await else {
                    continue;
                };
                let (from_client, to_client) = client.into_split();
                let (from_member, to_member) = member.into_split();
                connections.spawn(carry(from_client, to_member, flows.subscribe(), Flow::up));
                connections.spawn(carry(from_member, to_client, flows.subscribe(), Flow::down));
            }
        });
        Self {
            address,
            flow,
            _tasks: tasks,
        }
    }

    /// Where clients find the member, as `host:port`.
    pub fn address(&self) -> String {
        self.address.to_string()
    }

    /// Says what gets through from here on.
    pub fn set(&self, flow: Flow) {
        self.flow.send_replace(flow);
    }
}

/// Carries bytes one way, once one of them was lost never again.
async fn carry(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    flow: watch::Receiver<Flow>,
    passes: fn(Flow) -> bool,
) {
    let mut bytes = vec![0; 64 * 1024];
    let mut whole = true;
    while let Ok(count @ 1..) = from.read(&mut bytes).await {
        whole &= passes(*flow.borrow());
        if whole && to.write_all(&bytes[..count]).await.is_err() {
            return;
        }
    }
}
