//! The invariants W1 to W3 of the protocol, one property each, over every kind of message.

use proptest::{collection::vec, option, prelude::*};
use tether_shim_protocol::{
    Cause, Credentials, Dead, Decoder, Error, Hello, Identity, Input, Launch, Limit, Logs,
    MAX_FRAME_BYTES, Message, OnLinkLoss, OnOwnerExit, Orderer, Phase, Proof, Seat, SpawnFailure,
    Stage, Terms, Walls, decode, encode,
};

fn bytes() -> impl Strategy<Value = Vec<u8>> {
    vec(any::<u8>(), 0..40)
}

fn cause() -> impl Strategy<Value = Cause> {
    let orderer = prop::sample::select(Orderer::ALL);
    prop_oneof![
        orderer.prop_map(Cause::Ordered),
        prop::sample::select(vec![
            Cause::Exited,
            Cause::Signaled,
            Cause::OutOfMemory,
            Cause::LeaseExpired,
            Cause::OwnerGone,
            Cause::AgentGone,
            Cause::NeverReady,
            Cause::SpawnFailed,
            Cause::Unknown,
            Cause::Unhealthy,
            Cause::Recycled,
        ]),
    ]
}

fn identity() -> impl Strategy<Value = Identity> {
    (any::<u32>(), any::<u64>()).prop_map(|(pid, start_ticks)| Identity { pid, start_ticks })
}

fn seat() -> impl Strategy<Value = Seat> {
    (any::<u32>(), any::<u64>()).prop_map(|(slot, generation)| Seat { slot, generation })
}

fn on_owner_exit() -> impl Strategy<Value = OnOwnerExit> {
    prop::sample::select(vec![OnOwnerExit::Kill, OnOwnerExit::Ignore])
}

fn failure() -> impl Strategy<Value = SpawnFailure> {
    let stages = vec![
        Stage::Pipe,
        Stage::Fork,
        Stage::Cgroup,
        Stage::Chdir,
        Stage::Exec,
        Stage::Namespace,
        Stage::Limits,
        Stage::User,
    ];
    (prop::sample::select(stages), any::<i32>())
        .prop_map(|(stage, errno)| SpawnFailure { stage, errno })
}

fn launch() -> impl Strategy<Value = Message> {
    let what = (
        any::<u16>(),
        ".{0,30}",
        vec(bytes(), 0..5),
        vec((bytes(), bytes()), 0..5),
    );
    let places = (
        bytes(),
        bytes(),
        (walls(), terms(), input(), logs()),
        option::of(identity()),
    );
    let numbers = (
        any::<([u64; 3], i32, u32)>(),
        vec(any::<u32>(), 0..3),
        option::of(seat()),
    );
    (what, places, on_owner_exit(), on_link_loss(), numbers).prop_map(
        |(
            (protocol, worker, argv, env),
            (cwd, dir, (walls, terms, input, logs), owner),
            exit,
            loss,
            ((numbers, stop_signal, sockets), wait_for, seat),
        )| {
            Message::Launch(Box::new(Launch {
                protocol,
                worker,
                argv,
                env,
                cwd,
                dir,
                walls,
                terms,
                input,
                logs,
                stop_signal,
                owner,
                on_owner_exit: exit,
                on_link_loss: loss,
                kill_grace_ms: numbers[0],
                node_deadline_ns: numbers[1],
                owner_deadline_ns: numbers[2],
                seat,
                sockets,
                wait_for,
            }))
        },
    )
}

fn walls() -> impl Strategy<Value = Walls> {
    let paths = (option::of(bytes()), vec(bytes(), 0..3), option::of(bytes()));
    (any::<[bool; 4]>(), paths).prop_map(|(flags, (cgroup, limiting, forked_from))| {
        let [namespace, user_namespace, private_proc, born_in_cgroup] = flags;
        Walls {
            namespace,
            user_namespace,
            private_proc,
            cgroup,
            cgroup_is_made: private_proc,
            born_in_cgroup,
            limiting,
            forked_from,
        }
    })
}

