//! One QUIC connection with HTTP/3 on it: packets in and out, timers, paths, its end.
//!
//! Knows quiche and `http3`. Knows no other connection and no Python; what happens is told to an `Application` and asked of methods.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use quiche::{PathEvent, RecvInfo, SendInfo};

use crate::black_hole::BlackHole;
use crate::budget::CONTROL_BURST;
use crate::frames::code;
use crate::http3::{Application, Change, Http3, Limits, Seen};

/// Between the last acknowledged response after GOAWAY and the close, for GOAWAY to arrive.
const GOAWAY_LINGER: Duration = Duration::from_millis(250);

/// A deadline that is not in the future although its timer was handled is put off by so much: nothing can spin. And packets whose
/// release by the pacer is no further away than this are sent at once: event loops know no finer time.
pub const GRAIN: Duration = Duration::from_millis(1);

/// TLS alerts, as errors of the transport (RFC 9001, section 4.8).
const TLS_ALERTS: std::ops::Range<u64> = 0x100..0x200;

/// PINGs to a client from which nothing comes.
#[derive(Clone, Copy)]
pub struct KeepAlive {
    /// Without a datagram from the client before it is sent one.
    pub interval: Duration,
    /// Without a request in progress as well.
    pub idle: bool,
}

/// One connection, server side.
pub struct Connection {
    pub quic: quiche::Connection,
    pub http: Option<Http3>,
    /// Who the client is now, and where it came in.
    pub peer: SocketAddr,
    complete_by: Option<Instant>,
    linger_until: Option<Instant>,
    release_at: Option<Instant>,
    keep_alive: Option<KeepAlive>,
    /// When the client was heard last, or sent a PING. For `keep_alive` only.
    quiet_since: Instant,
    black_hole: BlackHole,
    black_holes: usize,
    /// The handshake was complete once.
    completed: bool,
    told_closed: bool,
}

impl Connection {
    /// A connection that has yet to see its first packet.
    #[must_use]
    pub fn new(quic: quiche::Connection, peer: SocketAddr, handshake_timeout: Duration, keep_alive: Option<KeepAlive>) -> Self {
        let now = Instant::now();
        Self {
            quic,
            http: None,
            peer,
            complete_by: now.checked_add(handshake_timeout),
            linger_until: None,
            release_at: None,
            keep_alive,
            quiet_since: now,
            black_hole: BlackHole::default(),
            black_holes: 0,
            completed: false,
            told_closed: false,
        }
    }

    /// Take a datagram; it is decrypted in place. False where nothing of the connection's packets so far was authentic.
    pub fn receive(&mut self, datagram: &mut [u8], from: SocketAddr, to: SocketAddr) -> bool {
        if self.keep_alive.is_some() {
            self.quiet_since = Instant::now();
        }
        let _ = self.quic.recv(datagram, RecvInfo { from, to }); // an error has closed the connection, which `collect` tells
        self.http.is_some() || self.quic.stats().opened > 0
    }

