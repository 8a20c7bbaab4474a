//! Dialogues of a client with a `Connection`: what is said on the wire, and what is told.

use std::time::{Duration, Instant};

use quiche::h3::{Header, NameValue};
use quiche::{ConnectionId, Error, RecvInfo, Shutdown};

use crate::connection::Connection;
use crate::frames::{self, code, kind};
use crate::http3::Http3;
use crate::output::Chunk;
use crate::pair::{LIMITS, Pair};

fn request(method: &str, path: &str, more: &[(&str, &str)]) -> Vec<u8> {
    let mut fields = vec![
        Header::new(b":method", method.as_bytes()),
        Header::new(b":scheme", b"https"),
        Header::new(b":authority", b"a.example"),
        Header::new(b":path", path.as_bytes()),
    ];
    fields.extend(more.iter().map(|(name, value)| Header::new(name.as_bytes(), value.as_bytes())));
    let mut out = Vec::new();
    frames::put_headers(&mut out, &fields).unwrap();
    out
}

fn data(body: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    frames::put_frame_head(&mut out, kind::DATA, body.len());
    out.extend_from_slice(body);
    out
}

/// Frames of an answer: type and payload, HEADERS as `name=value` words.
fn parsed(mut bytes: &[u8]) -> Vec<(u64, String)> {
    let mut out = Vec::new();
    while let Some((kind, length, head)) = frames::take_frame_head(bytes) {
        let end = head + usize::try_from(length).unwrap();
        let payload = &bytes[head..end];
        let words = if kind == kind::HEADERS {
            let frames::Section::Fields(fields) = frames::read_section(payload, 100, 4096).unwrap() else { panic!("too large") };
            let word = |field: &Header| [field.name(), field.value()].map(String::from_utf8_lossy).join("=");
            fields.iter().map(word).collect::<Vec<_>>().join(" ")
        } else {
            String::from_utf8_lossy(payload).into_owned()
        };
        out.push((kind, words));
        bytes = &bytes[end..];
    }
    out
}

impl Pair {
    fn http(&mut self, action: impl FnOnce(&mut Http3, &mut quiche::Connection)) {
        let http = self.server.http.as_mut().unwrap();
        action(http, &mut self.server.quic);
        self.exchange();
    }

    fn respond(&mut self, stream: u64, status: u16, body: &[u8]) {
        let body = Chunk::Owned(body.to_vec());
        self.http(|http, quic| http.respond(quic, &LIMITS, stream, status, &[(b"server", b"q")], body));
    }

    fn close_of_server(&self) -> Option<(bool, u64)> {
        self.client.peer_error().map(|error| (error.is_app, error.error_code))
    }
}

#[test]
fn a_request_is_answered() {
    let mut pair = Pair::new();
    let config = quiche::h3::Config::new().unwrap();
    let mut http = quiche::h3::Connection::with_transport(&mut pair.client, &config).unwrap();
    let fields = [(":method", "GET"), (":scheme", "https"), (":authority", "a.example"), (":path", "/x")];
    let fields = fields.map(|(name, value)| Header::new(name.as_bytes(), value.as_bytes()));
    let stream = http.send_request(&mut pair.client, &fields, true).unwrap();
    pair.exchange();
    assert_eq!(pair.app.take(), ["0 GET /x end"]);
    pair.respond(stream, 200, b"hello");
    let quiche::h3::Event::Headers { list, more_frames: true } = http.poll(&mut pair.client).unwrap().1 else { panic!("no head") };
    assert_eq!(list, [(":status", "200"), ("server", "q"), ("content-length", "5")].map(|(n, v)| Header::new(n.as_bytes(), v.as_bytes())));
    let mut body = [0; 10];
    assert_eq!(http.poll(&mut pair.client), Ok((stream, quiche::h3::Event::Data)));
    assert_eq!(http.recv_body(&mut pair.client, stream, &mut body), Ok(5));
    assert_eq!(http.poll(&mut pair.client), Ok((stream, quiche::h3::Event::Finished)));
}

