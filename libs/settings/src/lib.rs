//! What several programs of Tether read from one configuration: where services listen and are found,
//! templates and pools as people write them, and the frame of a service's `main`.

mod admin;
pub mod check;
mod forked;
mod health;
mod metrics;
mod net;
mod parent;
mod placement;
mod pool;
mod process;
mod service;
pub mod signals;
mod state;
mod supervised;
mod surroundings;
mod template;

pub use admin::Admin;
pub use check::{At, Check, Wrong};
pub use forked::{FORKSERVER_POOL, ForkedFrom, wrong_with_fork};
pub use metrics::Metrics;
pub use net::{Connect, Listen, Place, Whereabouts, bind_set, check_whereabouts};
pub use parent::ParentFlag;
pub use placement::{OnChange, Placement, Preference, Rollout};
pub use pool::{Policy, Pool, PoolFile};
pub use process::{
    Bound, Limits, Liveness, Mask, Process, Recycle, ResourceLimit, Socket, Unlimited,
};
pub use service::{Ignored, command, service, warn};
pub use state::state_dir;
pub use supervised::{Supervised, in_common, places, service_of, wrong_with_service};
pub use surroundings::{Look, surroundings};
pub use template::{
    Listen as WorkerListen, Readiness, ReadinessKind, Restart, RestartMode, Stop, Template,
    Templates, check_templates, named,
};
