//! Orders that were carried out, so that one that is told again is not carried out again.

use std::collections::{HashMap, VecDeque};

use prost::Message;
use tether_proto::Failure;

use super::refuse;

/// How many are known: whoever repeats an order does so within seconds.
const KEPT: usize = 1_024;

/// The longest request id, in bytes.
const ID: usize = 128;

#[derive(Debug, Default)]
pub(super) struct Receipts {
    known: HashMap<String, Receipt>,
    /// The oldest is first.
    order: VecDeque<String>,
}

#[derive(Debug)]
struct Receipt {
    request: Vec<u8>,
    answer: Vec<u8>,
}

impl Receipts {
    /// What was answered to this order, where it was carried out.
    ///
    /// # Errors
    /// Where another one had the same id.
    pub(super) fn find<A: Message + Default>(
        &self,
        id: &str,
        request: &impl Message,
    ) -> Result<Option<A>, Failure> {
        if id.len() > ID {
            let text = format!(
                "the request id has {} bytes, at most {ID} are allowed",
                id.len()
            );
            return Err(refuse(text));
        }
        let Some(receipt) = self.known.get(id) else {
            return Ok(None);
        };
        if receipt.request != request.encode_to_vec() {
            let text = format!(
                "another order was given with the request id `{id}`: give each order an id of its own"
            );
            return Err(refuse(text));
        }
        Ok(A::decode(receipt.answer.as_slice()).ok())
    }

    /// An order was carried out; one without an id is not told again.
    pub(super) fn keep(&mut self, id: &str, request: &impl Message, answer: &impl Message) {
        if id.is_empty() {
            return;
        }
        if self.order.len() >= KEPT
            && let Some(oldest) = self.order.pop_front()
        {
            self.known.remove(&oldest);
        }
        self.order.push_back(id.to_owned());
        let receipt = Receipt {
            request: request.encode_to_vec(),
            answer: answer.encode_to_vec(),
        };
        self.known.insert(id.to_owned(), receipt);
    }
}

#[cfg(test)]
mod tests {
    use tether_proto::gateway::{UndrainRequest, UndrainResponse, UnpinRequest};

    use super::*;

    #[test]
    fn an_order_is_known_by_its_id_and_no_more_are_kept_than_may_be() {
        let mut receipts = Receipts::default();
        let request = UndrainRequest::default();
        let answer = UndrainResponse { was: true };
        let found =
            |receipts: &Receipts, id: &str| receipts.find::<UndrainResponse>(id, &request).unwrap();

        receipts.keep("", &request, &answer);
        assert_eq!(found(&receipts, ""), None);
        receipts.keep("first", &request, &answer);
        assert_eq!(found(&receipts, "first"), Some(answer));
        for number in 0..KEPT {
            receipts.keep(&number.to_string(), &request, &answer);
        }
        assert_eq!(found(&receipts, "first"), None);
        assert_eq!((receipts.known.len(), receipts.order.len()), (KEPT, KEPT));
    }

    #[test]
    fn an_id_that_stands_for_another_order_is_refused() {
        let mut receipts = Receipts::default();
        receipts.keep("a", &UndrainRequest::default(), &UndrainResponse::default());
        let other = UnpinRequest {
            pool: "digits".to_owned(),
            ..UnpinRequest::default()
        };

        let refused = receipts.find::<UndrainResponse>("a", &other).unwrap_err();

        assert!(
            refused.to_string().contains("an id of its own"),
            "{refused}"
        );
    }
}
