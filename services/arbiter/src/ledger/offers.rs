//! What a node says it has for workers: labels, and counted resources.

use std::collections::{BTreeMap, HashMap};

use tether_placement::{Counts, Labels, Unusable, check_label, check_resource};
use tether_proto::node::Hello;

/// The labels of a node that can be, whatever else it says: its agent looks at them itself, so that one with other rules
/// is of another version, and its workers are not to end for that.
pub(super) fn labels_of(hello: &Hello) -> Labels {
    usable(hello, &hello.labels, |name, value| check_label(name, value))
}

/// What a node has of resources that can be, likewise.
pub(super) fn resources_of(hello: &Hello) -> Counts {
    usable(hello, &hello.resources, |name, &count| {
        check_resource(name, count)
    })
}

fn usable<Said: Clone>(
    hello: &Hello,
    said: &HashMap<String, Said>,
    check: impl Fn(&str, &Said) -> Result<(), Unusable>,
) -> BTreeMap<String, Said> {
    let mut usable = BTreeMap::new();
    for (name, of_it) in said {
        match check(name, of_it) {
            Ok(()) => {
                usable.insert(name.clone(), of_it.clone());
            }
            Err(error) => {
                tracing::warn!(node = hello.node, %error, "Passed over what a node says it has");
            }
        }
    }
    usable
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    /// What was logged.
    #[derive(Debug, Clone, Default)]
    struct Log(Arc<Mutex<Vec<u8>>>);

    impl std::io::Write for Log {
        fn write(&mut self, text: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().write(text)
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn what_a_node_says_it_has_and_cannot_be_is_passed_over_with_a_word_and_the_rest_counts() {
        let hello = Hello {
            node: "n1".to_owned(),
            labels: HashMap::from([
                ("zone".to_owned(), "a".to_owned()),
                ("bad label".to_owned(), "b".to_owned()),
            ]),
            resources: HashMap::from([("gpu".to_owned(), 2), ("fpga".to_owned(), 5_000)]),
            ..Hello::default()
        };
        let log = Log::default();
        let writer = log.clone();
        let logging = tracing_subscriber::fmt()
            .with_ansi(false)
            .with_writer(move || writer.clone());

        let (labels, resources) = tracing::subscriber::with_default(logging.finish(), || {
            (labels_of(&hello), resources_of(&hello))
        });

        assert_eq!(labels, Labels::from([("zone".to_owned(), "a".to_owned())]));
        assert_eq!(resources, Counts::from([("gpu".to_owned(), 2)]));
        let said = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
        let lines: Vec<_> = said.lines().collect();
        assert_eq!(lines.len(), 2, "{said}");
        for (line, key) in lines.iter().zip(["bad label", "fpga = 5000"]) {
            assert!(line.contains("WARN") && line.contains("n1"), "{line}");
            assert!(line.contains(key), "{line}");
        }
    }
}
