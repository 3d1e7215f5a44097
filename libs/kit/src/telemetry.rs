//! Logs on standard error, traces to an OpenTelemetry collector where one is set, and a history for
//! `tether lease-check` where one is wanted.

use std::{
    env,
    io::{self, IsTerminal as _},
    path::{Path, PathBuf},
};

use tether_clock::BootClock;
use tracing_subscriber::{
    EnvFilter, Layer as _, layer::SubscriberExt as _, util::SubscriberInitExt as _,
};

/// What is told where nothing is asked for: the library that answers DNS tells of every question.
const FILTER: &str = "info,hickory_server=warn";

/// What is told, how and to whom.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// One JSON object per line rather than text for people.
    pub json: bool,
    /// Directives such as `info,tether_gateway=debug`.
    pub filter: String,
    /// The collector's gRPC endpoint; `None` sends no traces.
    pub collector: Option<String>,
    /// The directory to write a history of leases and workers to; `None` writes none.
    pub history: Option<PathBuf>,
}

impl Settings {
    /// Reads `TETHER_LOG_FORMAT`, `TETHER_LOG`, `OTEL_EXPORTER_OTLP_ENDPOINT` and `TETHER_HISTORY`.
    pub fn from_env() -> Self {
        let set = |name| env::var(name).ok().filter(|value| !value.is_empty());
        Self {
            json: set("TETHER_LOG_FORMAT").is_some_and(|format| format == "json"),
            filter: set("TETHER_LOG").unwrap_or_else(|| FILTER.to_owned()),
            collector: set("OTEL_EXPORTER_OTLP_ENDPOINT"),
            history: set("TETHER_HISTORY").map(PathBuf::from),
        }
    }
}

/// Why telemetry cannot start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The filter is not one.
    #[error(
        "`TETHER_LOG={filter}` is not a filter, expected for example `info,tether_gateway=debug`"
    )]
    Filter {
        /// The filter as given.
        filter: String,
        /// What is wrong with it.
        source: tracing_subscriber::filter::ParseError,
    },
    /// The collector's address is not one.
    #[error(
        "cannot send traces to `{collector}`; check `OTEL_EXPORTER_OTLP_ENDPOINT`, expected for example `http://127.0.0.1:4317`"
    )]
    Collector {
        /// The address as given.
        collector: String,
        /// What is wrong with it.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The history cannot be written.
    #[error(
        "cannot write a history to `{}`; check `TETHER_HISTORY`, expected a directory that may be written", dir.display()
    )]
    History {
        /// The directory as given.
        dir: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Somebody else in this process already collects.
    #[error("telemetry was started before")]
    Twice(#[from] tracing_subscriber::util::TryInitError),
}

/// Keeps telemetry going; call [`Guard::finish`] before the runtime ends.
#[derive(Debug)]
#[must_use = "traces that were not sent yet are lost without `finish`"]
pub struct Guard {
    #[cfg(feature = "otlp")]
    traces: Option<opentelemetry_sdk::trace::SdkTracerProvider>,
}

/// Starts logs and traces for the whole process, under the name `service`. Wants a runtime.
///
/// # Errors
/// When a setting is wrong, or telemetry was started before.
pub fn start(service: &'static str, settings: &Settings) -> Result<Guard, Error> {
    let filter = EnvFilter::try_new(&settings.filter).map_err(|source| Error::Filter {
        filter: settings.filter.clone(),
        source,
    })?;
    let lines = tracing_subscriber::fmt::layer().with_writer(io::stderr);
    let lines = match settings.json {
        true => lines.json().flatten_event(true).boxed(),
        false => lines.with_ansi(io::stderr().is_terminal()).boxed(),
    };
    if let Some(dir) = &settings.history {
        begin_history(service, dir)?;
    }
    let registry = tracing_subscriber::registry().with(filter).with(lines);

    #[cfg(feature = "otlp")]
    {
        use opentelemetry::trace::TracerProvider as _;

        let traces = match &settings.collector {
            Some(collector) => Some(exporter(service, collector)?),
            None => None,
        };
        let layer = traces
            .as_ref()
            .map(|traces| tracing_opentelemetry::layer().with_tracer(traces.tracer("tether")));
        registry.with(layer).try_init()?;
        Ok(Guard { traces })
    }
    #[cfg(not(feature = "otlp"))]
    {
        registry.try_init()?;
        if settings.collector.is_some() {
            tracing::warn!(
                service,
                "This build sends no traces: it lacks the feature `otlp`"
            );
        }
        Ok(Guard {})
    }
}

fn begin_history(service: &str, dir: &Path) -> Result<(), Error> {
    let recorder = crate::process::boot_id()
        .and_then(|boot| tether_history::Recorder::open(dir, service, &boot, BootClock));
    let (recorder, _) = recorder.map_err(|source| Error::History {
        dir: dir.to_owned(),
        source,
    })?;
    tether_history::install(recorder);
    Ok(())
}

#[cfg(feature = "otlp")]
fn exporter(
    service: &'static str,
    collector: &str,
) -> Result<opentelemetry_sdk::trace::SdkTracerProvider, Error> {
    use opentelemetry_otlp::{SpanExporter, WithExportConfig as _};
    use opentelemetry_sdk::{Resource, trace::SdkTracerProvider};

    let exporter = SpanExporter::builder()
        .with_tonic()
        .with_endpoint(collector)
        .build()
        .map_err(|error| Error::Collector {
            collector: collector.to_owned(),
            source: error.into(),
        })?;
    Ok(SdkTracerProvider::builder()
        .with_batch_exporter(exporter)
        .with_resource(Resource::builder().with_service_name(service).build())
        .build())
}

impl Guard {
    /// Sends what was not sent yet; gives up after a few seconds if the collector does not answer.
    pub async fn finish(self) {
        #[cfg(feature = "otlp")]
        if let Some(traces) = self.traces {
            // Blocks until the exporter's thread is done, and that one needs this runtime.
            let done = tokio::task::spawn_blocking(move || {
                traces.shutdown_with_timeout(std::time::Duration::from_secs(3))
            });
            if let Ok(Err(error)) = done.await {
                tracing::warn!(%error, "The last traces could not be sent");
            }
        }
    }
}
