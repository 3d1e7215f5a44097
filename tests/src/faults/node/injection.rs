//! What a node asks of the injector.

use std::collections::BTreeMap;

use anyhow::{Context as _, bail};
use tokio::{io::AsyncWriteExt as _, time::timeout};

use super::{Node, PATIENCE};

/// How often each call was made: by whom, which, how often.
pub(crate) type Counts = BTreeMap<(String, i32), u32>;

impl Node {
    /// From here on this call fails, once.
    pub(crate) async fn arm(
        &mut self,
        role: &str,
        call: i32,
        nth: u32,
        errno: i32,
    ) -> anyhow::Result<()> {
        self.tell(&format!("arm {role} {call} {nth} {errno}"))
            .await?;
        Ok(())
    }

    /// From here on only calls of this shim, its children and this zygote count, and fail; counted anew.
    pub(crate) async fn focus(&mut self, (shim, zygote): (u32, u32)) -> anyhow::Result<()> {
        self.tell(&format!("only {shim} {zygote}")).await?;
        Ok(())
    }

    /// From here on nothing fails, and everybody's calls are counted anew.
    pub(crate) async fn clear(&mut self) -> anyhow::Result<()> {
        self.tell("clear").await?;
        Ok(())
    }

    /// What was called since, and how often the fault that was armed happened.
    pub(crate) async fn counts(&mut self) -> anyhow::Result<(Counts, u32)> {
        let (mut counts, mut hits) = (Counts::new(), 0);
        for line in self.tell("counts").await? {
            match line.split(' ').collect::<Vec<_>>()[..] {
                ["count", role, call, count] => {
                    counts.insert((role.to_owned(), call.parse()?), count.parse()?);
                }
                ["hits", count] => hits = count.parse()?,
                _ => bail!("the injector says `{line}`"),
            }
        }
        Ok((counts, hits))
    }

    pub(super) async fn tell(&mut self, line: &str) -> anyhow::Result<Vec<String>> {
        self.orders
            .write_all(format!("{line}\n").as_bytes())
            .await?;
        let mut said = Vec::new();
        loop {
            let line = timeout(PATIENCE, self.answers.next_line()).await??;
            match line.context("the injector ended")? {
                line if line == "ok" => return Ok(said),
                line => said.push(line),
            }
        }
    }
}