    /// The handshake was complete once.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.completed
    }

    /// It takes requests, and the handshake is not complete.
    #[must_use]
    pub fn is_early(&self) -> bool {
        self.http.is_some() && !self.completed
    }

    /// Its end was told; it takes no verbs any more.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.told_closed
    }

    /// It can be forgotten: the closing period is over as well.
    #[must_use]
    pub fn is_gone(&self) -> bool {
        self.told_closed && self.quic.is_closed()
    }

    /// Tell what came: changes of the connection, then what HTTP/3 has for the application.
    pub fn collect(&mut self, limits: &Limits, app: &mut dyn Application, scratch: &mut [u8]) {
        if self.told_closed {
            return;
        }
        let established = self.quic.is_established();
        if self.http.is_none() && (established || self.quic.is_in_early_data()) {
            match Http3::new(&mut self.quic, limits) {
                Ok(http) => {
                    self.http = Some(http);
                    app.changed(Change::Ready { early: !established });
                }
                Err(_) => self.close(code::INTERNAL_ERROR, "no control stream"),
            }
        } else if established && self.is_early() {
            app.changed(Change::Completed);
        }
        if self.http.is_none() && self.quic.stats().overhead_recv_count > CONTROL_BURST {
            self.close(code::EXCESSIVE_LOAD, "too many control frames");
        }
        if established {
            self.completed = true;
            self.complete_by = None;
        }
        if let Some(http) = &mut self.http {
            http.read(&mut self.quic, limits, app, scratch);
        }
        while let Some(event) = self.quic.path_event_next() {
            if let PathEvent::PeerMigrated(_, peer) = event {
                if self.http.is_some() && peer != self.peer {
                    app.changed(Change::Moved(peer));
                }
                self.peer = peer;
            }
        }
        self.look_at_end(app);
    }

    /// What it saw of the network, once the handshake was complete.
    #[must_use]
    pub fn seen(&self) -> Option<Seen> {
        self.http.as_ref()?;
        let path = self.quic.path_stats().find(|path| path.active)?;
        let all = self.quic.stats();
        Some(Seen {
            round_trip: path.rtt,
            congestion_window: path.cwnd,
            packets_sent: all.sent,
            packets_lost: all.lost,
            bytes_lost: all.lost_bytes,
            datagram_size: path.pmtu,
            black_holes: self.black_holes,
        })
    }

    /// Tell once that the connection is over, whatever ended it.
    pub fn look_at_end(&mut self, app: &mut dyn Application) {
        if self.told_closed {
            return;
        }
        let over = self.quic.is_closed() || self.quic.is_draining() || self.quic.local_error().is_some();
        if over {
            self.told_closed = true;
            self.complete_by = None;
            self.linger_until = None;
            let (error, detail) = self.reason();
            let error = if !self.completed && error.is_empty() { "closed" } else { error };
            app.changed(Change::Closed { error: error.to_owned(), detail, seen: self.seen() });
        } else if let Some(http) = &mut self.http {
            if http.is_drained(&mut self.quic) {
                self.linger_until.get_or_insert_with(|| Instant::now() + GOAWAY_LINGER);
            } else {
                self.linger_until = None;
            }
        }
    }

    /// A token and words, from the codes of RFC 9000, 9001, 9114 and 9204.
    fn reason(&self) -> (&'static str, String) {
        let Some(error) = self.quic.peer_error().or_else(|| self.quic.local_error()) else {
            return ("", if self.quic.is_timed_out() { "idle" } else { "reset" }.to_owned());
        };
        let number = error.error_code;
        let words: String = String::from_utf8_lossy(&error.reason).chars().take(100).collect();
        if error.is_app {
            if matches!(number, 0 | code::NO_ERROR) {
                return ("", words);
            }
            return (code::name(number).unwrap_or("application_error"), format!("{number:#x} {words}"));
        }
        if TLS_ALERTS.contains(&number) {
            return ("tls_alert", format!("alert {} {words}", number - 0x100));
        }
        (transport_error(number), format!("{number:#x} {words}"))
    }

    /// Close with an HTTP/3 code.
    pub fn close(&mut self, code: u64, words: &str) {
        let _ = self.quic.close(true, code, words.as_bytes()); // Done: it is closed already
    }

    /// Move waiting bytes into quiche. True where some were moved.
    pub fn feed(&mut self, limits: &Limits, app: &mut dyn Application) -> bool {
        match &mut self.http {
            Some(http) if !self.told_closed => http.feed(&mut self.quic, limits, app),
            _ => false,
        }
    }

    /// The next packet, or None: nothing to send, or not yet.
    pub fn send(&mut self, out: &mut [u8]) -> Option<(usize, SendInfo)> {
        self.release_at = None;
        if self.quic.local_error().is_none() {
            let now = Instant::now();
            let release = self.quic.get_next_release_time().and_then(|decision| decision.time(now));
            if let Some(at) = release.filter(|at| *at > now + GRAIN) {
                self.release_at = Some(at);
                return None;
            }
        }
        self.quic.send(out).ok() // an error has closed the connection, which `collect` tells
    }

    /// When `on_timer` is to be called next.
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        let due = [self.quic.timeout_instant(), self.complete_by, self.linger_until, self.release_at, self.ping_at()];
        due.into_iter().flatten().min()
    }

    /// When the client is sent a PING if nothing comes of it; None where it need not be.
    fn ping_at(&self) -> Option<Instant> {
        let keep_alive = self.keep_alive?;
        let http = self.http.as_ref().filter(|_| !self.told_closed)?;
        (keep_alive.idle || http.is_busy()).then(|| self.quiet_since + keep_alive.interval)
    }

    /// Handle the timers that are due. False where the handshake took too long: the connection is to be dropped.
    #[must_use]
    pub fn on_timer(&mut self, now: Instant) -> bool {
        if self.complete_by.is_some_and(|by| by <= now) {
            return false;
        }
        if self.linger_until.is_some_and(|until| until <= now) {
            self.linger_until = None;
            self.close(code::NO_ERROR, "");
        }
        if self.ping_at().is_some_and(|at| at <= now) {
            self.quiet_since = now;
            let _ = self.quic.send_ack_eliciting(); // an error has closed the connection, which `collect` tells
        }
        if self.quic.timeout_instant().is_some_and(|due| due <= now) {
            self.quic.on_timeout();
            self.look_for_black_hole();
        }
        true
    }

    /// Where the path drops large datagrams of late: send the smallest from now on, and look anew for what passes.
    fn look_for_black_hole(&mut self) {
        let active = self.quic.path_stats().find(|path| path.active);
        if let Some(path) = active
            && self.black_hole.found(path.total_pto_count, self.quic.stats().acked_bytes, path.pmtu)
        {
            self.black_holes += 1;
            self.quic.revalidate_pmtu();
        }
    }
}

fn transport_error(number: u64) -> &'static str {
    match number {
        0x0 => "",
        0x1 => "internal_error",
        0x2 => "connection_refused",
        0x3 => "flow_control_error",
        0x4 => "stream_limit_error",
        0x5 => "stream_state_error",
        0x6 => "final_size_error",
        0x7 => "frame_encoding_error",
        0x8 => "transport_parameter_error",
        0x9 => "connection_id_limit_error",
        0xA => "protocol_violation",
        0xC => "application_error",
        0xD => "crypto_buffer_exceeded",
        0xE => "key_update_error",
        0xF => "aead_limit_reached",
        0x10 => "no_viable_path",
        0x11 => "version_negotiation_error",
        _ => "transport_error",
    }
}
