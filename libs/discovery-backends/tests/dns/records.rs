//! One real server: what its records come to.

use std::{fmt::Write as _, time::Duration};

use super::{addresses, fails, listen, named::Named, next, says, source, weights};

#[tokio::test]
async fn records_of_both_kinds_are_followed_over_aliases_as_they_change() {
    let mut named =
        Named::start("web CNAME front\nfront CNAME back\nback A 10.0.0.1\nback AAAA fd00::1");
    let mut watch = source(&format!("{}/web.test:50051", named.at), "");
    says(&mut watch, &["10.0.0.1:50051", "[fd00::1]:50051"]).await;

    named.set("web CNAME back\nback A 10.0.0.1\nback A 10.0.0.2");
    says(&mut watch, &["10.0.0.1:50051", "10.0.0.2:50051"]).await;
    named.set("web CNAME back\nback TXT nobody");
    says(&mut watch, &[]).await;
    named.set("web A 10.0.0.3");
    says(&mut watch, &["10.0.0.3:50051"]).await;
}

/// Both where a server tells the addresses of targets with the records, and where it does not.
#[tokio::test]
async fn services_have_ports_and_weights_and_only_the_lowest_priority_that_is_there_serves() {
    for minimal in ["no", "yes"] {
        let records = "_grpc._tcp.train SRV 10 7 1001 a
            _grpc._tcp.train SRV 10 0 1002 b
            _grpc._tcp.train SRV 20 1 1003 c
            a A 10.0.0.1
            b A 10.0.0.2
            b AAAA fd00::2
            c A 10.0.0.3";
        let mut named = Named::with(records, 1, &format!("minimal-responses {minimal};"));
        let mut watch = source(
            "_grpc._tcp.train.test",
            &format!("srv=1&servers={}", named.at),
        );

        let first = next(&mut watch).await.unwrap();
        let expected = [
            ("10.0.0.1:1001", 7),
            ("10.0.0.2:1002", 1),
            ("[fd00::2]:1002", 1),
        ];
        let expected = expected.map(|(address, weight)| (address.to_owned(), weight));
        assert_eq!(
            weights(&first),
            expected.into(),
            "minimal-responses {minimal}"
        );
        assert_eq!(named.asked("a.test IN A") > 0, minimal == "yes");

        // Those of the lowest priority have no address any more, and one of the next has none either.
        named.set("_grpc._tcp.train SRV 10 1 1001 a\n_grpc._tcp.train SRV 20 1 1003 c\n_grpc._tcp.train SRV 20 1 1004 a\nc A 10.0.0.3");
        says(&mut watch, &["10.0.0.3:1003"]).await;
        let left_out = next(&mut watch).await.unwrap();
        assert_eq!(left_out.left_out, 1);
        assert!(
            left_out.reasons[0].contains("`a.test.`: it has no address"),
            "{left_out:?}"
        );

        named.set("_grpc._tcp.train SRV 10 1 1001 a");
        let error = fails(&mut watch).await;
        assert!(error.contains("a.test."), "{error}");
        named.set("_grpc._tcp.train SRV 0 0 0 .");
        says(&mut watch, &[]).await;
    }
}

#[tokio::test]
async fn an_answer_larger_than_a_datagram_is_taken_over_tcp() {
    let mut records = String::new();
    for number in 0..3_000 {
        writeln!(records, "many A 10.1.{}.{}", number / 250, number % 250 + 1).unwrap();
    }
    for number in 0..200 {
        writeln!(
            records,
            "_all._tcp SRV 0 1 {} host-{number}",
            2_000 + number
        )
        .unwrap();
        writeln!(records, "host-{number} A 10.2.0.{}", number + 1).unwrap();
    }
    let named = Named::with(&records, 1, "max-records-per-type 0;");
    let servers = format!("servers={}", named.at);

    let many = next(&mut source("many.test:1", &servers)).await.unwrap();
    assert_eq!(many.targets.len(), 3_000);
    assert!(
        named.asked("many.test IN A") >= 2,
        "over UDP, and then over TCP"
    );
    let all = next(&mut source("_all._tcp.test", &format!("srv=1&{servers}")))
        .await
        .unwrap();
    assert_eq!(all.targets.len(), 200);
}

