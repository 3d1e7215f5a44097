//! What is special about Consul: its index, its tokens, and what an instance is.

use std::{fs, time::Duration};

use tether_discovery_backends::open;
use tokio::time::sleep;

use crate::{
    consul_server::Consul,
    ground::Ground as _,
    grounds::consul::{Service, instance},
    rules::{fails, says, set, until},
};

#[tokio::test]
async fn an_index_that_begins_anew_is_followed() {
    let mut ground = Service::start(&["10.0.0.1"]).await;
    let mut watch = open(&ground.url()).unwrap();
    says(&mut watch, &["10.0.0.1"]).await;
    for round in 0..51 {
        ground
            .serve(if round % 2 == 0 {
                &["10.0.0.1", "10.0.0.2"]
            } else {
                &["10.0.0.1"]
            })
            .await;
    }
    says(&mut watch, &["10.0.0.1", "10.0.0.2"]).await;

    // The server is another one now, whose index is below ours.
    ground.away().await;
    ground.0.begin_anew();
    fails(&mut watch, &set(&["10.0.0.1", "10.0.0.2"])).await;
    ground.back().await;
    ground.serve(&["10.0.0.3"]).await;
    says(&mut watch, &["10.0.0.3"]).await;

    // And the same while nobody loses a connection: the question is answered when its time is over.
    let mut watch = open(&format!("{}?wait=1s", ground.url())).unwrap();
    says(&mut watch, &["10.0.0.3"]).await;
    (0..50).for_each(|_| ground.0.register("web", vec![instance("10.0.0.3")]));
    sleep(Duration::from_millis(300)).await;
    ground.0.begin_anew();
    ground.0.register("web", vec![instance("10.0.0.4")]);
    says(&mut watch, &["10.0.0.4"]).await;
}

#[tokio::test]
async fn a_server_that_never_waits_is_not_asked_without_pause() {
    let ground = Service::start(&["10.0.0.1"]).await;
    ground.0.claim(0);
    let mut watch = open(&ground.url()).unwrap();
    says(&mut watch, &["10.0.0.1"]).await;
    ground.0.asked();
    let more =
        tokio::time::timeout(Duration::from_secs(2), futures::StreamExt::next(&mut watch)).await;
    assert!(more.is_err(), "the same answer is not told again");
    let asked = ground.0.asked();
    assert!(
        asked.len() <= 21,
        "{} questions in two seconds",
        asked.len()
    );
    assert!(
        asked.iter().all(|asked| !asked.contains("index=0")),
        "{asked:?}"
    );
}

#[tokio::test]
async fn questions_block_and_carry_what_was_asked_for() {
    let ground = Service::start(&["10.0.0.1"]).await;
    let mut watch = open(&format!(
        "{}?dc=dc 1&tag=a,b%26&near=_agent&wait=30s",
        ground.url()
    ))
    .unwrap();
    says(&mut watch, &["10.0.0.1"]).await;
    let more =
        tokio::time::timeout(Duration::from_secs(1), futures::StreamExt::next(&mut watch)).await;
    assert!(more.is_err());
    let expected = "/v1/health/service/web?passing=1&wait=30000ms&dc=dc%201&near=_agent&tag=a&tag=b%2526&index=";
    assert_eq!(
        ground.0.asked(),
        [format!("{expected}0"), format!("{expected}11")]
    );
}

#[tokio::test]
async fn an_instance_that_is_registered_again_or_does_not_pass_is_told() {
    let ground = Service::start(&["10.0.0.1"]).await;
    let mut watch = open(&ground.url()).unwrap();
    let identity = |answer: &tether_discovery_backends::Answer| {
        let traits = answer
            .targets
            .values()
            .next()
            .map(|traits| (traits.identity.clone(), traits.weight, traits.zone.clone()));
        traits.unwrap_or_default()
    };
    let first = until(&mut watch, |answer| answer.targets.len() == 1).await;
    assert_eq!(
        identity(&first),
        ("10.0.0.1/11".to_owned(), 3, "z".to_owned())
    );

    let (id, mut failing) = instance("10.0.0.1");
    failing.passing = false;
    ground.0.register("web", vec![(id, failing)]);
    says(&mut watch, &[]).await;
    ground.0.register("web", Vec::new());
    ground.0.register("web", vec![instance("10.0.0.1")]);
    let again = until(&mut watch, |answer| answer.targets.len() == 1).await;
    assert_eq!(identity(&again).0, "10.0.0.1/14");
}

#[tokio::test]
async fn what_a_token_may_not_see_and_what_is_not_consul_is_an_error_that_says_so() {
    let consul = Consul::start().await;
    consul.register("web", vec![instance("10.0.0.1")]);
    consul.ask_for_token("geheim");
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("token");
    let url = format!("consul://{}/web", consul.0.address());
    let with = format!("{url}?token_file={}", file.display());

    let error = fails(&mut open(&url).unwrap(), &set(&[])).await;
    assert!(
        error.contains("hides") && error.contains("token_file"),
        "{error}"
    );
    let mut watch = open(&with).unwrap();
    let error = fails(&mut watch, &set(&[])).await;
    assert!(
        error.contains(file.to_str().unwrap()) && error.contains("No such file"),
        "{error}"
    );
    fs::write(&file, "wrong\n").unwrap();
    let refused = async {
        loop {
            let error = fails(&mut watch, &set(&[])).await;
            if error.contains("403") {
                return error;
            }
        }
    };
    let error = tokio::time::timeout(crate::rules::PATIENCE, refused)
        .await
        .unwrap();
    assert!(
        error.contains("token_file") && !error.contains("wrong"),
        "{error}"
    );
    fs::write(&file, "geheim\n").unwrap();
    says(&mut watch, &["10.0.0.1"]).await;

    for (status, body, why) in [
        (500, "No cluster leader", "No cluster leader"),
        (200, "<html>", "X-Consul-Index"),
        (429, "slow", "429"),
    ] {
        consul.break_with(Some((status, body)));
        let error = fails(&mut open(&with).unwrap(), &set(&[])).await;
        assert!(error.contains(why) && error.contains(&url), "{error}");
        consul.break_with(None);
    }
}