#[test]
fn any_split_of_a_request_tells_the_same() {
    let mut trailers = Vec::new();
    frames::put_headers(&mut trailers, &[Header::new(b"x-sum", b"1")]).unwrap();
    let head = request("POST", "/", &[("content-length", "5")]);
    let bytes = [head, b"\x21\x02xx".to_vec(), data(b"he"), data(b"llo"), trailers].concat();
    for step in [1, 2, 3, 7, bytes.len()] {
        let mut pair = Pair::new();
        for piece in bytes.chunks(step) {
            pair.write(0, piece, false);
        }
        pair.write(0, b"", true);
        assert_eq!((pair.app.take(), pair.app.body), (vec!["0 POST /".to_owned(), "0 end 1".to_owned()], 5), "{step}");
    }
}

#[test]
fn an_answer_in_pieces_with_a_1xx_and_trailers() {
    let mut pair = Pair::new();
    pair.write(0, &request("GET", "/", &[]), true);
    let fields: [(&[u8], &[u8]); 1] = [(b"link", b"</a>")];
    pair.http(|http, quic| http.inform(quic, &LIMITS, 0, 103, &fields));
    pair.http(|http, quic| http.send_head(quic, &LIMITS, 0, 200, &fields, false));
    pair.http(|http, quic| assert_eq!(http.send_data(quic, &LIMITS, 0, Chunk::Owned(b"one".to_vec()), false), 0));
    pair.http(|http, quic| http.send_trailers(quic, &LIMITS, 0, &[(b"x-sum", b"1")]));
    let answer = parsed(&pair.read(0).unwrap());
    let words = [":status=103 link=</a>", ":status=200 link=</a>", "one", "x-sum=1"];
    assert_eq!(answer, [1, 1, 0, 1].into_iter().zip(words.map(str::to_owned)).collect::<Vec<_>>());
}

#[test]
fn an_answer_to_head_has_no_body() {
    let mut pair = Pair::new();
    pair.write(0, &request("HEAD", "/", &[]), true);
    pair.respond(0, 200, b"hello");
    assert_eq!(parsed(&pair.read(0).unwrap()), [(1, ":status=200 server=q content-length=5".to_owned())]);
}

#[test]
fn an_oversize_or_unfinished_request_costs_its_own_stream() {
    let fields: Vec<_> = (0..30).map(|at| (format!("x-{at}"), "1")).collect();
    let many: Vec<_> = fields.iter().map(|(name, value)| (name.as_str(), *value)).collect();
    let long = "\u{7f}".repeat(LIMITS.header_bytes);
    let zeros = "0".repeat(5000); // Huffman makes it shorter on the wire than the limit
    for (bytes, told, status) in [
        (request("GET", "/", &many), "0 rejected 431 too_many_fields", Some(431)),
        (request("GET", "/", &[("x", &long)]), "0 rejected 431 header_too_large", Some(431)),
        (request("GET", "/", &[("x", &zeros)]), "0 rejected 431 header_too_large", Some(431)),
        (Vec::new(), "", None),
    ] {
        let mut pair = Pair::new();
        pair.write(0, &bytes, true);
        assert_eq!(pair.app.take().concat(), told);
        match status {
            Some(status) => assert_eq!(parsed(&pair.read(0).unwrap())[0].1, format!(":status={status} content-length=0")),
            None => assert_eq!(pair.read(0), Err(Error::StreamReset(code::REQUEST_INCOMPLETE))),
        }
        pair.write(4, &request("GET", "/next", &[]), true);
        assert_eq!(pair.app.take(), ["4 GET /next end"]);
    }
}

#[test]
fn a_body_of_another_length_than_announced_resets_its_stream() {
    for (body, end) in [(&b"123456"[..], false), (b"1234", true)] {
        let mut pair = Pair::new();
        pair.write(0, &[request("POST", "/", &[("content-length", "5")]), data(body)].concat(), end);
        let told = pair.app.take();
        assert_eq!(told[1], "0 rejected 400 body_length");
        assert_eq!(told.len(), 3);
        assert_eq!(pair.read(0), Err(Error::StreamReset(code::MESSAGE_ERROR)));
    }
}

