//! Metrics as Prometheus reads them: declared once by each service, counted without a lock, and served at
//! `/metrics` where that is asked for.
//!
//! What can be a label is a list that the code knows: a [`Label`] has no other values, so that neither a
//! worker's name nor the text of an error can become one, and each series is there from the start.

mod serve;

use std::{collections::BTreeSet, fmt, marker::PhantomData, sync::Arc};

pub use prometheus_client::metrics::{counter::Counter, gauge::Gauge, histogram::Histogram};
use prometheus_client::{
    encoding::{EncodeMetric, MetricEncoder, text::encode_registry},
    metrics::{MetricType, TypedMetric},
    registry::Registry,
};

pub use serve::PATH;

/// What every name begins with.
const PREFIX: &str = "tether";

/// A label with all the values that it can have.
pub trait Label: Copy + fmt::Debug + Send + Sync + 'static {
    /// Its name.
    const NAME: &'static str;
    /// Every value.
    const ALL: &'static [Self];

    /// A value as it is written.
    fn word(self) -> &'static str;
}

/// One metric for each value of a label.
#[derive(Debug, Clone)]
pub struct By<L, M> {
    /// As [`Label::ALL`], and one more.
    each: Arc<[M]>,
    label: PhantomData<L>,
}

impl<L: Label, M: Default> By<L, M> {
    fn new() -> Self {
        Self {
            each: std::iter::repeat_with(M::default)
                .take(L::ALL.len() + 1)
                .collect(),
            label: PhantomData,
        }
    }

    /// The metric of one value. That of a value which is missing in the list is not told to anybody.
    pub fn of(&self, label: L) -> &M {
        let known = L::ALL.iter().position(|one| one.word() == label.word());
        &self.each[known.unwrap_or(L::ALL.len())]
    }
}

impl<L: Label, M: EncodeMetric + TypedMetric> EncodeMetric for By<L, M> {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> fmt::Result {
        for (label, metric) in L::ALL.iter().zip(self.each.iter()) {
            metric.encode(encoder.encode_family(&[(L::NAME, label.word())])?)?;
        }
        Ok(())
    }

    fn metric_type(&self) -> MetricType {
        M::TYPE
    }
}

/// A fact: always 1, with what it says in a label.
#[derive(Debug)]
struct Fact {
    label: &'static str,
    value: &'static str,
}

impl EncodeMetric for Fact {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> fmt::Result {
        encoder
            .encode_family(&[(self.label, self.value)])?
            .encode_gauge(&1_u64)
    }

    fn metric_type(&self) -> MetricType {
        MetricType::Gauge
    }
}

/// What is read when somebody asks.
struct Reading<F>(F);

impl<F> fmt::Debug for Reading<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Reading")
    }
}

impl<F: Fn() -> f64> EncodeMetric for Reading<F> {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> fmt::Result {
        encoder.encode_gauge(&(self.0)())
    }

    fn metric_type(&self) -> MetricType {
        MetricType::Gauge
    }
}

/// One line of the reference.
#[derive(Debug)]
struct Listed {
    name: String,
    kind: MetricType,
    label: Option<(&'static str, Vec<&'static str>)>,
    help: &'static str,
}