#[tokio::test]
async fn a_name_that_is_not_there_is_an_error_or_nobody_as_is_asked_for() {
    let mut named = Named::start("web A 10.0.0.1");
    let target = format!("{}/web.test:1", named.at);
    let (mut strict, mut lenient) = (source(&target, ""), source(&target, "nxdomain=empty"));
    says(&mut strict, &["10.0.0.1:1"]).await;
    says(&mut lenient, &["10.0.0.1:1"]).await;

    named.set("other A 10.0.0.2");
    let error = fails(&mut strict).await;
    assert!(
        error.contains("`web.test.`") && error.contains("NXDOMAIN"),
        "{error}"
    );
    says(&mut lenient, &[]).await;

    named.set("web A 10.0.0.3");
    says(&mut strict, &["10.0.0.3:1"]).await;
    says(&mut lenient, &["10.0.0.3:1"]).await;
}

#[tokio::test]
async fn a_time_to_live_of_nothing_is_no_storm_of_queries() {
    let named = Named::start("web 0 A 10.0.0.1");
    let mut watch = source(&format!("{}/web.test:1", named.at), "");
    says(&mut watch, &["10.0.0.1:1"]).await;

    listen(&mut watch, Duration::from_millis(3_500)).await;

    // At the start, and then once a second; a query may be lost and sent again.
    let asked = named.asked("web.test IN A");
    assert!((2..=6).contains(&asked), "asked {asked} times");
}

#[tokio::test]
async fn what_is_not_there_is_not_asked_for_before_its_zone_lets_that_end_and_not_after_the_ceiling()
 {
    let named = Named::with("", 60, "");
    let target = format!("{}/gone.test:1", named.at);
    let (mut patient, mut bounded) = (source(&target, ""), source(&target, "ceiling=1s"));
    let _ = (fails(&mut patient).await, fails(&mut bounded).await);
    let before = named.asked("gone.test IN A");

    listen(&mut patient, Duration::from_millis(2_500)).await;
    assert_eq!(named.asked("gone.test IN A"), before);
    let _ = (fails(&mut bounded).await, fails(&mut bounded).await);
    assert!(named.asked("gone.test IN A") >= before + 2);
}

#[tokio::test]
async fn a_name_is_searched_for_in_domains_where_that_is_asked_for() {
    let named = Named::start("web.b A 10.0.0.1\nonly.a TXT nobody");
    let servers = format!("servers={}", named.at);
    let search = format!("{servers}&search=a.test,b.test");
    says(&mut source("web:1", &search), &["10.0.0.1:1"]).await;
    says(&mut source("only:1", &search), &[]).await;
    // Names are complete otherwise, and one with its dot is so always.
    for complete in [source("web:1", &servers), source("web.:1", &search)].iter_mut() {
        fails(complete).await;
    }
}

#[tokio::test]
async fn aliases_in_a_circle_and_more_hosts_than_anybody_has_are_errors() {
    let mut records = "a CNAME b\nb CNAME c\nc CNAME a\n".to_owned();
    for number in 0..600 {
        writeln!(records, "_many._tcp SRV 0 1 1 host-{number}.elsewhere.").unwrap();
    }
    let named = Named::with(&records, 1, "max-records-per-type 0;");
    let servers = format!("servers={}", named.at);

    // It sees the circle itself; one that does not is among the faults.
    let error = fails(&mut source("a.test:1", &servers)).await;
    assert!(error.contains("Server Failure"), "{error}");
    let error = fails(&mut source("_many._tcp.test", &format!("srv=1&{servers}"))).await;
    assert!(error.contains("600 hosts"), "{error}");
    assert_eq!(named.asked("host-1.elsewhere IN A"), 0);
}

#[tokio::test]
async fn entries_that_nobody_could_call_are_left_out_with_a_word() {
    let named = Named::start(
        "_p._tcp SRV 0 1 0 a\n_p._tcp SRV 0 1 1 a\n_p._tcp SRV 0 1 2 b\na A 10.0.0.1\nb A 0.0.0.0\nb A 224.0.0.1",
    );
    let mut watch = source("_p._tcp.test", &format!("srv=1&servers={}", named.at));

    let answer = next(&mut watch).await.unwrap();

    assert_eq!(addresses(&answer), ["10.0.0.1:1"]);
    assert_eq!(answer.left_out, 3);
    let reasons = answer.reasons.join("\n");
    for part in ["port 0", "0.0.0.0:2", "224.0.0.1:2"] {
        assert!(reasons.contains(part), "{reasons}");
    }
}