fn terms() -> impl Strategy<Value = Terms> {
    let credentials = (any::<[u32; 2]>(), vec(any::<u32>(), 0..3))
        .prop_map(|([uid, gid], groups)| Credentials { uid, gid, groups });
    let limit = (any::<u8>(), any::<[u64; 2]>()).prop_map(|(resource, [soft, hard])| Limit {
        resource,
        soft,
        hard,
    });
    let numbers = (option::of(any::<u32>()), option::of(any::<i32>()));
    (
        option::of(credentials),
        numbers,
        vec(limit, 0..3),
        vec(any::<u32>(), 0..3),
    )
        .prop_map(|(credentials, (umask, nice), limits, cpus)| Terms {
            credentials,
            umask,
            nice,
            limits,
            cpus,
        })
}

fn input() -> impl Strategy<Value = Input> {
    (bytes(), any::<[bool; 2]>()).prop_map(|(data, [hold_open, pty])| Input {
        data,
        hold_open,
        pty,
    })
}

fn logs() -> impl Strategy<Value = Logs> {
    (any::<[u64; 2]>(), any::<u32>()).prop_map(|([limit_bytes, max_age_ms], files)| Logs {
        limit_bytes,
        max_age_ms,
        files,
    })
}

fn on_link_loss() -> impl Strategy<Value = OnLinkLoss> {
    prop::sample::select(vec![OnLinkLoss::Kill, OnLinkLoss::Hold])
}

fn hello() -> impl Strategy<Value = Message> {
    let phases = vec![
        Phase::Waiting,
        Phase::Starting,
        Phase::Running,
        Phase::Ending,
        Phase::Dead,
    ];
    let names = (any::<u16>(), ".{0,10}", ".{0,30}");
    (
        names,
        any::<[u32; 2]>(),
        (any::<u64>(), any::<u64>(), option::of(seat())),
        prop::sample::select(phases),
    )
        .prop_map(
            |(
                (protocol, version, worker),
                [shim_pid, worker_pid],
                (started_ns, page, seat),
                phase,
            )| {
                // Those of before say nothing of a page.
                let knows_pages = protocol >= 4;
                let (page, seat) = if knows_pages { (page, seat) } else { (0, None) };
                Message::Hello(Hello {
                    page,
                    seat,
                    protocol,
                    version,
                    worker,
                    shim_pid,
                    worker_pid,
                    started_ns,
                    phase,
                })
            },
        )
}

fn dead() -> impl Strategy<Value = Message> {
    let ends = (
        option::of(any::<i32>()),
        option::of(any::<i32>()),
        any::<bool>(),
    );
    (
        cause(),
        ends,
        option::of(failure()),
        any::<[u32; 2]>(),
        any::<[u64; 5]>(),
        (
            bytes(),
            prop::sample::select(vec![Proof::Namespace, Proof::Cgroup, Proof::Tree]),
        ),
    )
        .prop_map(
            |(
                cause,
                (exit_code, signal, core),
                spawn_failure,
                counts,
                numbers,
                (stderr_tail, proof),
            )| {
                Message::Dead(Box::new(Dead {
                    cause,
                    exit_code,
                    signal,
                    core,
                    spawn_failure,
                    reaped: counts[0],
                    survivors: counts[1],
                    unix_ms: numbers[0],
                    max_rss_kib: numbers[1],
                    cpu_ms: numbers[2],
                    log_lost_bytes: numbers[3],
                    peak_memory_bytes: numbers[4],
                    proof,
                    stderr_tail,
                }))
            },
        )
}