/// The metrics of one process, in the order in which they were declared. Names are given without
/// `tether_`, and those of counters without `_total`; texts of help without a full stop.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    listed: Vec<Listed>,
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// Those that every process has.
    pub fn new() -> Self {
        let mut metrics = Self {
            registry: Registry::with_prefix(PREFIX),
            listed: Vec::new(),
        };
        let version = env!("CARGO_PKG_VERSION");
        metrics.fact(
            "build_info",
            "The version that runs",
            ("version", version),
            &[],
        );
        metrics
    }

    /// A count that only grows.
    pub fn counter(&mut self, name: &str, help: &'static str) -> Counter {
        let counter = Counter::default();
        self.add(name, help, None, counter.clone());
        counter
    }

    /// Such a count for each value of a label.
    pub fn counters<L: Label>(&mut self, name: &str, help: &'static str) -> By<L, Counter> {
        let by = By::<L, Counter>::new();
        self.add(name, help, Some((L::NAME, words::<L>())), by.clone());
        by
    }

    /// A number that goes up and down.
    pub fn gauge(&mut self, name: &str, help: &'static str) -> Gauge {
        let gauge = Gauge::default();
        self.add(name, help, None, gauge.clone());
        gauge
    }

    /// Such a number for each value of a label.
    pub fn gauges<L: Label>(&mut self, name: &str, help: &'static str) -> By<L, Gauge> {
        let by = By::<L, Gauge>::new();
        self.add(name, help, Some((L::NAME, words::<L>())), by.clone());
        by
    }

    /// How often something took how long, in seconds.
    pub fn seconds(&mut self, name: &str, help: &'static str, buckets: &[f64]) -> Histogram {
        let histogram = Histogram::new(buckets.iter().copied());
        self.add(name, help, None, histogram.clone());
        histogram
    }

    /// A number that is read when somebody asks for it.
    pub fn reading(
        &mut self,
        name: &str,
        help: &'static str,
        read: impl Fn() -> f64 + Send + Sync + 'static,
    ) {
        self.add(name, help, None, Reading(read));
    }

    /// Which of a label's values it is, for as long as the process runs.
    pub fn is<L: Label>(&mut self, name: &str, help: &'static str, value: L) {
        self.fact(name, help, (L::NAME, value.word()), &words::<L>());
    }

    fn fact(
        &mut self,
        name: &str,
        help: &'static str,
        (label, value): (&'static str, &'static str),
        values: &[&'static str],
    ) {
        let fact = Fact { label, value };
        self.add(name, help, Some((label, values.to_vec())), fact);
    }

    fn add(
        &mut self,
        name: &str,
        help: &'static str,
        label: Option<(&'static str, Vec<&'static str>)>,
        metric: impl EncodeMetric + fmt::Debug + Send + Sync + 'static,
    ) {
        self.listed.push(Listed {
            name: format!("{PREFIX}_{name}"),
            kind: metric.metric_type(),
            label,
            help,
        });
        self.registry.register(name, help, metric);
    }

    /// All of them as they are, in Prometheus' own text format.
    ///
    /// What is encoded is OpenMetrics, which differs in what a counter is called where it is described: there
    /// it has no `_total`, and a reader of the older format would not find its samples.
    pub fn text(&self) -> String {
        let mut open = String::new();
        // Writing to memory does not fail.
        let _ = encode_registry(&mut open, &self.registry);
        let counters: BTreeSet<&str> = self
            .listed
            .iter()
            .filter(|listed| listed.is_counter())
            .map(|listed| listed.name.as_str())
            .collect();
        let mut text = String::with_capacity(open.len());
        for line in open.lines() {
            let described = ["# HELP ", "# TYPE "].iter().find_map(|start| {
                let (name, rest) = line.strip_prefix(start)?.split_once(' ')?;
                counters.contains(name).then_some((start, name, rest))
            });
            match described {
                Some((start, name, rest)) => text.extend([start, name, "_total ", rest]),
                None => text.push_str(line),
            }
            text.push('\n');
        }
        text
    }

    /// All of them as a table of Markdown, for the reference.
    pub fn reference(&self) -> String {
        let mut text =
            String::from("| metric | type | label | what |\n| --- | --- | --- | --- |\n");
        for listed in &self.listed {
            let total = if listed.is_counter() { "_total" } else { "" };
            let label = match &listed.label {
                None => String::new(),
                Some((name, words)) if words.is_empty() => format!("`{name}`"),
                Some((name, words)) => format!("`{name}`: {}", words.join(", ")),
            };
            text.push_str(&format!(
                "| `{}{total}` | {} | {label} | {} |\n",
                listed.name,
                listed.kind.as_str(),
                listed.help,
            ));
        }
        text
    }
}

impl Listed {
    fn is_counter(&self) -> bool {
        matches!(self.kind, MetricType::Counter)
    }
}

fn words<L: Label>() -> Vec<&'static str> {
    L::ALL.iter().map(|label| label.word()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Clone, Copy)]
    enum Fruit {
        Apple,
        Pear,
        Unlisted,
    }

    impl Label for Fruit {
        const NAME: &'static str = "fruit";
        const ALL: &'static [Self] = &[Self::Apple, Self::Pear];

        fn word(self) -> &'static str {
            match self {
                Self::Apple => "apple",
                Self::Pear => "pear",
                Self::Unlisted => "unlisted",
            }
        }
    }

    #[test]
    fn each_series_is_there_from_the_start_and_counters_are_described_by_their_whole_name() {
        let mut metrics = Metrics::new();
        let eaten = metrics.counters::<Fruit>("eaten", "Fruit that is gone");
        metrics.is("ripe", "What is ripe", Fruit::Apple);
        metrics.reading("age_seconds", "How old it is", || 1.5);

        eaten.of(Fruit::Pear).inc_by(2);
        eaten.of(Fruit::Unlisted).inc();

        let version = env!("CARGO_PKG_VERSION");
        let expected = format!(
            "# HELP tether_build_info The version that runs.\n\
             # TYPE tether_build_info gauge\n\
             tether_build_info{{version=\"{version}\"}} 1\n\
             # HELP tether_eaten_total Fruit that is gone.\n\
             # TYPE tether_eaten_total counter\n\
             tether_eaten_total{{fruit=\"apple\"}} 0\n\
             tether_eaten_total{{fruit=\"pear\"}} 2\n\
             # HELP tether_ripe What is ripe.\n\
             # TYPE tether_ripe gauge\n\
             tether_ripe{{fruit=\"apple\"}} 1\n\
             # HELP tether_age_seconds How old it is.\n\
             # TYPE tether_age_seconds gauge\n\
             tether_age_seconds 1.5\n"
        );
        assert_eq!(metrics.text(), expected);
    }
}