#[test]
fn what_a_request_stream_may_not_carry_ends_the_connection() {
    let get = request("GET", "/", &[]);
    for (bytes, end, expected) in [
        (data(b"x"), false, code::FRAME_UNEXPECTED),
        (b"\x04\x00".to_vec(), false, code::FRAME_UNEXPECTED),
        (b"\x02\x00".to_vec(), false, code::FRAME_UNEXPECTED),
        (b"\x05\x00".to_vec(), false, code::FRAME_UNEXPECTED),
        ([get.clone(), get.clone(), get.clone()].concat(), false, code::FRAME_UNEXPECTED),
        (b"\x01\x03\x00\x00\x80".to_vec(), false, code::QPACK_DECOMPRESSION_FAILED),
        ([get, b"\x00\x05ab".to_vec()].concat(), true, code::FRAME_ERROR),
    ] {
        let mut pair = Pair::new();
        pair.write(0, &bytes, end);
        assert_eq!(pair.close_of_server(), Some((true, expected)), "{bytes:x?}");
        let last = pair.app.take().pop().unwrap();
        assert!(last.starts_with(&format!("closed {:?}", code::name(expected).unwrap())), "{last}");
    }
}

#[test]
fn empty_data_frames_are_bounded() {
    let mut pair = Pair::new();
    pair.write(0, &request("POST", "/", &[]), false);
    pair.write(0, &b"\x00\x00".repeat(2000), false);
    assert_eq!(pair.close_of_server(), Some((true, code::EXCESSIVE_LOAD)));
}

#[test]
fn rapid_resets_are_bounded() {
    let mut pair = Pair::new();
    let cut = (0..4000).step_by(4).find(|stream| {
        pair.write(*stream, &request("GET", "/", &[]), false);
        pair.client.stream_shutdown(*stream, Shutdown::Write, code::REQUEST_CANCELLED).unwrap();
        pair.exchange();
        let _ = pair.client.stream_recv(*stream, &mut [0; 10]);
        pair.close_of_server().is_some()
    });
    assert!(cut.is_some_and(|stream| (4 * 400..4 * 450).contains(&stream)), "{cut:?}");
    assert_eq!(pair.close_of_server(), Some((true, code::EXCESSIVE_LOAD)));
}

#[test]
fn a_request_body_is_read_as_it_is_consumed() {
    let mut pair = Pair::new();
    pair.write(0, &request("POST", "/", &[]), false);
    let body = data(&vec![b'x'; 200_000]);
    let (mut sent, mut consumed) = (0, 0);
    while pair.app.body < 200_000 {
        if sent < body.len() {
            sent += pair.client.stream_send(0, &body[sent..], false).unwrap_or(0);
        }
        pair.exchange();
        let held = pair.app.body - consumed;
        assert!(held > 0 && held as u64 <= LIMITS.stream_ahead(), "{held}");
        consumed += held;
        pair.http(|http, _| {
            http.consumed(0, held as u64);
        });
        pair.resume();
    }
    assert_eq!(sent, body.len());
}

#[test]
fn a_client_whose_body_nobody_consumes_is_stopped_by_its_window() {
    let mut pair = Pair::new();
    let whole = [request("POST", "/", &[]), data(&vec![b'x'; 200_000])].concat();
    let mut sent = 0;
    for _ in 0..100 {
        sent += pair.client.stream_send(0, &whole[sent..], false).unwrap_or(0);
        pair.exchange();
    }
    assert!(sent as u64 <= LIMITS.stream_window + 100, "{sent}");
    assert_eq!(pair.app.body as u64, LIMITS.stream_ahead());
}

#[test]
fn who_sends_more_than_the_client_takes_is_told_when_to_go_on() {
    let mut pair = Pair::new();
    pair.write(0, &request("GET", "/", &[]), true);
    let body = vec![b'x'; 1_000_000];
    let none: [(&[u8], &[u8]); 0] = [];
    let http = pair.server.http.as_mut().unwrap();
    http.send_head(&mut pair.server.quic, &LIMITS, 0, 200, &none, false);
    let queued = http.send_data(&mut pair.server.quic, &LIMITS, 0, Chunk::Owned(body.clone()), false);
    assert!(queued > LIMITS.high_water, "{queued}");
    let mut answer = Vec::new();
    while answer.len() < body.len() {
        let got = pair.read(0).unwrap();
        assert!(!got.is_empty());
        answer.extend(got);
    }
    assert_eq!(pair.app.take(), ["0 GET / end", "0 drained"]);
}

