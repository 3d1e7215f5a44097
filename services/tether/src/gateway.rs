//! `tether gateway`: orders to one gateway, and what it does with calls.

mod calls;
mod limits;
mod routes;

use std::time::Duration;

use tether_client::{Client, Problem};
use tether_gateway::control_of;
use tether_proto::{
    common::WorkerRef,
    gateway::{
        DrainRequest, DrainScope, EjectRequest, Order, PinRequest, RestoreRequest, UndrainRequest,
        UnpinRequest, control_service_client::ControlServiceClient, drain_scope,
    },
};
use tether_settings::{Connect, Listen, Place, Whereabouts};
use tether_types::Address;
use tonic::transport::Channel;

use crate::{
    cli::gateway::{Command, Drain, Gateway, Whom, Why},
    output::{Output, worker_name},
};

/// The gateway's control.
type Control = ControlServiceClient<Channel>;

pub(crate) async fn gateway(
    calls: Option<&str>,
    args: Gateway,
    out: &Output,
) -> anyhow::Result<()> {
    let address = find(calls, args.control.as_deref())?;
    let channel = Client::connect(&address).channel();
    // What it tells is as large as what there is to tell.
    let mut control = Control::new(channel).max_decoding_message_size(usize::MAX);
    match args.command {
        Command::Routes(args) => routes::routes(control, args, out).await,
        Command::Orders => routes::orders(control, out).await,
        Command::Explain(args) => calls::explain(control, args, out).await,
        Command::Tail(args) => calls::tail(control, args, out).await,
        Command::Limits(args) => limits::limits(control, args, out).await,
        Command::Drain(args) => drain(control, args, out).await,
        Command::Undrain(args) => {
            let request = UndrainRequest {
                order: order(&args.why),
                scope: Some(scope(&args.whom)),
            };
            let answer = control.undrain(request).await.map_err(Problem::from)?;
            say_where_nothing_was(answer.into_inner().was, "it was not drained by order", out);
            Ok(())
        }
        Command::Eject(args) => {
            let request = EjectRequest {
                order: order(&args.why),
                worker: Some(WorkerRef::from(&args.worker)),
                ttl_ms: millis(args.ttl),
            };
            let answer = control.eject(request).await.map_err(Problem::from)?;
            let answer = answer.into_inner();
            let (worker, ready) = (worker_name(answer.worker.as_ref()), answer.ready);
            out.note(&format!(
                "`{worker}` is left alone for {:?}; {ready} other workers of its pool take calls",
                args.ttl
            ));
            Ok(())
        }
        Command::Restore(args) => {
            let request = RestoreRequest {
                order: order(&args.why),
                worker: Some(WorkerRef::from(&args.worker)),
            };
            let answer = control.restore(request).await.map_err(Problem::from)?;
            say_where_nothing_was(answer.into_inner().was, "it was not left alone", out);
            Ok(())
        }
        Command::Pin(args) => {
            let request = PinRequest {
                order: order(&args.why),
                key: args.key,
                worker: Some(WorkerRef::from(&args.worker)),
            };
            let answer = control.pin(request).await.map_err(Problem::from)?;
            let worker = worker_name(answer.into_inner().worker.as_ref());
            out.note(&format!(
                "calls of this key go to `{worker}` while it lives"
            ));
            Ok(())
        }
        Command::Unpin(args) => {
            let request = UnpinRequest {
                order: order(&args.why),
                pool: args.pool,
                key: args.key,
            };
            let answer = control.unpin(request).await.map_err(Problem::from)?;
            say_where_nothing_was(answer.into_inner().was, "it was not pinned", out);
            Ok(())
        }
    }
}

/// Where the gateway takes orders.
fn find(calls: Option<&str>, control: Option<&str>) -> anyhow::Result<Address> {
    if let Some(text) = control {
        return Ok(text.parse()?);
    }
    let calls = match calls {
        Some(text) => vec![text.parse()?],
        None => {
            Whereabouts::new(&Listen::default(), &Connect::default())?.listens(Place::Gateway)?
        }
    };
    control_of(&calls).ok_or_else(|| {
        anyhow::anyhow!(
            "nothing says where the gateway takes orders: give its `gateway.control.listen` with `--control`, or its unix socket with `--gateway`"
        )
    })
}

async fn drain(mut control: Control, args: Drain, out: &Output) -> anyhow::Result<()> {
    let request = DrainRequest {
        order: order(&args.why),
        scope: Some(scope(&args.whom)),
        wait_ms: millis(args.wait),
    };
    let words = control.drain(request).await.map_err(Problem::from)?;
    let mut words = words.into_inner();
    while let Some(word) = words.message().await.map_err(Problem::from)? {
        let (workers, calls) = (word.workers, word.under_way);
        match (word.done, word.undone) {
            (false, _) => out.note(&format!("calls under way: {calls}, workers: {workers}")),
            (true, false) if calls == 0 => {
                out.note(&format!(
                    "drained, no call is under way, workers: {workers}"
                ));
                return Ok(());
            }
            (true, true) => anyhow::bail!("somebody has undone it meanwhile"),
            (true, false) if args.wait.is_zero() => {
                out.note(&format!("calls under way: {calls}, workers: {workers}"));
                return Ok(());
            }
            (true, false) => anyhow::bail!(
                "{calls} calls are still under way after {:?}, and go on; the order stays: give it again to wait for longer, or undo it with `tether gateway undrain`",
                args.wait
            ),
        }
    }
    anyhow::bail!("the gateway ended before the calls did")
}

fn order(why: &Why) -> Option<Order> {
    Some(Order {
        request_id: tether_kit::process::fresh_word(),
        reason: why.reason.clone(),
    })
}

fn scope(whom: &Whom) -> DrainScope {
    let worker = whom.worker.as_ref().map(WorkerRef::from);
    let worker = worker.map(drain_scope::Scope::Worker);
    let node = whom.node.clone().map(drain_scope::Scope::Node);
    let pool = whom.pool.clone().map(drain_scope::Scope::Pool);
    DrainScope {
        scope: worker.or(node).or(pool),
    }
}

fn say_where_nothing_was(was: bool, text: &str, out: &Output) {
    if !was {
        out.note(text);
    }
}

fn millis(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}
