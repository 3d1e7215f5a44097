//! Servers that say odd things.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use hickory_resolver::proto::{
    op::ResponseCode,
    rr::{
        Name, RData, Record, RecordType,
        rdata::{CNAME, NS, SRV},
    },
};

use super::{
    addresses, fails,
    faulty::{Faulty, Over, address, error, kind, name, reply},
    listen, next, says, source,
};

#[tokio::test]
async fn an_answer_with_another_id_is_no_answer() {
    let server = Faulty::start(|query, _| {
        let mut forged = address(query, 66);
        forged.metadata.id = forged.metadata.id.wrapping_add(1);
        // Of the one kind nothing else comes, of the other the true answer after it.
        match kind(query) {
            RecordType::AAAA => vec![forged],
            _ => vec![forged, address(query, 1)],
        }
    })
    .await;
    let error = fails(&mut source(&format!("{}/web.test:1", server.at), "")).await;
    assert!(error.contains("does not answer"), "{error}");

    let server = Faulty::start(|query, _| {
        let mut forged = address(query, 66);
        forged.metadata.id = forged.metadata.id.wrapping_add(1);
        vec![forged, address(query, 1)]
    })
    .await;
    let mut watch = source(&format!("{}/web.test:1", server.at), "");
    says(&mut watch, &["10.0.0.1:1"]).await;
}

#[tokio::test]
async fn half_an_answer_is_never_taken_for_a_whole_one() {
    let truncated = |over: Option<Over>| {
        Faulty::start(move |query, came| {
            let mut answer = address(query, 1);
            answer.metadata.truncation = over.is_none_or(|over| over == came);
            match over {
                // Over TCP, nobody answers.
                None if came == Over::Tcp => Vec::new(),
                _ => vec![answer],
            }
        })
    };
    let whole_over_tcp = truncated(Some(Over::Udp)).await;
    let mut watch = source(&format!("{}/web.test:1", whole_over_tcp.at), "");
    says(&mut watch, &["10.0.0.1:1"]).await;
    let no_tcp = truncated(None).await;
    fails(&mut source(&format!("{}/web.test:1", no_tcp.at), "")).await;
    let cut_over_both = Faulty::start(|query, _| {
        let mut answer = address(query, 1);
        answer.metadata.truncation = true;
        vec![answer]
    })
    .await;
    fails(&mut source(&format!("{}/web.test:1", cut_over_both.at), "")).await;

    // One kind is answered, and the other fails.
    let one_kind = Faulty::start(|query, _| match kind(query) {
        RecordType::AAAA => vec![error(query, ResponseCode::ServFail)],
        _ => vec![address(query, 1)],
    })
    .await;
    fails(&mut source(&format!("{}/web.test:1", one_kind.at), "")).await;
    // Save where the other one only says that there is none of it, in the way of some old servers.
    let denied = Faulty::start(|query, _| match kind(query) {
        RecordType::AAAA => vec![error(query, ResponseCode::NXDomain)],
        _ => vec![address(query, 1)],
    })
    .await;
    let mut watch = source(&format!("{}/web.test:1", denied.at), "");
    says(&mut watch, &["10.0.0.1:1"]).await;
}

#[tokio::test]
async fn a_server_that_cuts_its_datagrams_without_a_word_can_be_asked_over_tcp() {
    // As Consul does where `enable_truncate` is not set: three of all, and nothing that says so.
    let server = Faulty::start(|query, over| {
        let mut answer = address(query, 1);
        let most = if over == Over::Udp { 3 } else { 8 };
        for last in 2..=most {
            answer.answers.extend(address(query, last).answers);
        }
        vec![answer]
    })
    .await;
    let target = format!("{}/web.test:1", server.at);
    let all: Vec<String> = (1..=8).map(|last| format!("10.0.0.{last}:1")).collect();
    let all: Vec<&str> = all.iter().map(String::as_str).collect();

    says(&mut source(&target, ""), &all[..3]).await;
    says(&mut source(&target, "tcp=1"), &all).await;
}

