//! A list that is part of the URL: nothing can happen to it.

use async_trait::async_trait;

use crate::ground::{Ground, PORT};

pub(crate) struct Fixed(String);

#[async_trait]
impl Ground for Fixed {
    const SCHEME: &'static str = "static";
    const NONSENSE: &'static [&'static str] = &["host", "host:0", "host:x", "host:1,", "0.0.0.0:1"];

    async fn start(hosts: &[&str]) -> Self {
        let list: Vec<_> = hosts.iter().map(|host| format!("{host}:{PORT}")).collect();
        Self(format!("static://{}", list.join(",")))
    }

    fn url(&self) -> String {
        self.0.clone()
    }

    fn name(&self) -> String {
        self.0.clone()
    }

    async fn serve(&mut self, _: &[&str]) {
        unreachable!("it is what it is")
    }

    async fn away(&mut self) {
        unreachable!("it is always there")
    }

    async fn back(&mut self) {
        unreachable!("it is always there")
    }

    async fn spoil(&mut self) -> usize {
        unreachable!("it is refused at once")
    }

    async fn flood(&mut self) {
        unreachable!("it is refused at once")
    }

    fn held(&self) -> usize {
        0
    }
}
