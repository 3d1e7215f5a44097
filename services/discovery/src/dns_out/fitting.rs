//! What of an answer is sent where not all of it fits. Pure.

use hickory_server::proto::rr::Record;

/// The records of an answer.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Records {
    pub(super) answers: Vec<Record>,
    /// What spares whoever asks another question.
    pub(super) additionals: Vec<Record>,
    /// Whether all of it is to be asked for again, over TCP.
    pub(super) truncated: bool,
}

/// How an answer is carried, and how many bytes of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Room {
    Datagram(usize),
    Stream,
}

/// What is sent, of which `measure` tells the size in bytes. What is not asked for goes first. A datagram then says
/// that all of it is to be asked for over TCP, and nothing else, so that it is no means to flood somebody; TCP takes
/// the first of the answers, as many as fit.
pub(super) fn fit(
    mut records: Records,
    room: Room,
    measure: impl Fn(&Records) -> usize,
) -> Records {
    let limit = match room {
        Room::Datagram(bytes) => bytes,
        Room::Stream => usize::from(u16::MAX),
    };
    if measure(&records) > limit {
        records.additionals.clear();
    }
    if measure(&records) > limit {
        let kept = match room {
            Room::Datagram(_) => 0,
            Room::Stream => most(records.answers.len(), |count| {
                let mut fewer = records.clone();
                fewer.answers.truncate(count);
                measure(&fewer) <= limit
            }),
        };
        records.answers.truncate(kept);
        records.truncated = kept == 0;
    }
    records
}

/// The highest number below this one that fits; 0 does, and of others all below one that does.
fn most(below: usize, fits: impl Fn(usize) -> bool) -> usize {
    let (mut known, mut limit) = (0, below);
    while known + 1 < limit {
        let middle = known.midpoint(limit);
        match fits(middle) {
            true => known = middle,
            false => limit = middle,
        }
    }
    known
}

#[cfg(test)]
mod tests {
    use hickory_server::proto::rr::{Name, RData, rdata::A};

    use super::*;

    fn records(answers: usize, additionals: usize) -> Records {
        let record = Record::from_rdata(Name::root(), 1, RData::A(A::new(10, 0, 0, 1)));
        Records {
            answers: vec![record.clone(); answers],
            additionals: vec![record; additionals],
            truncated: false,
        }
    }

    /// A hundred bytes each.
    fn measure(records: &Records) -> usize {
        100 * (records.answers.len() + records.additionals.len())
    }

    #[test]
    fn additional_records_go_first_and_then_a_datagram_says_no_more_than_where_to_ask() {
        let fitted = |answers, additionals, room| fit(records(answers, additionals), room, measure);
        let datagram = Room::Datagram(1_000);
        assert_eq!(fitted(5, 5, datagram), records(5, 5));
        assert_eq!(fitted(5, 6, datagram), records(5, 0));
        let truncated = Records {
            truncated: true,
            ..records(0, 0)
        };
        assert_eq!(fitted(11, 0, datagram), truncated);
    }

    #[test]
    fn over_tcp_there_are_as_many_as_fit() {
        let fitted =
            |answers, additionals| fit(records(answers, additionals), Room::Stream, measure);
        assert_eq!(fitted(600, 600), records(600, 0));
        assert_eq!(fitted(1_400, 0), records(655, 0));
    }
}