#[tokio::test]
async fn a_server_that_only_knows_whom_to_ask_says_nothing_of_who_serves() {
    let server = Faulty::start(|query, _| {
        let mut reply = reply(query);
        let to = RData::NS(NS(Name::from_ascii("ns.elsewhere.").unwrap()));
        reply
            .authorities
            .push(Record::from_rdata(name(query), 60, to));
        vec![reply]
    })
    .await;
    let error = fails(&mut source(&format!("{}/web.test:1", server.at), "")).await;
    assert!(error.contains("whom else"), "{error}");
}

#[tokio::test]
async fn aliases_in_a_circle_or_without_end_are_given_up_after_a_few() {
    let server = Faulty::start(|query, _| {
        let (asked, mut reply) = (name(query), reply(query));
        let other = if asked.to_ascii() == "a.test." {
            "b.test."
        } else {
            "a.test."
        };
        let other = RData::CNAME(CNAME(Name::from_ascii(other).unwrap()));
        reply.answers.push(Record::from_rdata(asked, 1, other));
        vec![reply]
    })
    .await;
    let error = fails(&mut source(&format!("{}/a.test:1", server.at), "")).await;
    assert!(error.contains("circle"), "{error}");

    let server = Faulty::start(|query, _| {
        let asked = name(query);
        let number: u32 = asked.to_ascii()[1..]
            .split('.')
            .next()
            .unwrap()
            .parse()
            .unwrap();
        let next = Name::from_ascii(format!("n{}.test.", number + 1)).unwrap();
        let mut reply = reply(query);
        reply
            .answers
            .push(Record::from_rdata(asked, 1, RData::CNAME(CNAME(next))));
        vec![reply]
    })
    .await;
    let mut watch = source(&format!("{}/n0.test:1", server.at), "");

    let error = fails(&mut watch).await;

    assert!(error.contains("16 times"), "{error}");
    // Of each kind, with room for some that were sent twice.
    assert!(server.asked() <= 2 * 16 + 4, "{}", server.asked());
}

/// A server that does not see the circle itself.
#[tokio::test]
async fn a_target_whose_aliases_lead_in_a_circle_is_left_out_and_hides_no_other_one() {
    let server = Faulty::start(|query, _| {
        let (asked, mut reply) = (name(query), reply(query));
        let to = |target: &str| Name::from_ascii(target).unwrap();
        let data: Vec<RData> = match asked.to_ascii().as_str() {
            "_p._tcp.test." => ["good.test.", "circle.test."]
                .map(|target| RData::SRV(SRV::new(0, 1, 7, to(target))))
                .into(),
            "circle.test." => vec![RData::CNAME(CNAME(to("circus.test.")))],
            "circus.test." => vec![RData::CNAME(CNAME(to("circle.test.")))],
            _ => return vec![address(query, 1)],
        };
        let records = data.into_iter();
        reply
            .answers
            .extend(records.map(|data| Record::from_rdata(asked.clone(), 1, data)));
        vec![reply]
    })
    .await;
    let mut watch = source("_p._tcp.test", &format!("srv=1&servers={}", server.at));

    let answer = next(&mut watch).await.unwrap();

    assert_eq!(addresses(&answer), ["10.0.0.1:7"]);
    assert_eq!(answer.left_out, 1);
    for part in ["`circle.test.`", "circle, back to"] {
        assert!(answer.reasons[0].contains(part), "{answer:?}");
    }
}

#[tokio::test]
async fn a_server_that_fails_is_asked_less_and_less_until_it_answers() {
    let mended = Arc::new(AtomicBool::new(false));
    let works = Arc::clone(&mended);
    let server = Faulty::start(move |query, _| match works.load(Ordering::Relaxed) {
        true => vec![address(query, 1)],
        false => vec![error(query, ResponseCode::ServFail)],
    })
    .await;
    let mut watch = source(
        &format!("{}/web.test:1", server.at),
        "floor=200ms&ceiling=3s",
    );

    // Asked at 0 s, 0.2 s, 0.6 s, 1.4 s and 3.0 s, and each a little later.
    listen(&mut watch, Duration::from_millis(3_200)).await;
    let asked = server.asked();
    assert!((6..=12).contains(&asked), "asked {asked} times, twice each");

    mended.store(true, Ordering::Relaxed);
    says(&mut watch, &["10.0.0.1:1"]).await;
}