#[test]
fn a_client_that_stops_or_resets_a_request_is_told() {
    let mut pair = Pair::new();
    pair.write(0, &request("GET", "/", &[]), true);
    pair.write(4, &request("POST", "/", &[]), false);
    pair.app.take();
    pair.client.stream_shutdown(0, Shutdown::Read, code::REQUEST_CANCELLED).unwrap();
    pair.client.stream_shutdown(4, Shutdown::Write, code::REQUEST_CANCELLED).unwrap();
    pair.exchange();
    let mut told = pair.app.take();
    told.sort();
    assert_eq!(told, ["0 stopped by the client (request_cancelled)", "4 reset by the client (request_cancelled)"]);
    pair.respond(0, 200, b"late");
    assert_eq!(pair.read(4), Err(Error::StreamReset(code::REQUEST_CANCELLED)));
}

#[test]
fn a_stream_that_is_reset_here_tells_the_code() {
    let mut pair = Pair::new();
    pair.write(0, &request("POST", "/", &[]), false);
    pair.http(|http, quic| http.reset(quic, 0, code::INTERNAL_ERROR));
    assert_eq!(pair.client.stream_send(0, b"x", false), Err(Error::StreamStopped(code::INTERNAL_ERROR)));
    assert_eq!(pair.read(0), Err(Error::StreamReset(code::INTERNAL_ERROR)));
}

#[test]
fn an_answer_before_the_end_of_a_request_asks_for_no_more_of_it() {
    let mut pair = Pair::new();
    pair.write(0, &request("POST", "/", &[]), false);
    pair.respond(0, 413, b"");
    assert_eq!(pair.client.stream_send(0, b"x", false), Err(Error::StreamStopped(code::NO_ERROR)));
    assert_eq!(parsed(&pair.read(0).unwrap()), [(1, ":status=413 server=q content-length=0".to_owned())]);
}

#[test]
fn goaway_comes_in_two_steps_and_the_connection_closes_after_the_last_answer() {
    let mut pair = Pair::new();
    pair.write(0, &request("GET", "/0", &[]), true);
    pair.http(Http3::goaway);
    pair.write(4, &request("GET", "/4", &[]), true);
    pair.http(Http3::goaway);
    pair.write(8, &request("GET", "/8", &[]), true);
    assert_eq!(pair.app.take(), ["0 GET /0 end", "4 GET /4 end"]);
    assert_eq!(pair.read(8), Err(Error::StreamReset(code::REQUEST_REJECTED)));
    pair.respond(0, 200, b"");
    pair.respond(4, 200, b"");
    let due = pair.server.deadline().unwrap();
    assert!(due <= Instant::now() + Duration::from_millis(250));
    assert!(pair.server.on_timer(due));
    pair.exchange();
    assert_eq!(pair.close_of_server(), Some((true, code::NO_ERROR)));
    assert_eq!(pair.app.take(), ["closed \"\" \"\""]);
    let control = parsed(&pair.read(3).unwrap()[1..]);
    let kinds: Vec<_> = control.iter().map(|(kind, _)| *kind).collect();
    assert_eq!(kinds, [kind::SETTINGS, kind::GOAWAY, kind::GOAWAY]);
    assert_eq!(control[2].1, "\u{8}");
}

#[test]
fn the_state_of_finished_streams_is_let_go() {
    let mut pair = Pair::new();
    for stream in (0..4 * 50).step_by(4) {
        pair.write(stream, &request("GET", "/", &[]), true); // far beyond the ten that may be open at once
        pair.respond(stream, 200, b"hello");
        assert!(!pair.read(stream).unwrap().is_empty());
        pair.exchange();
    }
}

