//! From a name over its aliases to records, through as many messages as that takes. Pure.

use hickory_resolver::proto::{
    op::{Message, ResponseCode},
    rr::{Name, RData, Record, RecordType},
};

/// Longest chain of aliases: what is longer is a loop of names made on the spot.
const NAMES_MAX: usize = 16;

/// The names so far, of which each is an alias of the next.
#[derive(Debug)]
pub(super) struct Chain {
    kind: RecordType,
    names: Vec<Name>,
    /// Shortest time that any of its records holds, in seconds.
    ttl: u32,
}

/// What a message leads to.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// To records, all of which hold for so many seconds.
    Found(Vec<Record>, u32),
    /// To another name, which is to be asked for: [`Chain::end`].
    Ask,
    /// To a name that has no such records.
    Nothing,
    /// To a name that does not exist.
    Missing,
}

impl Chain {
    pub(super) fn new(name: Name, kind: RecordType) -> Self {
        Self {
            kind,
            names: vec![name],
            ttl: u32::MAX,
        }
    }

    /// The name to ask for.
    pub(super) fn end(&self) -> &Name {
        &self.names[self.names.len() - 1]
    }

    /// Follows a message that answers for [`Chain::end`].
    ///
    /// # Errors
    /// Where the aliases lead in a circle, or on for ever.
    pub(super) fn follow(&mut self, message: &Message) -> Result<Step, String> {
        let asked = self.names.len();
        loop {
            let of_end = |record: &&Record| record.name == *self.end();
            let mut records = message.answers.iter().filter(of_end);
            let found: Vec<Record> = records
                .clone()
                .filter(|record| record.record_type() == self.kind)
                .cloned()
                .collect();
            if !found.is_empty() {
                let ttl = found.iter().map(|record| record.ttl).min();
                self.ttl = self.ttl.min(ttl.unwrap_or(0));
                return Ok(Step::Found(found, self.ttl));
            }
            let alias = records.find_map(|record| match &record.data {
                RData::CNAME(alias) => Some((alias.0.clone(), record.ttl)),
                _ => None,
            });
            let Some((alias, ttl)) = alias else {
                let is_soa = |record: &Record| record.record_type() == RecordType::SOA;
                return Ok(match message.metadata.response_code {
                    ResponseCode::NXDomain => Step::Missing,
                    // A server that only knows the alias leaves the rest to whoever asks.
                    _ if self.names.len() > asked && !message.authorities.iter().any(is_soa) => {
                        Step::Ask
                    }
                    _ => Step::Nothing,
                });
            };
            self.ttl = self.ttl.min(ttl);
            self.lead_to(alias)?;
        }
    }

    fn lead_to(&mut self, alias: Name) -> Result<(), String> {
        if self.names.contains(&alias) {
            return Err(format!("its aliases lead in a circle, back to `{alias}`"));
        }
        if self.names.len() == NAMES_MAX {
            return Err(format!(
                "it is an alias of an alias, more than {NAMES_MAX} times over"
            ));
        }
        self.names.push(alias);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use hickory_resolver::proto::{
        op::{MessageType, OpCode},
        rr::rdata::{A, CNAME, SOA},
    };

    use super::*;

    fn name(text: &str) -> Name {
        Name::from_ascii(text).unwrap()
    }

    fn alias(from: &str, to: &str, ttl: u32) -> Record {
        Record::from_rdata(name(from), ttl, RData::CNAME(CNAME(name(to))))
    }

    fn address(of: &str, ttl: u32) -> Record {
        Record::from_rdata(name(of), ttl, RData::A(A::new(10, 0, 0, 1)))
    }

    fn message(answers: Vec<Record>) -> Message {
        let mut message = Message::new(1, MessageType::Response, OpCode::Query);
        message.answers = answers;
        message
    }

    #[test]
    fn aliases_are_followed_within_a_message_and_on_to_the_next_and_the_shortest_time_counts() {
        let mut chain = Chain::new(name("a.test."), RecordType::A);
        // In no order, with letters of either case, and beside records of others.
        let first = vec![
            alias("b.test.", "c.TEST.", 40),
            address("x.test.", 1),
            alias("A.test.", "b.test.", 90),
        ];
        assert_eq!(chain.follow(&message(first)), Ok(Step::Ask));
        assert_eq!(*chain.end(), name("c.test."));
        let second = message(vec![address("c.test.", 60)]);
        let found = Step::Found(vec![address("c.test.", 60)], 40);
        assert_eq!(chain.follow(&second), Ok(found));
    }

    #[test]
    fn an_alias_of_nothing_is_told_apart_from_one_that_leads_on_and_from_one_that_is_not_there() {
        let follow = |change: &dyn Fn(&mut Message)| {
            let mut message = message(vec![alias("a.test.", "b.test.", 1)]);
            change(&mut message);
            Chain::new(name("a.test."), RecordType::A).follow(&message)
        };
        let with_soa = |message: &mut Message| {
            let soa = SOA::new(name("ns.test."), name("x.test."), 1, 1, 1, 1, 1);
            message
                .authorities
                .push(Record::from_rdata(name("test."), 1, RData::SOA(soa)));
        };
        assert_eq!(follow(&|_| {}), Ok(Step::Ask));
        assert_eq!(follow(&with_soa), Ok(Step::Nothing));
        let missing = |message: &mut Message| {
            with_soa(message);
            message.metadata.response_code = ResponseCode::NXDomain;
        };
        assert_eq!(follow(&missing), Ok(Step::Missing));
        let unrelated = message(vec![address("b.test.", 1)]);
        let mut chain = Chain::new(name("a.test."), RecordType::A);
        assert_eq!(chain.follow(&unrelated), Ok(Step::Nothing));
    }

    #[test]
    fn a_circle_and_a_chain_without_end_are_errors() {
        let circle = message(vec![
            alias("a.test.", "b.test.", 1),
            alias("b.test.", "a.test.", 1),
        ]);
        let mut chain = Chain::new(name("a.test."), RecordType::A);
        let error = chain.follow(&circle).unwrap_err();
        assert!(
            error.contains("circle") && error.contains("a.test."),
            "{error}"
        );

        let mut chain = Chain::new(name("n0.test."), RecordType::A);
        let error = (0..).find_map(|number| {
            let (from, to) = (format!("n{number}.test."), format!("n{}.test.", number + 1));
            chain.follow(&message(vec![alias(&from, &to, 1)])).err()
        });
        assert!(error.unwrap().contains("16 times"));
        assert_eq!(chain.names.len(), NAMES_MAX);
    }
}
