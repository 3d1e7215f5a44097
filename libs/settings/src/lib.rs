//! What several programs of Tether read from one configuration: where services listen and are found,
//! templates and pools as people write them, and the frame of a service's `main`.

mod net;
mod pool;
mod service;
mod template;

pub use net::{Connect, Listen, Place, Whereabouts};
pub use pool::{Policy, Pool, PoolFile};
pub use service::{Ignored, service};
pub use template::{
    Listen as WorkerListen, Readiness, ReadinessKind, Restart, RestartMode, Stop, Template,
    Templates, named,
};