#[test]
fn a_client_that_moves_is_told_once_its_path_is_validated() {
    let mut pair = Pair::new();
    pair.server.quic.new_scid(&ConnectionId::from_ref(b"serveri2"), 7, false).unwrap();
    pair.client.new_scid(&ConnectionId::from_ref(b"clienti2"), 7, false).unwrap();
    pair.exchange();
    pair.from.set_port(4001);
    pair.write(0, &request("GET", "/", &[]), true);
    assert_eq!(pair.app.take(), ["0 GET / end", "moved to 127.0.0.1:4001"]);
}

#[test]
fn a_download_goes_on_when_the_client_s_address_changes_in_the_middle_of_it() {
    let mut pair = Pair::new();
    for number in 1..4 {
        pair.client.new_scid(&ConnectionId::from_ref(&[number; 8]), 7, false).unwrap();
    }
    pair.write(0, &request("GET", "/", &[]), true);
    let none: [(&[u8], &[u8]); 0] = [];
    let body = vec![b'x'; 1_000_000];
    let Connection { quic, http, .. } = &mut pair.server;
    let http = http.as_mut().unwrap();
    http.send_head(quic, &LIMITS, 0, 200, &none, false);
    http.send_data(quic, &LIMITS, 0, Chunk::Owned(body), true);
    pair.from.set_port(4001); // what is sent now goes to the old address, and is lost
    pair.exchange();
    pair.client.send_ack_eliciting().unwrap();
    let begun = Instant::now();
    let mut answer = pair.read(0).unwrap();
    while !pair.client.stream_finished(0) {
        assert!(begun.elapsed() < Duration::from_secs(5), "{}", answer.len());
        std::thread::sleep(Duration::from_millis(1)); // quiche has no clock but the system's
        assert!(pair.server.on_timer(Instant::now()));
        pair.client.on_timeout();
        pair.exchange();
        answer.extend(pair.read(0).unwrap());
    }
    assert!(answer.len() > 1_000_000);
    assert!(pair.app.take().contains(&"moved to 127.0.0.1:4001".to_owned()));
}

/// A connection whose ends both have connection IDs to spare, for clients that move.
fn pair_that_may_move() -> Pair {
    let mut pair = Pair::new();
    may_move(&mut pair);
    pair
}

fn may_move(pair: &mut Pair) {
    for number in 1..8 {
        pair.client.new_scid(&ConnectionId::from_ref(&[number; 8]), 7, false).unwrap();
        pair.server.quic.new_scid(&ConnectionId::from_ref(&[100 + number; 8]), 7, false).unwrap();
    }
    pair.exchange();
}

/// What the client has to send comes to the server, and what this sends is lost.
fn say_into_the_void(pair: &mut Pair, packets: usize) {
    let mut packet = [0; 1500];
    for _ in 0..packets {
        pair.client.send_ack_eliciting().unwrap();
        while let Ok((size, info)) = pair.client.send(&mut packet) {
            assert!(pair.server.receive(&mut packet[..size], pair.from, info.to));
            assert!(pair.server.quic.local_error().is_none(), "{:?}", pair.server.quic.local_error());
        }
    }
    while pair.server.send(&mut packet).is_some() {}
}

/// The words for what became of the validation of an address: quiche does not export the type.
fn state_of(pair: &Pair, port: u16) -> Option<String> {
    pair.server.quic.path_stats().find(|path| path.peer_addr.port() == port).map(|path| format!("{:?}", path.validation_state))
}

#[test]
fn a_client_whose_new_address_could_not_be_validated_is_heard_there_all_the_same() {
    let mut pair = pair_that_may_move();
    pair.from.set_port(4001);
    say_into_the_void(&mut pair, 1);
    let begun = Instant::now();
    loop {
        assert!(begun.elapsed() < Duration::from_secs(20));
        std::thread::sleep(Duration::from_millis(5)); // quiche has no clock but the system's
        assert!(pair.server.on_timer(Instant::now()));
        if state_of(&pair, 4001).as_deref() == Some("Failed") {
            break;
        }
        say_into_the_void(&mut pair, 1);
    }
    say_into_the_void(&mut pair, 2); // the second comes before anything was sent
    pair.write(0, &request("GET", "/", &[]), true);
    assert_eq!(pair.app.take(), ["0 GET / end"]);
    while pair.app.told.is_empty() {
        assert!(begun.elapsed() < Duration::from_secs(20));
        std::thread::sleep(Duration::from_millis(5));
        assert!(pair.server.on_timer(Instant::now()));
        pair.client.send_ack_eliciting().unwrap();
        pair.exchange();
    }
    assert_eq!(pair.app.take(), ["moved to 127.0.0.1:4001"]);
}

