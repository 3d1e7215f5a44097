//! Control operations: made of terms, sent as calls, told as terms.

use std::{
    sync::{Arc, LazyLock},
    time::Duration,
};

use bytes::Bytes;
use prost::Message as _;
use prost_reflect::{DescriptorPool, DynamicMessage, MethodDescriptor, Value};
use tether_port::{Fields, Id, Meaningless, Term};
use tether_proto::pool::ApplyPoolRequest;
use tether_settings::signals;
use tokio::{
    sync::Semaphore,
    time::{sleep, timeout},
};

use super::{
    calls::{Calls, Progress, take},
    exchange::{self, Begun, Head},
    failure::{Failed, Outcome},
    ops::{self, Op, Told},
    transcode, tree,
};
use crate::run::may_pass;

/// How long an operation may take, where it does not say.
const TIMEOUT: Duration = Duration::from_secs(30);

/// Before a stream that broke is asked for again.
const PAUSE: Duration = Duration::from_millis(50);

/// Who tells how something is does so every 10 s: where nothing comes for so long, it or the way to it is gone.
const SILENCE: Duration = Duration::from_secs(30);

/// What our services say, as their schemas describe it.
static SCHEMAS: LazyLock<DescriptorPool> =
    LazyLock::new(|| DescriptorPool::decode(tether_proto::DESCRIPTORS).unwrap_or_default());

/// An operation with what it is to be done with.
struct Order {
    op: &'static Op,
    method: MethodDescriptor,
    message: DynamicMessage,
    timeout: Option<Duration>,
    /// Items that may be told before there is credit for more; none where they are told as they come.
    window: Option<usize>,
    /// Of how something is, what was told last.
    last: Option<Bytes>,
}

impl Calls {
    /// Something of a control service.
    pub(crate) fn control(&self, id: Id, name: &str, args: Term) {
        let progress = Progress::default();
        match name {
            "doctor" => return self.begin(id, progress, super::doctor::doctor(args)),
            "ping" => return self.begin(id, progress, async { Ok(Term::Map(Vec::new())) }),
            _ => {}
        }
        match Order::read(name, args) {
            Err(why) => self.refuse(id, Failed::meaningless(&why)),
            Ok(order) => {
                let (calls, told) = (self.clone(), progress.clone());
                let credit = Arc::new(Semaphore::new(order.window.unwrap_or_default()));
                let given = Arc::clone(&credit);
                self.start(id, None, credit, progress, async move {
                    calls.obey(id, order, &given, &told).await
                });
            }
        }
    }

    async fn obey(
        &self,
        id: Id,
        order: Order,
        credit: &Semaphore,
        progress: &Progress,
    ) -> Result<Term, Failed> {
        match order.op.told {
            Told::Whole | Told::Field(_) => {
                let head = order.head(order.timeout.or(Some(TIMEOUT)));
                let work = async {
                    let message = self.message(&order).await?;
                    exchange::unary(&self.link, &head, &message, progress).await
                };
                let answered = exchange::in_time(head.deadline(), work, progress).await;
                let (_, answer, _) = answered.map_err(Failed::of_operation)?;
                order.answer(answer).map(|answer| order.told(&answer))
            }
            Told::Items | Told::State | Told::Followed(_) => {
                let head = order.head(order.timeout);
                let work = self.follow(id, order, credit, progress);
                exchange::in_time(head.deadline(), work, progress).await
            }
        }
    }

    /// The request, in the name of the session where it is to say that.
    async fn message(&self, order: &Order) -> Result<Bytes, Failed> {
        let mut message = order.message.clone();
        let input = order.method.input();
        let whose = input
            .get_field_by_name("owner")
            .zip(input.get_field_by_name("epoch"));
        if let Some((owner, epoch)) = whose {
            let (name, number) = self.owner.epoch().await?;
            message.set_field(&owner, Value::String(name.to_owned()));
            message.set_field(&epoch, Value::U64(number));
        }
        Ok(message.encode_to_vec().into())
    }

    async fn follow(
        &self,
        id: Id,
        mut order: Order,
        credit: &Semaphore,
        progress: &Progress,
    ) -> Result<Term, Failed> {
        loop {
            let goes_on = order.goes_on();
            match self.items(id, &mut order, credit, progress).await {
                Ok(()) if !goes_on => return Ok(Term::Map(Vec::new())),
                Ok(()) => {}
                Err(failed) if goes_on && may_pass(failed.reason(), failed.code()) => {}
                Err(failed) => return Err(failed),
            }
            sleep(PAUSE).await;
        }
    }

    /// Tells items until the stream of them ends. Asked again, it goes on after the last one.
    async fn items(
        &self,
        id: Id,
        order: &mut Order,
        credit: &Semaphore,
        progress: &Progress,
    ) -> Result<(), Failed> {
        let head = order.head(None);
        let message = self.message(order).await?;
        let begun = exchange::send_whole(&self.link, &head, &message, progress).await;
        let mut begun = begun.map_err(Failed::of_operation)?;
        while let Some(item) = order.next(&mut begun).await? {
            let item = order.answer(item)?;
            if order.window.is_some() {
                take(credit).await?;
            }
            self.out.tell("item", id, order.told(&item)).await;
            order.go_on_after(&item);
        }
        begun.end().map(drop)
    }
}

