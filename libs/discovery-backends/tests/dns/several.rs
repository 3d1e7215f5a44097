//! Several servers, of which some fail.

use std::time::{Duration, Instant};

use super::{fails, faulty::Faulty, listen, named::Named, says, source};

#[tokio::test]
async fn the_next_server_is_asked_where_one_cannot_answer_and_goes_on_to_be() {
    // The first cannot read its zone, the second is not for it.
    let failing = Named::start("");
    let mut named = Named::start("web A 10.0.0.1");
    let broken = format!("servers={},{}", failing.at, named.at);
    let mut watch = source("web.broken:1", &broken);
    let error = fails(&mut watch).await;
    for part in [
        failing.at.to_string(),
        named.at.to_string(),
        "SERVFAIL".to_owned(),
    ] {
        let said = error.to_uppercase().replace("SERVER FAILURE", "SERVFAIL");
        assert!(said.contains(&part), "{error}");
    }

    let mut other = Named::start("web A 10.0.0.2");
    let both = format!("servers={},{}", named.at, other.at);
    let mut watch = source("web.test:1", &both);
    says(&mut watch, &["10.0.0.1:1"]).await;
    assert_eq!(other.asked("web.test IN A"), 0);

    named.stop();
    says(&mut watch, &["10.0.0.2:1"]).await;
    // The one that answers stays the one that is asked.
    named.restart();
    says(&mut watch, &["10.0.0.2:1"]).await;
    other.stop();
    says(&mut watch, &["10.0.0.1:1"]).await;
    named.stop();
    let error = fails(&mut watch).await;
    assert!(error.contains(&named.at.to_string()), "{error}");
    assert!(error.contains(&other.at.to_string()), "{error}");
    other.restart();
    says(&mut watch, &["10.0.0.2:1"]).await;
}

#[tokio::test]
async fn a_silent_server_costs_its_timeout_once() {
    let silent = Faulty::start(|_, _| Vec::new()).await;
    let named = Named::start("web A 10.0.0.1");
    let begun = Instant::now();
    let mut watch = source("web.test:1", &format!("servers={},{}", silent.at, named.at));

    says(&mut watch, &["10.0.0.1:1"]).await;

    assert!(begun.elapsed() >= Duration::from_secs(1));
    let asked = silent.asked();
    assert!(asked > 0);
    listen(&mut watch, Duration::from_millis(2_500)).await;
    assert_eq!(silent.asked(), asked, "it is passed over from then on");
    assert!(named.asked("web.test IN A") >= 2);
}
