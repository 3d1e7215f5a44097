//! What a beat tells of workers: changes, a bounded part at a time.

use std::collections::VecDeque;

use prost::Message as _;
use tether_proto::node::WorkerReport;

/// Of reports in one beat, in bytes on the wire: a thousand deaths with the end of each one's output must not
/// make the beat that keeps all others alive a long one.
const BEAT_MAX: usize = 64 << 10;

/// Reports that were not sent yet, oldest first.
#[derive(Debug, Default)]
pub(crate) struct News(VecDeque<WorkerReport>);

impl News {
    pub(crate) fn push(&mut self, report: WorkerReport) {
        self.0.push_back(report);
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// All of it is told in another way.
    pub(crate) fn clear(&mut self) {
        self.0.clear();
    }

    /// What the next beat tells: as much as it may, and at least one, however large that is.
    pub(crate) fn take(&mut self) -> Vec<WorkerReport> {
        let mut bytes = 0;
        let fits = self.0.iter().take_while(|report| {
            // A tag, and a length of up to three bytes.
            bytes += report.encoded_len() + 4;
            bytes <= BEAT_MAX
        });
        let many = fits.count().max(1).min(self.0.len());
        self.0.drain(..many).collect()
    }
}

#[cfg(test)]
mod tests {
    use tether_proto::{
        common::{Death, WorkerRef},
        node::HeartbeatRequest,
    };

    use super::*;

    fn report(slot: u32, tail: usize) -> WorkerReport {
        WorkerReport {
            worker: Some(WorkerRef {
                pool: "digits".to_owned(),
                slot,
                incarnation: 1,
            }),
            death: Some(Death {
                stderr_tail: "x".repeat(tail),
                ..Death::default()
            }),
            ..WorkerReport::default()
        }
    }

    #[test]
    fn a_thousand_deaths_are_told_in_order_in_beats_of_64_kib() {
        let mut news = News::default();
        for slot in 0..1_000 {
            news.push(report(slot, 4_000));
        }

        let mut slots = Vec::new();
        let mut beats = 0;
        while !news.is_empty() {
            let beat = HeartbeatRequest {
                reports: news.take(),
                ..HeartbeatRequest::default()
            };
            assert!(beat.encoded_len() <= BEAT_MAX, "{}", beat.encoded_len());
            slots.extend(
                beat.reports
                    .iter()
                    .map(|report| report.worker.as_ref().unwrap().slot),
            );
            beats += 1;
        }

        assert!(slots.into_iter().eq(0..1_000));
        assert_eq!(beats, 63);
    }

    #[test]
    fn what_is_larger_than_a_beat_is_told_by_itself() {
        let mut news = News::default();
        news.push(report(0, 200_000));
        news.push(report(1, 1));

        assert_eq!((news.take().len(), news.take().len()), (1, 1));
        assert!(news.take().is_empty());
    }
}