#[test]
fn an_address_that_was_left_before_it_was_validated_stops_nothing() {
    let mut pair = pair_that_may_move();
    let sent = |pair: &Pair, port| pair.server.quic.path_stats().find(|path| path.peer_addr.port() == port).map_or(0, |path| path.sent);
    pair.from.set_port(4001);
    say_into_the_void(&mut pair, 1); // its challenge takes all that the limit on amplification allows
    pair.from.set_port(4002);
    pair.client.send_ack_eliciting().unwrap();
    pair.exchange();
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_millis(50) {
        // another challenge is due after 3 ms
        std::thread::sleep(Duration::from_millis(5)); // quiche has no clock but the system's
        assert!(pair.server.on_timer(Instant::now()));
        pair.exchange();
    }
    assert_eq!(sent(&pair, 4001), 1);
    pair.write(0, &request("GET", "/", &[]), true);
    pair.respond(0, 200, b"hello");
    assert_eq!(parsed(&pair.read(0).unwrap()).len(), 2);
}

/// The client moves, and its answer to the challenge is lost.
fn lose_the_answer_to_a_challenge(pair: &mut Pair) {
    let mut packet = [0; 1500];
    pair.client.send_ack_eliciting().unwrap();
    let (size, info) = pair.client.send(&mut packet).unwrap();
    assert!(pair.server.receive(&mut packet[..size], pair.from, info.to));
    let (size, info) = pair.server.send(&mut packet).unwrap();
    let to = pair.client.path_stats().find(|path| path.active).unwrap().local_addr;
    pair.client.recv(&mut packet[..size], RecvInfo { from: info.from, to }).unwrap();
    pair.client.send(&mut packet).unwrap();
}

#[test]
fn an_answer_to_a_challenge_that_is_lost_is_asked_for_again_though_all_packets_are_acknowledged() {
    let mut pair = pair_that_may_move();
    pair.from.set_port(4001);
    lose_the_answer_to_a_challenge(&mut pair);
    pair.client.send_ack_eliciting().unwrap(); // acknowledges the challenge
    pair.exchange();
    assert_eq!(state_of(&pair, 4001).as_deref(), Some("Validating"));
    let begun = Instant::now();
    while pair.app.told.is_empty() {
        assert!(begun.elapsed() < Duration::from_secs(5));
        std::thread::sleep(pair.server.deadline().unwrap().saturating_duration_since(Instant::now())); // quiche has no clock but the system's
        assert!(pair.server.on_timer(Instant::now()));
        pair.exchange();
    }
    assert_eq!(pair.app.take(), ["moved to 127.0.0.1:4001"]);
}

