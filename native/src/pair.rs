//! Two ends in memory for tests: a quiche client against a `Connection`, over a link that loses nothing.

use std::net::SocketAddr;
use std::time::Duration;

use boring::asn1::Asn1Time;
use boring::bn::BigNum;
use boring::ec::{EcGroup, EcKey};
use boring::hash::MessageDigest;
use boring::nid::Nid;
use boring::pkey::PKey;
use boring::ssl::{SslContextBuilder, SslMethod};
use boring::x509::{X509Builder, X509NameBuilder};
use quiche::h3::{Header, NameValue};
use quiche::{ConnectionId, RecvInfo};

use crate::connection::Connection;
use crate::http3::{Application, Change, Limits, Verdict};

/// Notes down what it is told, in words.
#[derive(Default)]
pub struct Recorder {
    pub told: Vec<String>,
    /// Body bytes that came.
    pub body: usize,
}

impl Recorder {
    /// What was told since the last time.
    pub fn take(&mut self) -> Vec<String> {
        std::mem::take(&mut self.told)
    }
}

fn value<'a>(fields: &'a [Header], name: &[u8]) -> Option<&'a [u8]> {
    fields.iter().find(|field| field.name() == name).map(NameValue::value)
}

fn text(bytes: Option<&[u8]>) -> String {
    bytes.map_or_else(|| "-".to_owned(), |bytes| String::from_utf8_lossy(bytes).into_owned())
}

impl Application for Recorder {
    fn head(&mut self, stream: u64, fields: &[Header], end: bool) -> Verdict {
        let method = text(value(fields, b":method"));
        if method == "-" {
            self.told.push(format!("{stream} malformed"));
            return Verdict::Rejected(400);
        }
        let length = value(fields, b"content-length").and_then(|length| text(Some(length)).parse().ok());
        self.told.push(format!("{stream} {method} {}{}", text(value(fields, b":path")), if end { " end" } else { "" }));
        Verdict::Accepted { length, bodiless: method == "HEAD" }
    }

    fn body(&mut self, _: u64, data: &[u8]) {
        self.body += data.len();
    }

    fn trailers(&mut self, _: u64, fields: &[Header]) -> Result<Vec<Header>, String> {
        Ok(fields.to_vec())
    }

    fn end(&mut self, stream: u64, trailers: &[Header]) {
        self.told.push(format!("{stream} end {}", trailers.len()));
    }

    fn cut(&mut self, stream: u64, reason: &str) {
        self.told.push(format!("{stream} {reason}"));
    }

    fn rejected(&mut self, stream: u64, status: u16, reason: &str, _: &str) {
        self.told.push(format!("{stream} rejected {status} {reason}"));
    }

    fn drained(&mut self, stream: u64) {
        self.told.push(format!("{stream} drained"));
    }

    fn changed(&mut self, change: Change) {
        self.told.push(match change {
            Change::Ready { early: false } => "ready".to_owned(),
            Change::Ready { early: true } => "ready early".to_owned(),
            Change::Completed => "completed".to_owned(),
            Change::Moved(peer) => format!("moved to {peer}"),
            Change::Closed { error, detail, .. } => format!("closed {error:?} {detail:?}"),
        });
    }
}

/// A client and a server, and what the server was told.
pub struct Pair {
    pub client: quiche::Connection,
    pub server: Connection,
    pub app: Recorder,
    /// The client's address.
    pub from: SocketAddr,
    scratch: Vec<u8>,
}

pub const LIMITS: Limits = Limits {
    header_count: 20,
    header_bytes: 4096,
    stream_window: 64 * 1024,
    connection_window: 256 * 1024,
    high_water: 128 * 1024,
    low_water: 32 * 1024,
    output: 4 * 1024 * 1024,
};

impl Pair {
    /// Both ends, with the handshake done.
    pub fn new() -> Self {
        Self::with(|_| ())
    }

    /// The same, with more settings of both.
    pub fn with(more: impl Fn(&mut quiche::Config)) -> Self {
        let (from, to) = (([127, 0, 0, 1], 4000).into(), ([127, 0, 0, 1], 443).into());
        let mut config = quiche::Config::with_boring_ssl_ctx_builder(quiche::PROTOCOL_VERSION, certificate()).unwrap();
        configure(&mut config, LIMITS.stream_window - LIMITS.stream_ahead());
        more(&mut config);
        let server = quiche::accept(&ConnectionId::from_ref(b"serverid"), None, to, from, &mut config).unwrap();
        let mut config = quiche::Config::new(quiche::PROTOCOL_VERSION).unwrap();
        configure(&mut config, 10_000_000);
        more(&mut config);
        let client = quiche::connect(Some("a.example"), &ConnectionId::from_ref(b"clientid"), from, to, &mut config).unwrap();
        let server = Connection::new(server, from, Duration::from_secs(10), None);
        let mut pair = Self { client, server, app: Recorder::default(), from, scratch: vec![0; 65536] };
        pair.exchange();
        assert_eq!(pair.app.take(), ["ready"]);
        pair
    }