impl Order {
    fn read(name: &str, args: Term) -> Result<Self, Meaningless> {
        let op = Op::find(name).ok_or_else(|| {
            let known: Vec<_> = ops::ALL.iter().map(|op| op.name).collect();
            let known = known.join(", ");
            Meaningless(format!(
                "there is no operation `{name}`: expected one of {known}, doctor, ping"
            ))
        })?;
        let method = SCHEMAS
            .get_service_by_name(op.service)
            .and_then(|service| service.methods().find(|method| method.name() == op.method))
            .ok_or_else(|| Meaningless(format!("`{name}` is not in the schemas")))?;
        let args = if args.is_nil() {
            Term::Map(Vec::new())
        } else {
            args
        };
        let mut fields = Fields::new("an operation's arguments", args)?;
        let timeout = fields.get("timeout")?;
        let window = fields.get::<u64>("window")?.map(|window| {
            let window = usize::try_from(window).unwrap_or(usize::MAX);
            window.min(Semaphore::MAX_PERMITS)
        });
        if op.name == "pool_apply" {
            let message = apply(&method, &mut fields)?;
            fields.end()?;
            return Ok(Self {
                op,
                method,
                message,
                timeout,
                window,
                last: None,
            });
        }
        let entries = fields.rest().into_iter().map(|(key, value)| {
            let renamed = op.renamed.iter().find(|(known, _)| *known == key);
            let value = match (key.as_str(), value.as_text()) {
                ("signal", Some(text)) => signal(text)?,
                _ => value,
            };
            Ok((renamed.map_or(key, |(_, field)| (*field).to_owned()), value))
        });
        let entries = entries.collect::<Result<_, Meaningless>>()?;
        let message = transcode::to_message(&method.input(), entries)?;
        Ok(Self {
            op,
            method,
            message,
            timeout,
            window,
            last: None,
        })
    }

    fn head(&self, timeout: Option<Duration>) -> Head {
        let path = format!("/{}/{}", self.op.service, self.op.method);
        Head::new(&path, timeout)
    }

    /// Whether it is asked for again where its stream ends.
    fn goes_on(&self) -> bool {
        let follow = self.message.get_field_by_name("follow");
        match self.op.told {
            Told::Whole | Told::Field(_) | Told::Items => false,
            Told::State => true,
            Told::Followed(_) => follow.is_some_and(|follow| follow.as_bool() == Some(true)),
        }
    }

    /// The next item that is to be told.
    async fn next(&mut self, begun: &mut Begun) -> Result<Option<Bytes>, Failed> {
        if self.op.told != Told::State {
            return begun.next().await;
        }
        loop {
            let item = timeout(SILENCE, begun.next()).await.unwrap_or_else(|_| {
                let text = "nothing is heard of it any more";
                Err(Failed::broken(text.to_owned(), Outcome::Failed))
            })?;
            if item.is_none() || item != self.last {
                self.last.clone_from(&item);
                return Ok(item);
            }
        }
    }

    /// Asked again, it is told what came after this.
    fn go_on_after(&mut self, item: &DynamicMessage) {
        if let Told::Followed(field) = self.op.told
            && let Some(told) = item.get_field_by_name(field)
            && let Some(revision) = told
                .as_message()
                .and_then(|told| told.get_field_by_name("revision"))
        {
            self.message
                .set_field_by_name("after_revision", revision.into_owned());
        }
    }

    fn answer(&self, bytes: Bytes) -> Result<DynamicMessage, Failed> {
        DynamicMessage::decode(self.method.output(), bytes)
            .map_err(|error| Failed::internal(format!("the answer cannot be read: {error}")))
    }

    fn told(&self, answer: &DynamicMessage) -> Term {
        match self.op.told {
            Told::Whole | Told::Items | Told::State => transcode::to_term(answer),
            Told::Field(field) | Told::Followed(field) => transcode::field(answer, field),
        }
    }
}

/// What applies a pool.
fn apply(method: &MethodDescriptor, fields: &mut Fields) -> Result<DynamicMessage, Meaningless> {
    let name: String = fields.need("pool")?;
    let spec = tree::pool(&name, fields.need("spec")?)?;
    let mut message = DynamicMessage::new(method.input());
    let request = ApplyPoolRequest {
        pool: Some(spec),
        ..ApplyPoolRequest::default()
    };
    message
        .merge(request.encode_to_vec().as_slice())
        .map_err(|error| Meaningless(error.to_string()))?;
    Ok(message)
}

fn signal(text: &str) -> Result<Term, Meaningless> {
    signals::number(text)
        .map(Term::from)
        .map_err(|error| Meaningless(format!("{error:#}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_operation_is_in_the_schemas_with_what_is_told_of_it() {
        for op in ops::ALL {
            let service = SCHEMAS.get_service_by_name(op.service).unwrap();
            let method = service.methods().find(|method| method.name() == op.method);
            let output = method.unwrap_or_else(|| panic!("{}", op.name)).output();
            if let Told::Field(field) | Told::Followed(field) = op.told {
                assert!(output.get_field_by_name(field).is_some(), "{}", op.name);
            }
        }
    }

    #[test]
    fn what_means_nothing_is_refused_before_anybody_is_asked() {
        let read = |name: &str, key: &str, value: Term| {
            let args = Term::Map(vec![(key.into(), value)]);
            Order::read(name, args).map_err(|why| why.to_string())
        };

        assert!(read("worker_stop", "grace", Term::from(5_u32)).is_ok());
        assert!(read("worker_signal", "signal", "TERM".into()).is_ok());
        for (name, key, value, said) in [
            ("pool_sclae", "name", "p".into(), "pool_scale"),
            ("pool_scale", "sizes", Term::from(1_u32), "`sizes`"),
            ("pool_scale", "size", "many".into(), "`size` is a binary"),
            (
                "worker_get",
                "worker",
                "p/0".into(),
                "`{pool, slot, incarnation}`",
            ),
            ("worker_signal", "signal", "NONE".into(), "NONE"),
            ("pool_apply", "pool", "p".into(), "has no `spec`"),
        ] {
            let refused = read(name, key, value).err().unwrap_or_default();
            assert!(refused.contains(said), "{name}: {refused}");
        }
    }
}
