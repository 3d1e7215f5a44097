//! Whether gates that ask for a fencing token keep the earlier ones out (H3).

use std::collections::BTreeMap;

use super::{At, Look, Report, Rule};
use crate::What;

/// Who was let through, by gate and what it guards.
#[derive(Debug, Default)]
pub(super) struct Gates(BTreeMap<(String, String), Vec<(At, u64)>>);

impl Gates {
    pub(super) fn read(&mut self, at: At, what: &What) {
        if let What::Admitted {
            gate,
            resource,
            fence,
        } = what
        {
            let key = (gate.clone(), resource.clone());
            self.0.entry(key).or_default().push((at, *fence));
        }
    }

    pub(super) fn judge(&self, report: &mut Report) {
        for ((gate, resource), admitted) in &self.0 {
            let mut in_order = admitted.clone();
            // Stable: what one file says in one instant stays in its order.
            in_order.sort_by_key(|&(at, _)| at);
            for pair in in_order.windows(2) {
                let [(before, high), (at, low)] = pair else {
                    continue;
                };
                let look = match at.after(*before) {
                    None => Look::Unjudged,
                    Some(later) => Look::holds(low >= high, || {
                        format!(
                            "`{gate}` let {low} act on `{resource}` {later:?} after it had let {high}"
                        )
                    }),
                };
                report.add(Rule::H3, look);
            }
        }
    }
}