    /// Carry datagrams both ways until nobody has any.
    pub fn exchange(&mut self) {
        let mut packet = [0; 1500];
        loop {
            let mut quiet = true;
            while let Ok((size, info)) = self.client.send(&mut packet) {
                quiet = false;
                assert!(self.server.receive(&mut packet[..size], self.from, info.to));
                self.server.collect(&LIMITS, &mut self.app, &mut self.scratch);
            }
            loop {
                self.server.feed(&LIMITS, &mut self.app);
                let Some((size, info)) = self.server.send(&mut packet) else { break };
                quiet = false;
                if info.to == self.from {
                    let to = self.client.path_stats().find(|path| path.active).map_or(info.to, |path| path.local_addr);
                    let _ = self.client.recv(&mut packet[..size], RecvInfo { from: info.from, to });
                }
            }
            self.server.look_at_end(&mut self.app);
            if quiet {
                return;
            }
        }
    }

    /// Send raw bytes on a stream of the client, and carry them over.
    pub fn write(&mut self, stream: u64, data: &[u8], end: bool) {
        assert_eq!(self.client.stream_send(stream, data, end), Ok(data.len()));
        self.exchange();
    }

    /// All that the server's answer on a stream has so far.
    pub fn read(&mut self, stream: u64) -> Result<Vec<u8>, quiche::Error> {
        let (mut all, mut piece) = (Vec::new(), [0; 4096]);
        loop {
            match self.client.stream_recv(stream, &mut piece) {
                Ok((count, end)) => {
                    all.extend_from_slice(&piece[..count]);
                    if end {
                        return Ok(all);
                    }
                }
                Err(quiche::Error::Done) => {
                    self.exchange();
                    if !self.client.stream_readable(stream) {
                        return Ok(all);
                    }
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Let the server read on where credit was given back.
    pub fn resume(&mut self) {
        let Connection { quic, http, .. } = &mut self.server;
        http.as_mut().unwrap().resume(quic, &LIMITS, &mut self.app, &mut self.scratch);
        self.exchange();
    }
}

fn configure(config: &mut quiche::Config, window: u64) {
    config.set_application_protos(&[b"h3"]).unwrap();
    config.verify_peer(false);
    config.set_max_idle_timeout(30_000);
    config.set_initial_max_data(10 * window);
    config.set_max_connection_window(10 * window);
    config.set_max_stream_window(window);
    config.set_initial_max_stream_data_bidi_local(window);
    config.set_initial_max_stream_data_bidi_remote(window);
    config.set_initial_max_stream_data_uni(window);
    config.set_initial_max_streams_bidi(10);
    config.set_initial_max_streams_uni(8);
    config.set_active_connection_id_limit(8);
    config.grease(false);
    config.set_initial_rtt(Duration::from_millis(1));
}

/// A context with a fresh certificate.
fn certificate() -> SslContextBuilder {
    let group = EcGroup::from_curve_name(Nid::X9_62_PRIME256V1).unwrap();
    let key = PKey::from_ec_key(EcKey::generate(&group).unwrap()).unwrap();
    let mut name = X509NameBuilder::new().unwrap();
    name.append_entry_by_text("CN", "a.example").unwrap();
    let name = name.build();
    let mut certificate = X509Builder::new().unwrap();
    certificate.set_version(2).unwrap();
    certificate.set_serial_number(&BigNum::from_u32(1).unwrap().to_asn1_integer().unwrap()).unwrap();
    certificate.set_subject_name(&name).unwrap();
    certificate.set_issuer_name(&name).unwrap();
    certificate.set_not_before(&Asn1Time::days_from_now(0).unwrap()).unwrap();
    certificate.set_not_after(&Asn1Time::days_from_now(1).unwrap()).unwrap();
    certificate.set_pubkey(&key).unwrap();
    certificate.sign(&key, MessageDigest::sha256()).unwrap();
    let mut context = SslContextBuilder::new(SslMethod::tls()).unwrap();
    context.set_certificate(&certificate.build()).unwrap();
    context.set_private_key(&key).unwrap();
    context
}