#[test]
fn a_client_that_comes_back_to_a_path_that_had_packets_in_flight_is_sent_no_more_than_its_window() {
    for bbr in [false, true] {
        let mut pair = Pair::with(|config| {
            config.set_cc_algorithm(if bbr {
                quiche::CongestionControlAlgorithm::Bbr2Gcongestion
            } else {
                quiche::CongestionControlAlgorithm::CUBIC
            });
        });
        may_move(&mut pair);
        pair.write(0, &request("GET", "/", &[]), true);
        pair.server.quic.send_ack_eliciting().unwrap();
        assert!(pair.server.send(&mut [0; 1500]).is_some()); // lost; its timer runs
        pair.from.set_port(4001);
        pair.client.send_ack_eliciting().unwrap();
        pair.exchange();
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_millis(100) {
            std::thread::sleep(Duration::from_millis(5)); // quiche has no clock but the system's
            assert!(pair.server.on_timer(Instant::now()));
            pair.exchange();
        }
        pair.from.set_port(4000);
        pair.client.send_ack_eliciting().unwrap();
        pair.exchange();
        let Connection { quic, http, .. } = &mut pair.server;
        let http = http.as_mut().unwrap();
        let none: [(&[u8], &[u8]); 0] = [];
        http.send_head(quic, &LIMITS, 0, 200, &none, false);
        http.send_data(quic, &LIMITS, 0, Chunk::Owned(vec![b'x'; 1_000_000]), true);
        let window = pair.server.seen().unwrap().congestion_window;
        let (mut sent, mut packet) = (0, [0; 1500]);
        for _ in 0..1000 {
            pair.server.feed(&LIMITS, &mut pair.app);
            match pair.server.send(&mut packet) {
                Some((size, _)) => sent += size,
                None => std::thread::sleep(Duration::from_micros(100)), // paced
            }
        }
        assert!(sent <= window + 1500, "{sent} of {window}, bbr {bbr}");
    }
}

#[test]
fn a_client_may_move_as_often_as_it_likes() {
    let mut pair = pair_that_may_move();
    for port in 4001..4030 {
        pair.from.set_port(port);
        let stream = u64::from(port - 4001) * 4;
        pair.write(stream, &request("GET", "/", &[]), true);
        pair.respond(stream, 200, b"hello");
        assert!(!pair.read(stream).unwrap().is_empty());
        let next = [port.to_be_bytes(); 4].concat();
        let _ = pair.client.new_scid(&ConnectionId::from_ref(&next), 7, true); // in place of one that the server has given back
        pair.exchange();
        assert_eq!(pair.app.take(), [format!("{stream} GET / end"), format!("moved to 127.0.0.1:{port}")]);
        assert!(pair.server.quic.path_stats().count() <= 8);
    }
}

/// Uploads that are answered before they end; `late`: the client's reset comes after its acknowledgement of the answer.
fn uploads_answered_early(late: bool) {
    let mut pair = Pair::new();
    // far more than the ten that may be open at once, and fewer than the resets that a client has in a burst
    for stream in (0..4 * if late { 50 } else { 300 }).step_by(4) {
        pair.write(stream, &request("POST", "/", &[]), false);
        let Connection { quic, http, .. } = &mut pair.server;
        http.as_mut().unwrap().respond(quic, &LIMITS, stream, 413, &[(b"server", b"q")], Chunk::Owned(b"no".to_vec()));
        if late {
            let mut packet = [0; 1500];
            while let Some((size, info)) = pair.server.send(&mut packet) {
                pair.client.recv(&mut packet[..size], RecvInfo { from: info.from, to: info.to }).unwrap();
            }
            while pair.client.send(&mut packet).is_ok() {} // the reset, and it is lost
            pair.client.send_ack_eliciting().unwrap();
        }
        pair.exchange();
        assert!(!pair.read(stream).unwrap().is_empty());
        let begun = Instant::now();
        while late && pair.server.quic.stats().reset_stream_count_remote <= stream / 4 {
            assert!(begun.elapsed() < Duration::from_secs(5));
            std::thread::sleep(Duration::from_millis(1)); // quiche has no clock but the system's
            pair.client.on_timeout();
            pair.exchange();
        }
        pair.app.take();
    }
}

#[test]
fn uploads_answered_early_cost_no_credit() {
    uploads_answered_early(false);
}

#[test]
fn an_upload_whose_reset_comes_late_costs_no_credit() {
    uploads_answered_early(true);
}