fn message() -> impl Strategy<Value = Message> {
    prop_oneof![
        launch(),
        any::<[u64; 2]>().prop_map(|[node_deadline_ns, owner_deadline_ns]| Message::Renew {
            node_deadline_ns,
            owner_deadline_ns
        }),
        (option::of(identity()), on_owner_exit(), on_link_loss()).prop_map(
            |(owner, on_owner_exit, on_link_loss)| Message::Ties {
                owner,
                on_owner_exit,
                on_link_loss,
            }
        ),
        (cause(), any::<u64>()).prop_map(|(cause, grace_ms)| Message::Stop { cause, grace_ms }),
        any::<i32>().prop_map(|signo| Message::Signal { signo }),
        Just(Message::Acknowledge),
        Just(Message::Look),
        hello(),
        any::<u32>().prop_map(|pid| Message::Started { pid }),
        failure().prop_map(Message::SpawnFailed),
        cause().prop_map(|cause| Message::Ending { cause }),
        any::<bool>().prop_map(|halted| Message::Halted { halted }),
        dead(),
    ]
}

/// Reads until the decoder wants more bytes, counting errors and keeping messages.
fn drain(decoder: &mut Decoder, messages: &mut Vec<Message>) -> Result<(), Error> {
    while let Some(message) = decoder.next_message()? {
        messages.push(message);
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    /// W1.
    #[test]
    fn messages_survive_a_stream_that_is_cut_anywhere(
        sent in vec(message(), 1..6),
        cuts in vec(1usize..50, 1..20),
    ) {
        let stream: Vec<u8> = sent.iter().flat_map(encode).collect();

        let mut decoder = Decoder::default();
        let mut received = Vec::new();
        let mut rest = stream.as_slice();
        for cut in cuts.iter().cycle() {
            let (now, later) = rest.split_at(rest.len().min(*cut));
            decoder.push(now);
            drain(&mut decoder, &mut received).unwrap();
            rest = later;
            if rest.is_empty() {
                break;
            }
        }

        prop_assert_eq!(received, sent);
        prop_assert_eq!(decoder.held_bytes(), 0);
    }

    /// W2: frames of any kind with any body, and streams without any frames in them.
    #[test]
    fn no_bytes_make_the_decoder_panic_or_hoard(
        kinds in vec((any::<u8>(), vec(any::<u8>(), 0..200)), 0..5),
        noise in vec(any::<u8>(), 0..300),
    ) {
        let mut stream = Vec::new();
        for (kind, body) in kinds {
            stream.extend((body.len() as u32 + 1).to_le_bytes());
            stream.push(kind);
            stream.extend(body);
        }
        stream.extend(noise);

        let mut decoder = Decoder::default();
        for chunk in stream.chunks(7) {
            decoder.push(chunk);
            loop {
                match decoder.next_message() {
                    Ok(Some(_)) => {}
                    Ok(None) => break,
                    Err(Error::TooLong { .. }) => return Ok(()),
                    Err(_) => {}
                }
            }
            prop_assert!(decoder.held_bytes() <= MAX_FRAME_BYTES + 4);
        }
    }

    /// W3: a body that lost its end or gained a byte is never mistaken for a message.
    #[test]
    fn a_frame_is_understood_whole_or_not_at_all(message in message(), lost in 1usize..20) {
        let frame = encode(&message);
        let body = &frame[4..];
        let framed = |body: &[u8]| {
            let mut frame = (body.len() as u32).to_le_bytes().to_vec();
            frame.extend(body);
            frame
        };

        let short = decode(&framed(&body[..body.len().saturating_sub(lost)]));
        let long = decode(&framed(&[body, &[0]].concat()));

        prop_assert_eq!(short, Err(Error::Truncated));
        prop_assert_eq!(long, Err(Error::TrailingBytes));
    }

    /// W2, nearer to home: one flipped byte of a good frame is an answer, never a panic.
    #[test]
    fn a_flipped_byte_is_answered(message in message(), at in any::<prop::sample::Index>(), to: u8) {
        let mut frame = encode(&message);
        let at = at.index(frame.len());
        frame[at] = to;

        if let Ok(read) = decode(&frame) {
            prop_assert_eq!(encode(&read), frame);
        }
    }
}

#[test]
fn a_frame_that_announces_too_much_is_refused_before_it_is_awaited() {
    let mut decoder = Decoder::default();

    decoder.push(&(MAX_FRAME_BYTES as u32 + 1).to_le_bytes());

    let announced = MAX_FRAME_BYTES as u32 + 1;
    assert_eq!(decoder.next_message(), Err(Error::TooLong { announced }));
}

#[test]
fn a_bad_frame_is_skipped_and_the_next_one_is_read() {
    let mut decoder = Decoder::default();
    decoder.push(&[1, 0, 0, 0, 200]);
    decoder.push(&encode(&Message::Acknowledge));

    assert_eq!(decoder.next_message(), Err(Error::UnknownKind(200)));
    assert_eq!(decoder.next_message(), Ok(Some(Message::Acknowledge)));
    assert_eq!(decoder.next_message(), Ok(None));
}

#[test]
fn the_bytes_on_the_wire_stay_the_same() {
    let stop = Message::Stop {
        cause: Cause::Ordered(Orderer::Scale),
        grace_ms: 5000,
    };

    let frame = encode(&stop);

    assert_eq!(frame, [11, 0, 0, 0, 4, 7, 2, 0x88, 0x13, 0, 0, 0, 0, 0, 0]);
}

/// A shim may be adopted by an agent of a later version: what they say to each other then has had these
/// very bytes since protocol 2. Only `Launch`, between halves of one build, may change freely.
#[test]
fn what_an_adopting_agent_says_and_hears_has_always_had_these_bytes() {
    let hex = |message: &Message| -> String {
        encode(message)
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect()
    };
    let hello = Hello {
        protocol: 2,
        version: "1".into(),
        worker: "a/0.1".into(),
        shim_pid: 3,
        worker_pid: 4,
        started_ns: 5,
        phase: Phase::Running,
        page: 0,
        seat: None,
    };
    let with_page = Hello {
        protocol: 4,
        page: 12,
        seat: Some(Seat {
            slot: 13,
            generation: 14,
        }),
        ..hello.clone()
    };
    let identity = Identity {
        pid: 6,
        start_ticks: 7,
    };
    let ties = Message::Ties {
        owner: Some(identity),
        on_owner_exit: OnOwnerExit::Kill,
        on_link_loss: OnLinkLoss::Hold,
    };
    let renew = Message::Renew {
        node_deadline_ns: 8,
        owner_deadline_ns: 9,
    };
    let stop = Message::Stop {
        cause: Cause::Ordered(Orderer::Agent),
        grace_ms: 10,
    };

    assert_eq!(
        hex(&renew),
        "11000000020800000000000000 0900000000000000".replace(' ', "")
    );
    assert_eq!(hex(&ties), "1000000003010600000007000000000000000102");
    assert_eq!(
        hex(&stop),
        "0b000000040704 0a00000000000000".replace(' ', "")
    );
    assert_eq!(hex(&Message::Signal { signo: 15 }), "05000000050f000000");
    assert_eq!(hex(&Message::Acknowledge), "0100000006");
    assert_eq!(
        hex(&Message::Hello(hello)),
        "22000000410200010000003105000000612f302e3103000000040000000500000000000000 03"
            .replace(' ', "")
    );
    assert_eq!(
        hex(&Message::Hello(with_page)),
        "37000000410400010000003105000000612f302e3103000000040000000500000000000000 03 0c00000000000000 01 0d000000 0e00000000000000"
            .replace(' ', "")
    );
    assert_eq!(hex(&Message::Look), "0100000007");
    assert_eq!(hex(&Message::Started { pid: 11 }), "05000000420b000000");
    assert_eq!(
        hex(&Message::Ending {
            cause: Cause::LeaseExpired
        }),
        "03000000440400"
    );
    assert_eq!(hex(&Message::Halted { halted: true }), "020000004601");
}
