//! A proxy between two unix sockets that can fall silent, as a network does that is cut: nothing is refused, and
//! nothing arrives.

use std::path::Path;

use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::{UnixListener, UnixStream},
    sync::watch,
    task::JoinHandle,
};

/// What is taken off a socket at a time.
const PIECE: usize = 16 << 10;

/// One cable. It ends with this.
#[derive(Debug)]
pub struct Cable {
    cut: watch::Sender<bool>,
    serving: JoinHandle<()>,
}

impl Cable {
    /// Listens at `from`, and passes on to `to`.
    ///
    /// # Panics
    /// When it cannot listen.
    pub fn start(from: &Path, to: &Path) -> Self {
        let listener = UnixListener::bind(from).expect("the directory can be written");
        let (cut, is_cut) = watch::channel(false);
        let to = to.to_owned();
        let serving = tokio::spawn(async move {
            // Connections end with the proxy, whatever they wait for.
            let mut open = tokio::task::JoinSet::new();
            while let Ok((near, _)) = listener.accept().await {
                let (to, is_cut) = (to.clone(), is_cut.clone());
                open.spawn(async move {
                    let _ = pass(near, &to, is_cut).await;
                });
            }
        });
        Self { cut, serving }
    }

    /// Nothing passes from here on.
    pub fn cut(&self) {
        self.cut.send_replace(true);
    }

    /// All passes again.
    pub fn heal(&self) {
        self.cut.send_replace(false);
    }
}

impl Drop for Cable {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

async fn pass(near: UnixStream, to: &Path, is_cut: watch::Receiver<bool>) -> std::io::Result<()> {
    uncut(&mut is_cut.clone()).await;
    let far = UnixStream::connect(to).await?;
    let (near_read, near_write) = near.into_split();
    let (far_read, far_write) = far.into_split();
    tokio::select! {
        ended = copy(near_read, far_write, is_cut.clone()) => ended,
        ended = copy(far_read, near_write, is_cut) => ended,
    }
}

async fn copy(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    mut is_cut: watch::Receiver<bool>,
) -> std::io::Result<()> {
    let mut piece = vec![0; PIECE];
    loop {
        let read = from.read(&mut piece).await?;
        uncut(&mut is_cut).await;
        if read == 0 {
            return Ok(());
        }
        to.write_all(&piece[..read]).await?;
    }
}

async fn uncut(is_cut: &mut watch::Receiver<bool>) {
    // Fails only when the proxy is gone, and then all of this ends.
    let _ = is_cut.wait_for(|cut| !cut).await;
}