#[test]
fn an_end_that_comes_alone_arrives_although_what_was_before_it_is_acknowledged_first() {
    let mut pair = Pair::new();
    pair.write(0, &request("GET", "/", &[]), true);
    pair.http(|http, quic| http.send_head(quic, &LIMITS, 0, 200, &[(b"server", b"q")], false));
    let mut packet = [0; 1500];
    let to = ([127, 0, 0, 1], 443).into();
    for (body, end) in [(&b"hello"[..], false), (b"", true)] {
        let http = pair.server.http.as_mut().unwrap();
        http.send_data(&mut pair.server.quic, &LIMITS, 0, Chunk::Owned(body.to_vec()), end);
        if !end {
            let (size, info) = pair.server.send(&mut packet).unwrap();
            pair.client.recv(&mut packet[..size], RecvInfo { from: info.from, to: info.to }).unwrap();
        }
    }
    let (size, info) = pair.client.send(&mut packet).unwrap(); // the acknowledgement, before the end was sent
    assert!(pair.server.receive(&mut packet[..size], info.from, to));
    pair.server.collect(&LIMITS, &mut pair.app, &mut [0; 1500]);
    pair.exchange();
    assert_eq!(parsed(&pair.read(0).unwrap())[1], (kind::DATA, "hello".to_owned()));
    assert!(pair.client.stream_finished(0));
}

#[test]
fn keys_are_renewed_again_and_again() {
    let mut pair = Pair::with(|config| config.set_key_packets(50));
    for stream in (0..4 * 8).step_by(4) {
        let before = pair.client.key_updates();
        pair.write(stream, &request("GET", "/", &[]), true);
        pair.respond(stream, 200, &vec![b'x'; 100_000]);
        assert!(pair.read(stream).unwrap().len() > 100_000);
        let begun = Instant::now();
        while pair.client.key_updates() == before {
            assert!(begun.elapsed() < Duration::from_secs(5)); // three probe timeouts after an update there may be another one
            std::thread::sleep(Duration::from_millis(1)); // quiche has no clock but the system's
            assert!(pair.server.on_timer(Instant::now()));
            pair.client.on_timeout();
            pair.client.send_ack_eliciting().unwrap();
            pair.server.quic.send_ack_eliciting().unwrap();
            pair.exchange();
        }
    }
    assert!(pair.server.quic.local_error().is_none() && pair.client.local_error().is_none());
}

#[test]
fn both_ends_may_renew_keys_before_they_hear_of_the_other_s() {
    let mut pair = Pair::with(|config| config.set_key_packets(50));
    pair.client.send_ack_eliciting().unwrap();
    pair.exchange();
    let (mut up, mut down) = (Vec::new(), Vec::new());
    for _ in 0..60 {
        let mut packet = [0; 1500];
        pair.client.send_ack_eliciting().unwrap();
        let (size, info) = pair.client.send(&mut packet).unwrap();
        up.push((packet[..size].to_vec(), info));
        pair.server.quic.send_ack_eliciting().unwrap();
        let (size, info) = pair.server.send(&mut packet).unwrap();
        down.push((packet[..size].to_vec(), info));
    }
    assert_eq!((pair.client.key_updates(), pair.server.quic.key_updates()), (1, 1));
    for ((mut up, there), (mut down, here)) in up.into_iter().zip(down) {
        assert!(pair.server.receive(&mut up, pair.from, there.to));
        pair.client.recv(&mut down, RecvInfo { from: here.from, to: here.to }).unwrap();
    }
    assert_eq!(pair.server.quic.stats().recv, pair.client.stats().sent, "nothing was dropped");
    pair.write(0, &request("GET", "/", &[]), true);
    pair.respond(0, 200, b"hello");
    assert_eq!(parsed(&pair.read(0).unwrap()).len(), 2);
    assert_eq!((pair.client.key_updates(), pair.server.quic.key_updates()), (1, 1));
}

#[test]
fn packets_that_are_not_authentic_are_counted_and_end_the_connection() {
    let mut pair = Pair::with(|config| config.set_max_forged_packets(20));
    let mut packet = [0; 1500];
    let mut forged = 0;
    while pair.server.quic.local_error().is_none() {
        forged += 1;
        pair.client.send_ack_eliciting().unwrap();
        let (size, info) = pair.client.send(&mut packet).unwrap();
        packet[size - 1] ^= 1;
        pair.server.receive(&mut packet[..size], pair.from, info.to);
    }
    assert!((15..=20).contains(&forged), "{forged}"); // what pads a datagram of the handshake is not authentic either
    assert_eq!(pair.server.quic.local_error().map(|error| error.error_code), Some(0xf)); // AEAD_LIMIT_REACHED
}
