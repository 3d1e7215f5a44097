//! One connection to systemd.

use std::{collections::HashMap, env, fmt, path::Path, str::FromStr, time::Duration};

use futures::{FutureExt as _, Stream, StreamExt as _};
use serde::de::DeserializeOwned;
use tokio::time::timeout;
use zbus::{
    Connection, MatchRule, Message, MessageStream, OwnedObjectPath, OwnedVariant, Type, Variant,
    message,
};

use crate::{Error, Limits, Scope, Transient, Unit};

const NAME: &str = "org.freedesktop.systemd1";
const PATH: &str = "/org/freedesktop/systemd1";
const MANAGER: &str = "org.freedesktop.systemd1.Manager";
const UNIT: &str = "org.freedesktop.systemd1.Unit";
const SERVICE: &str = "org.freedesktop.systemd1.Service";
const SCOPE: &str = "org.freedesktop.systemd1.Scope";
const PROPERTIES: &str = "org.freedesktop.DBus.Properties";

/// A manager that takes longer to answer one call is not there.
const ANSWERS_WITHIN: Duration = Duration::from_secs(10);

/// A unit that nobody has, to be asked about.
const NOBODYS: &str = "tether-may-it.service";

/// Whose manager.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bus {
    /// That of the system.
    System,
    /// That of this user.
    User,
}

impl Bus {
    /// The one that this user can be expected to manage.
    pub fn usual(is_root: bool) -> Self {
        if is_root { Self::System } else { Self::User }
    }

    /// Its word.
    pub const fn word(self) -> &'static str {
        match self {
            Self::System => "system",
            Self::User => "user",
        }
    }
}

impl fmt::Display for Bus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

impl FromStr for Bus {
    type Err = Error;

    fn from_str(word: &str) -> Result<Self, Error> {
        [Self::System, Self::User]
            .into_iter()
            .find(|bus| bus.word() == word)
            .ok_or_else(|| Error::Bus(word.to_owned()))
    }
}

/// One connection to systemd.
#[derive(Debug, Clone)]
pub struct Systemd {
    connection: Connection,
    bus: Bus,
}

/// Tells when one unit may stand otherwise.
#[derive(Debug)]
pub struct Watch<S = MessageStream> {
    signals: S,
    /// Whether one was taken that nobody has come back for yet.
    is_news: bool,
}

impl Systemd {
    /// Connects, and sees that systemd answers.
    ///
    /// # Errors
    /// When it does not.
    pub async fn connect(bus: Bus) -> Result<Self, Error> {
        let unreachable = |why: String| Error::Unreachable {
            bus,
            why,
            advice: match bus {
                Bus::System => {
                    "boot this machine with systemd and install dbus, or use launcher `exec`"
                }
                Bus::User => {
                    "start `systemd --user` with dbus-user-session (`loginctl enable-linger`) and set XDG_RUNTIME_DIR, or run the agent as root"
                }
            },
        };
        // Without systemd another program could be started under its name.
        if bus == Bus::System && !Path::new("/run/systemd/system").exists() {
            return Err(unreachable("it is not the first process here".to_owned()));
        }
        if bus == Bus::User && env::var_os("XDG_RUNTIME_DIR").is_none() {
            return Err(unreachable("XDG_RUNTIME_DIR is not set".to_owned()));
        }
        let connecting = async {
            let connection = match bus {
                Bus::System => Connection::system().await,
                Bus::User => Connection::session().await,
            };
            let systemd = Self {
                connection: connection.map_err(|error| unreachable(error.to_string()))?,
                bus,
            };
            // Signals of units are sent to those who asked for them.
            let subscribed = systemd.manage("Subscribe", &()).await;
            subscribed.map_err(|error| match error {
                Error::Silent { why } => unreachable(why),
                error => unreachable(error.to_string()),
            })?;
            Ok(systemd)
        };
        match timeout(ANSWERS_WITHIN, connecting).await {
            Ok(connected) => connected,
            Err(_) => Err(unreachable(format!("no answer within {ANSWERS_WITHIN:?}"))),
        }
    }

    /// Which bus.
    pub fn bus(&self) -> Bus {
        self.bus
    }

    /// Whether the connection is gone, as where the bus was restarted.
    pub fn is_closed(&self) -> bool {
        self.connection.is_closed()
    }

    /// Whether this user may start and stop units. Touches none.
    ///
    /// # Errors
    /// When it may not.
    pub async fn may_manage(&self) -> Result<(), Error> {
        match self.manage("ResetFailedUnit", &(NOBODYS,)).await {
            Ok(_) | Err(Error::NoUnit(_)) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Starts a service that is not there yet.
    ///
    /// # Errors
    /// When there is one of that name, or systemd refuses.
    pub async fn start_transient(&self, name: &str, unit: &Transient) -> Result<(), Error> {
        self.begin(name, unit.properties()).await
    }

    /// Makes a scope that is not there yet.
    ///
    /// # Errors
    /// When there is one of that name, or systemd refuses.
    pub async fn start_scope(&self, name: &str, scope: &Scope) -> Result<(), Error> {
        match self.begin(name, scope.sparing()).await {
            Err(Error::Refused { .. }) => self.begin(name, scope.properties()).await,
            begun => begun,
        }
    }

    /// The cgroup of a scope, as a path below where cgroups are mounted; none where it is not there.
    ///
    /// # Errors
    /// When systemd does not say.
    pub async fn cgroup_of_scope(&self, name: &str) -> Result<Option<String>, Error> {
        let found = match self.manage("GetUnit", &(name,)).await {
            Err(Error::NoUnit(_)) => return Ok(None),
            found => found?,
        };
        let path: OwnedObjectPath = read(&found)?;
        let property = (SCOPE, "ControlGroup");
        let said = self.call(&path, PROPERTIES, "Get", &property).await?;
        match &*read::<OwnedVariant>(&said)? {
            Variant::Str(cgroup) if !cgroup.is_empty() => Ok(Some(cgroup.as_str().to_owned())),
            _ => Ok(None),
        }
    }

    async fn begin(
        &self,
        name: &str,
        properties: Vec<(&'static str, Variant<'static>)>,
    ) -> Result<(), Error> {
        let auxiliary: Vec<(String, Vec<(String, Variant<'_>)>)> = Vec::new();
        let body = (name, "fail", properties, auxiliary);
        self.manage("StartTransientUnit", &body).await.map(drop)
    }

    /// Has a unit started that an administrator has written.
    ///
    /// # Errors
    /// When there is none, or systemd refuses.
    pub async fn start(&self, name: &str) -> Result<(), Error> {
        // Of one that is in a start limit nobody but us asks for a start.
        let _ = self.reset_failed(name).await;
        self.manage("StartUnit", &(name, "replace")).await.map(drop)
    }

    /// Has a unit stopped.
    ///
    /// # Errors
    /// When systemd refuses; one that is not there is stopped.
    pub async fn stop(&self, name: &str) -> Result<(), Error> {
        match self.manage("StopUnit", &(name, "replace")).await {
            Ok(_) | Err(Error::NoUnit(_)) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Has all processes of a unit killed.
    ///
    /// # Errors
    /// When systemd refuses; one that is not there has none.
    pub async fn kill(&self, name: &str) -> Result<(), Error> {
        const SIGKILL: i32 = 9;
        match self.manage("KillUnit", &(name, "all", SIGKILL)).await {
            Ok(_) | Err(Error::NoUnit(_)) => Ok(()),
            // Whoever has no process any more.
            Err(Error::Refused { why, .. }) if why.contains("No such process") => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Keeps what is known of a unit for as long as this connection is there, also when it does not run.
    ///
    /// # Errors
    /// When systemd refuses.
    pub async fn hold(&self, name: &str) -> Result<(), Error> {
        self.manage("RefUnit", &(name,)).await.map(drop)
    }

    /// Lets go of what [`Systemd::hold`] keeps.
    ///
    /// # Errors
    /// When nothing is kept.
    pub async fn let_go(&self, name: &str) -> Result<(), Error> {
        self.manage("UnrefUnit", &(name,)).await.map(drop)
    }

    /// Lets go of how a unit has failed; a transient one is gone with that.
    ///
    /// # Errors
    /// When systemd refuses.
    pub async fn reset_failed(&self, name: &str) -> Result<(), Error> {
        self.manage("ResetFailedUnit", &(name,)).await.map(drop)
    }

    /// Gives a unit other limits, until it is loaded anew.
    ///
    /// # Errors
    /// When systemd refuses.
    pub async fn limit(&self, name: &str, limits: Limits) -> Result<(), Error> {
        let properties = limits.properties();
        if properties.is_empty() {
            return Ok(());
        }
        let body = (name, true, properties);
        self.manage("SetUnitProperties", &body).await.map(drop)
    }

    /// The service of which a process is; none where it is of none.
    pub async fn service_of(&self, pid: u32) -> Option<String> {
        let found = self.manage("GetUnitByPID", &(pid,)).await.ok()?;
        let path: OwnedObjectPath = read(&found).ok()?;
        let (unit, _) = self.properties(&path).await.ok()?;
        match unit.get("Id").map(|id| &**id) {
            Some(Variant::Str(id)) if id.ends_with(".service") => Some(id.as_str().to_owned()),
            _ => None,
        }
    }

    /// How a unit stands.
    ///
    /// # Errors
    /// When systemd does not say.
    pub async fn unit(&self, name: &str) -> Result<Unit, Error> {
        let path = self.path(name).await?;
        let (unit, service) = self.properties(&path).await?;
        Ok(Unit::of(&unit, &service))
    }

    /// Tells from now on when that may be otherwise.
    ///
    /// # Errors
    /// When the bus does not take one more rule.
    pub async fn watch(&self, name: &str) -> Result<Watch, Error> {
        let path = self.path(name).await?;
        let rule = MatchRule::builder()
            .msg_type(message::Type::Signal)
            .sender(NAME)
            .path(path)
            .interface(PROPERTIES)
            .member("PropertiesChanged")
            .build()
            .map_err(|error| Error::of("AddMatch", &error))?;
        let stream = MessageStream::for_match_rule(rule, &self.connection, None);
        let signals = in_time("AddMatch", stream).await?;
        Ok(Watch {
            signals,
            is_news: false,
        })
    }

    async fn path(&self, name: &str) -> Result<OwnedObjectPath, Error> {
        read(&self.manage("LoadUnit", &(name,)).await?)
    }

    async fn properties(&self, path: &OwnedObjectPath) -> Result<(All, All), Error> {
        let all = |of: &'static str| async move {
            let body = (of,);
            read::<All>(&self.call(path, PROPERTIES, "GetAll", &body).await?)
        };
        Ok((all(UNIT).await?, all(SERVICE).await?))
    }

    async fn manage<B>(&self, method: &'static str, body: &B) -> Result<Message, Error>
    where
        B: serde::Serialize + Type + Sync,
    {
        self.call(PATH, MANAGER, method, body).await
    }

    async fn call<B>(
        &self,
        path: &str,
        interface: &'static str,
        method: &'static str,
        body: &B,
    ) -> Result<Message, Error>
    where
        B: serde::Serialize + Type + Sync,
    {
        let call = self
            .connection
            .call_method(Some(NAME), path, Some(interface), method, body);
        in_time(method, call).await
    }
}

/// What comes of a call, or that nothing does.
async fn in_time<T>(
    method: &'static str,
    call: impl Future<Output = zbus::Result<T>>,
) -> Result<T, Error> {
    match timeout(ANSWERS_WITHIN, call).await {
        Ok(answered) => answered.map_err(|error| Error::of(method, &error)),
        Err(_) => Err(Error::Silent {
            why: format!("{method}: no answer within {ANSWERS_WITHIN:?}"),
        }),
    }
}

type All = HashMap<String, OwnedVariant>;

impl<S: Stream<Item = zbus::Result<Message>> + Unpin> Watch<S> {
    /// Waits until the unit may stand otherwise; tells whether it was just then being stopped because somebody asked for
    /// that, which is over by the time that anybody looks. Cancel-safe.
    pub async fn changed(&mut self) -> bool {
        if std::mem::take(&mut self.is_news) {
            return false;
        }
        match self.signals.next().await {
            Some(Ok(signal)) => is_of_a_stop(&signal),
            Some(Err(_)) => false,
            None => {
                // The connection is gone; whoever looks is told.
                tokio::time::sleep(Duration::from_millis(200)).await;
                false
            }
        }
    }

    /// Whether that was so in any of the changes that were told already. They may be later than what was seen of the unit
    /// before this was asked, so [`Watch::changed`] comes back for them yet.
    pub fn was_stopped(&mut self) -> bool {
        let mut stopped = false;
        while let Some(Some(signal)) = self.signals.next().now_or_never() {
            stopped |= signal.is_ok_and(|signal| is_of_a_stop(&signal));
            self.is_news = true;
        }
        stopped
    }
}

fn is_of_a_stop(signal: &Message) -> bool {
    let body = signal.body();
    let Ok((_, changed, _)) = body.deserialize::<(String, All, Vec<String>)>() else {
        return false;
    };
    Unit::of(&changed, &All::new()).is_being_stopped()
}

fn read<T: DeserializeOwned + Type>(reply: &Message) -> Result<T, Error> {
    reply
        .body()
        .deserialize()
        .map_err(|error| Error::of("reply", &error))
}

#[cfg(test)]
mod tests {
    use futures::stream;

    use super::*;

    fn signal() -> zbus::Result<Message> {
        let none: Vec<String> = Vec::new();
        let body = (UNIT, HashMap::<String, OwnedVariant>::new(), none);
        Message::signal(PATH, PROPERTIES, "PropertiesChanged").build(&body)
    }

    #[tokio::test]
    async fn what_came_while_somebody_looked_is_looked_at_again() {
        let signals = stream::iter([signal(), signal()]).chain(stream::pending());
        let mut watch = Watch {
            signals,
            is_news: false,
        };

        assert!(!watch.was_stopped());

        assert_eq!(watch.changed().now_or_never(), Some(false));
        assert_eq!(watch.changed().now_or_never(), None, "nothing since");
    }
}
