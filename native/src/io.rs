//! Datagrams in and out of a UDP socket, many with one system call: recvmmsg with GRO, sendmmsg with GSO, and the local address of
//! each by PKTINFO. Linux (GRO since 5.0, GSO since 4.18).
//!
//! Knows sockets and addresses. Knows no QUIC and no Python. All calls into the kernel, and so all unsafe code of the engine but for
//! what BoringSSL asks, are here.
//!
//! Addresses are canonical: what a dual-stack socket calls `::ffff:192.0.2.1` is `192.0.2.1` above, both ways.

use std::ffi::CStr;
use std::fs;
use std::io;
use std::mem::{self, MaybeUninit};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::ops::Range;
use std::os::fd::RawFd;
use std::ptr;

/// Messages of one recvmmsg; with GRO each may hold `MAX_SEGMENTS` datagrams.
const RECEIVED: usize = 16;

/// Room for one message: the largest that UDP has, and the most that GRO joins.
const MESSAGE: usize = 65536;

/// Messages of one sendmmsg.
const SENT: usize = 64;

/// Datagrams of one burst: the kernel's UDP_MAX_SEGMENTS of old; newer ones take 128.
pub const MAX_SEGMENTS: usize = 64;

/// Bytes of one burst: less than the largest IP packet with its headers.
pub const MAX_BURST: usize = 65000;

/// A datagram of this size fits the smallest link of IPv6 (1280, RFC 8200 section 5) with its headers: a kernel that refuses a
/// burst of such does not refuse its size.
const FITS_ANY_LINK: usize = 1232;

/// Room for control messages: IP_PKTINFO, IPV6_PKTINFO and UDP_GRO take 96 bytes when all are given.
#[repr(C, align(8))]
#[derive(Clone, Copy)]
struct Control([u8; 128]);

const NO_CONTROL: Control = Control([0; 128]);

/// Room for an address of either family; both begin with it.
#[repr(C)]
#[derive(Clone, Copy)]
union Name {
    v4: libc::sockaddr_in,
    v6: libc::sockaddr_in6,
}

/// A UDP datagram in the receiver's arena.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Arrived {
    pub range: Range<usize>,
    pub from: SocketAddr,
    pub to: SocketAddr,
}

/// Bytes of the sender's arena that go out as datagrams of `segment` bytes, the last of which may be shorter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Burst {
    pub range: Range<usize>,
    pub segment: usize,
    pub from: SocketAddr,
    pub to: SocketAddr,
}

/// A bound UDP socket: what was learned when its descriptor was seen first.
#[derive(Clone, Copy)]
struct Socket {
    fd: RawFd,
    bound: SocketAddr,
    /// IPv6, where IPv4 addresses have to be mapped.
    six: bool,
}

impl Socket {
    /// Learns what *fd* is, and switches on what the engine wants of it: GRO, the destination of each datagram where there may be
    /// several, and no fragmentation by the kernel (RFC 9000, section 14).
    fn of(fd: RawFd) -> io::Result<Socket> {
        let mut name = MaybeUninit::<Name>::zeroed();
        let mut length = mem::size_of::<Name>() as libc::socklen_t;
        // SAFETY: the kernel writes at most *length* bytes into *name*, which has that many.
        check(unsafe { libc::getsockname(fd, name.as_mut_ptr().cast(), &raw mut length) })?;
        // SAFETY: all bytes are initialised, and every bit pattern is a valid address of plain integers.
        let name = unsafe { name.assume_init() };
        let (raw, bound) = decode(&name).ok_or_else(|| io::Error::from(io::ErrorKind::Unsupported))?;
        let socket = Socket { fd, bound, six: raw.is_ipv6() };
        // An older kernel that lacks one of these serves without it.
        let _ = socket.option(libc::SOL_UDP, libc::UDP_GRO, 1);
        let _ = socket.option(libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, libc::IP_PMTUDISC_PROBE);
        if socket.six {
            let _ = socket.option(libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, libc::IPV6_PMTUDISC_PROBE);
        }
        if bound.ip().is_unspecified() {
            if socket.six {
                socket.option(libc::IPPROTO_IPV6, libc::IPV6_RECVPKTINFO, 1)?;
            } else {
                socket.option(libc::IPPROTO_IP, libc::IP_PKTINFO, 1)?;
            }
        }
        Ok(socket)
    }

    fn option(&self, level: i32, name: i32, value: i32) -> io::Result<()> {
        let size = mem::size_of::<i32>() as libc::socklen_t;
        // SAFETY: the kernel reads *size* bytes of *value*.
        check(unsafe { libc::setsockopt(self.fd, level, name, ptr::from_ref(&value).cast(), size) })
    }

    fn encode(&self, address: SocketAddr) -> (Name, libc::socklen_t) {
        match address {
            SocketAddr::V4(v4) if !self.six => {
                let v4 = libc::sockaddr_in {
                    sin_family: libc::AF_INET as libc::sa_family_t,
                    sin_port: v4.port().to_be(),
                    sin_addr: libc::in_addr { s_addr: u32::from_ne_bytes(v4.ip().octets()) },
                    sin_zero: [0; 8],
                };
                (Name { v4 }, mem::size_of::<libc::sockaddr_in>() as libc::socklen_t)
            }
            _ => {
                let (ip, scope) = match address {
                    SocketAddr::V4(v4) => (v4.ip().to_ipv6_mapped(), 0),
                    SocketAddr::V6(v6) => (*v6.ip(), v6.scope_id()),
                };
                let v6 = libc::sockaddr_in6 {
                    sin6_family: libc::AF_INET6 as libc::sa_family_t,
                    sin6_port: address.port().to_be(),
                    sin6_flowinfo: 0,
                    sin6_addr: libc::in6_addr { s6_addr: ip.octets() },
                    sin6_scope_id: scope,
                };
                (Name { v6 }, mem::size_of::<libc::sockaddr_in6>() as libc::socklen_t)
            }
        }
    }

    /// The address that a datagram is to leave from, where the socket has several.
    fn source(&self, from: SocketAddr) -> Option<IpAddr> {
        (self.bound.ip().is_unspecified() && !from.ip().is_unspecified()).then(|| from.ip())
    }
}

/// Reads from one socket.
pub struct Receiver {
    socket: Option<Socket>,
    /// Where the datagrams are; empty until the first call.
    pub arena: Vec<u8>,
    /// What the last call brought, in order.
    pub arrived: Vec<Arrived>,
    /// System calls so far.
    pub calls: u64,
    /// Datagrams so far.
    pub datagrams: u64,
}

impl Receiver {
    pub fn new() -> Receiver {
        Receiver { socket: None, arena: Vec::new(), arrived: Vec::new(), calls: 0, datagrams: 0 }
    }

    /// Takes what has come, with one system call. Ok(true): there may be more. Err only where *fd* is no bound UDP socket.
    pub fn receive(&mut self, fd: RawFd) -> io::Result<bool> {
        self.arrived.clear();
        let socket = match self.socket {
            Some(socket) if socket.fd == fd => socket,
            _ => *self.socket.insert(Socket::of(fd)?),
        };
        if self.arena.is_empty() {
            self.arena = vec![0; RECEIVED * MESSAGE];
        }
        let mut names = [MaybeUninit::<Name>::zeroed(); RECEIVED];
        let mut controls = [NO_CONTROL; RECEIVED];
        let mut pieces: [libc::iovec; RECEIVED] = {
            let mut slots = self.arena.chunks_exact_mut(MESSAGE);
            std::array::from_fn(|_| {
                let slot = slots.next().expect("the arena has a slot for each message");
                libc::iovec { iov_base: slot.as_mut_ptr().cast(), iov_len: slot.len() }
            })
        };
        let mut messages: [libc::mmsghdr; RECEIVED] = std::array::from_fn(|at| {
            let mut message = message(&mut pieces[at]);
            message.msg_hdr.msg_name = names[at].as_mut_ptr().cast();
            message.msg_hdr.msg_namelen = mem::size_of::<Name>() as libc::socklen_t;
            message.msg_hdr.msg_control = controls[at].0.as_mut_ptr().cast();
            message.msg_hdr.msg_controllen = controls[at].0.len() as _;
            message
        });
        self.calls += 1;
        // SAFETY: each message points to a name, a piece of the arena and control bytes that outlive the call and are not shared.
        let count = unsafe { libc::recvmmsg(fd, messages.as_mut_ptr(), RECEIVED as u32, libc::MSG_DONTWAIT as _, ptr::null_mut()) };
        let Ok(count) = usize::try_from(count) else {
            let error = io::Error::last_os_error();
            return match error.raw_os_error() {
                Some(libc::EBADF | libc::ENOTSOCK | libc::EINVAL | libc::EFAULT) => Err(error),
                _ => Ok(false), // nothing there, a signal, or an ICMP error of an earlier send, which belongs to no connection of ours
            };
        };
        for (at, message) in messages[..count].iter().enumerate() {
            // SAFETY: zeroed above, and the kernel wrote an address or nothing.
            let name = unsafe { names[at].assume_init_ref() };
            let Some((_, from)) = decode(name) else { continue };
            let (to, segment) = described(&message.msg_hdr, &socket);
            let start = at * MESSAGE;
            let end = start + message.msg_len as usize;
            let segment = if segment == 0 { MESSAGE } else { segment };
            let mut cut = start;
            loop {
                let next = end.min(cut + segment);
                self.arrived.push(Arrived { range: cut..next, from, to });
                cut = next;
                if cut >= end {
                    break;
                }
            }
        }
        self.datagrams += self.arrived.len() as u64;
        Ok(count == RECEIVED)
    }
}

/// What the control messages tell: the local address, and the size of each datagram where GRO joined several (else 0).
fn described(header: &libc::msghdr, socket: &Socket) -> (SocketAddr, usize) {
    let mut ip = socket.bound.ip();
    let mut segment = 0;
    // SAFETY: the kernel filled the control bytes of *header* and says in it how many; the macros stay within them, and the data of
    // each message are read unaligned, as the plain old data that the kernel documents for its type.
    unsafe {
        let mut at = libc::CMSG_FIRSTHDR(header);
        while let Some(control) = at.as_ref() {
            let data = libc::CMSG_DATA(at);
            match (control.cmsg_level, control.cmsg_type) {
                (libc::IPPROTO_IP, libc::IP_PKTINFO) => {
                    let info: libc::in_pktinfo = ptr::read_unaligned(data.cast());
                    ip = IpAddr::V4(Ipv4Addr::from(info.ipi_addr.s_addr.to_ne_bytes()));
                }
                (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO) => {
                    let info: libc::in6_pktinfo = ptr::read_unaligned(data.cast());
                    ip = IpAddr::V6(Ipv6Addr::from(info.ipi6_addr.s6_addr)).to_canonical();
                }
                (libc::SOL_UDP, libc::UDP_GRO) => {
                    segment = usize::try_from(ptr::read_unaligned(data.cast::<i32>())).unwrap_or(0);
                }
                _ => {}
            }
            at = libc::CMSG_NXTHDR(header, at);
        }
    }
    (SocketAddr::new(ip, socket.bound.port()), segment)
}

/// One message of a sendmmsg.
struct Planned {
    range: Range<usize>,
    /// The burst that it is of, counted from the first of the call.
    burst: usize,
    /// The size of each datagram where the kernel is to cut it; else it is one datagram.
    cut: Option<u16>,
}

/// Writes to one socket.
pub struct Sender {
    socket: Option<Socket>,
    /// The kernel cuts bursts apart (GSO); false for good once it would not.
    joined: bool,
    /// Of the burst that is first in the next call: bytes that are done with, and whether it goes as single datagrams.
    begun: usize,
    apart: bool,
    plan: Vec<Planned>,
    names: Vec<Name>,
    pieces: Vec<libc::iovec>,
    controls: Vec<Control>,
    messages: Vec<libc::mmsghdr>,
    /// System calls so far.
    pub calls: u64,
    /// Datagrams given to the kernel so far.
    pub datagrams: u64,
    /// Datagrams that the kernel would not take: no way there, or the like. Loss detection deals with them.
    pub failed: u64,
}

impl Sender {
    pub fn new() -> Sender {
        Sender {
            socket: None,
            joined: true,
            begun: 0,
            apart: false,
            plan: Vec::with_capacity(SENT),
            names: Vec::with_capacity(SENT),
            pieces: Vec::with_capacity(SENT),
            controls: Vec::with_capacity(SENT),
            messages: Vec::with_capacity(SENT),
            calls: 0,
            datagrams: 0,
            failed: 0,
        }
    }

    /// Sends *bursts* of *arena*; how many of them are done with: sent, or given up for a reason that is only theirs. Fewer than all
    /// means that the socket is full: the next call begins with the first that is left, unchanged.
    pub fn send(&mut self, fd: RawFd, bursts: &[Burst], arena: &[u8]) -> usize {
        self.send_by(fd, bursts, arena, |messages| {
            // SAFETY: ``fill`` made each message point to a name, a piece of *arena* and control bytes that outlive the call.
            let count = unsafe { libc::sendmmsg(fd, messages.as_mut_ptr(), messages.len() as u32, libc::MSG_DONTWAIT as _) };
            usize::try_from(count).map_err(|_| io::Error::last_os_error())
        })
    }

    fn send_by(
        &mut self,
        fd: RawFd,
        bursts: &[Burst],
        arena: &[u8],
        mut kernel: impl FnMut(&mut [libc::mmsghdr]) -> io::Result<usize>,
    ) -> usize {
        let socket = match self.socket {
            Some(socket) if socket.fd == fd => socket,
            _ => {
                let Ok(socket) = Socket::of(fd) else {
                    self.failed += bursts.iter().map(|burst| count(burst.range.len(), burst.segment)).sum::<u64>();
                    return bursts.len();
                };
                *self.socket.insert(socket)
            }
        };
        let mut done = 0;
        while done < bursts.len() {
            self.lay_out(&bursts[done..]);
            self.fill(&socket, &bursts[done..], arena);
            self.calls += 1;
            let first = done;
            match kernel(&mut self.messages) {
                Ok(taken) => {
                    for at in 0..taken {
                        self.datagrams += self.datagrams_of(&bursts[first..], at);
                        done += usize::from(self.advance(&bursts[first..], at));
                    }
                }
                Err(error) => match error.raw_os_error() {
                    Some(libc::EAGAIN) => break,
                    Some(libc::EINTR) => {}
                    reason => {
                        if let Some(segment) = self.plan[0].cut {
                            self.apart = true;
                            // No offload on this way out (EIO), or no GSO here; a large segment may just be larger than the link.
                            self.joined = reason != Some(libc::EIO) && usize::from(segment) > FITS_ANY_LINK;
                        } else {
                            self.failed += 1;
                            done += usize::from(self.advance(&bursts[first..], 0));
                        }
                    }
                },
            }
        }
        done
    }

    /// Plans the messages of one call.
    fn lay_out(&mut self, bursts: &[Burst]) {
        self.plan.clear();
        for (at, burst) in bursts.iter().enumerate() {
            let Range { mut start, end } = burst.range.clone();
            let mut apart = !self.joined;
            if at == 0 {
                start += self.begun;
                apart |= self.apart;
            }
            loop {
                if self.plan.len() == SENT {
                    return;
                }
                let next = if apart { end.min(start + burst.segment) } else { end };
                let cut = (next - start > burst.segment).then_some(burst.segment as u16);
                self.plan.push(Planned { range: start..next, burst: at, cut });
                start = next;
                if start >= end {
                    break;
                }
            }
        }
    }

    /// Makes the kernel's structures of the plan.
    fn fill(&mut self, socket: &Socket, bursts: &[Burst], arena: &[u8]) {
        self.names.clear();
        self.pieces.clear();
        self.controls.clear();
        self.messages.clear();
        for planned in &self.plan {
            let burst = &bursts[planned.burst];
            let piece = &arena[planned.range.clone()];
            self.names.push(socket.encode(burst.to).0);
            // The kernel only reads, whatever the type of the pointer says.
            self.pieces.push(libc::iovec { iov_base: piece.as_ptr().cast_mut().cast(), iov_len: piece.len() });
            self.controls.push(NO_CONTROL);
        }
        // The vectors have their final lengths: from here on nothing in them moves.
        for (at, planned) in self.plan.iter().enumerate() {
            let burst = &bursts[planned.burst];
            let mut message = message(&mut self.pieces[at]);
            message.msg_hdr.msg_name = ptr::from_mut(&mut self.names[at]).cast();
            message.msg_hdr.msg_namelen = socket.encode(burst.to).1;
            let source = socket.source(burst.from);
            if source.is_some() || planned.cut.is_some() {
                write_controls(&mut message.msg_hdr, &mut self.controls[at], socket.six, source, planned.cut);
            }
            self.messages.push(message);
        }
    }

    fn datagrams_of(&self, bursts: &[Burst], at: usize) -> u64 {
        let planned = &self.plan[at];
        count(planned.range.len(), bursts[planned.burst].segment)
    }

    /// Message *at* of the plan is done with. True when its burst is.
    fn advance(&mut self, bursts: &[Burst], at: usize) -> bool {
        let planned = &self.plan[at];
        let whole = &bursts[planned.burst].range;
        let complete = planned.range.end == whole.end;
        self.begun = if complete { 0 } else { planned.range.end - whole.start };
        self.apart &= !complete;
        complete
    }
}

fn count(bytes: usize, segment: usize) -> u64 {
    bytes.div_ceil(segment).max(1) as u64
}

/// Writes the source address and the segment size into *control*, and makes *header* point there.
fn write_controls(header: &mut libc::msghdr, control: &mut Control, six: bool, source: Option<IpAddr>, cut: Option<u16>) {
    header.msg_control = control.0.as_mut_ptr().cast();
    header.msg_controllen = control.0.len() as _;
    let mut used = 0;
    // SAFETY: *control* is aligned as cmsghdr is and has room for both messages (40 and 24 bytes); it is zero, so that CMSG_NXTHDR
    // finds the next place by the length of the message before it.
    unsafe {
        let mut at = libc::CMSG_FIRSTHDR(header);
        let mut put = |level: i32, kind: i32, data: *const u8, size: usize| {
            (*at).cmsg_level = level;
            (*at).cmsg_type = kind;
            (*at).cmsg_len = libc::CMSG_LEN(size as u32) as _;
            ptr::copy_nonoverlapping(data, libc::CMSG_DATA(at), size);
            used += libc::CMSG_SPACE(size as u32);
            at = libc::CMSG_NXTHDR(header, at);
        };
        match source {
            Some(IpAddr::V4(v4)) if !six => {
                // The kernel takes the source from ipi_spec_dst (ip(7)).
                let mut info: libc::in_pktinfo = mem::zeroed();
                info.ipi_spec_dst.s_addr = u32::from_ne_bytes(v4.octets());
                put(libc::IPPROTO_IP, libc::IP_PKTINFO, ptr::from_ref(&info).cast(), mem::size_of_val(&info));
            }
            Some(ip) => {
                let ip = match ip {
                    IpAddr::V4(v4) => v4.to_ipv6_mapped(),
                    IpAddr::V6(v6) => v6,
                };
                let info = libc::in6_pktinfo { ipi6_addr: libc::in6_addr { s6_addr: ip.octets() }, ipi6_ifindex: 0 };
                put(libc::IPPROTO_IPV6, libc::IPV6_PKTINFO, ptr::from_ref(&info).cast(), mem::size_of_val(&info));
            }
            None => {}
        }
        if let Some(segment) = cut {
            put(libc::SOL_UDP, libc::UDP_SEGMENT, ptr::from_ref(&segment).cast(), mem::size_of_val(&segment));
        }
    }
    header.msg_controllen = used as _;
}

/// A message of one piece, without name and control.
fn message(piece: &mut libc::iovec) -> libc::mmsghdr {
    // SAFETY: null pointers and zeros are a valid message; the padding that some C libraries have in it has no names to set.
    let mut message: libc::mmsghdr = unsafe { mem::zeroed() };
    message.msg_hdr.msg_iov = piece;
    message.msg_hdr.msg_iovlen = 1;
    message
}

/// The MTU of the link that has the address, in bytes: no packet from there can be larger. None where that can't be found out.
#[must_use]
pub fn link_mtu(local: IpAddr) -> Option<usize> {
    let mut list = ptr::null_mut();
    // SAFETY: the kernel's answer is a list that is ours until freeifaddrs.
    check(unsafe { libc::getifaddrs(&raw mut list) }).ok()?;
    let mut names = Vec::new();
    let mut next = list;
    while !next.is_null() {
        // SAFETY: not null, so an entry of the list, which is not freed yet.
        let entry = unsafe { &*next };
        next = entry.ifa_next;
        if address_of(entry.ifa_addr).is_some_and(|found| found == local || found.is_loopback() && local.is_loopback()) {
            // SAFETY: every entry has a name, which ends with a zero byte.
            names.extend(unsafe { CStr::from_ptr(entry.ifa_name) }.to_str().map(str::to_owned));
        }
    }
    // SAFETY: from getifaddrs, once, and no reference into it is left.
    unsafe { libc::freeifaddrs(list) };
    let read = |name: String| fs::read_to_string(format!("/sys/class/net/{name}/mtu")).ok()?.trim().parse().ok();
    names.into_iter().filter_map(read).min()
}

/// The IP address of an interface; None for one of another kind.
fn address_of(raw: *const libc::sockaddr) -> Option<IpAddr> {
    // SAFETY: null, or an address as long as its family says.
    match i32::from(unsafe { raw.as_ref() }?.sa_family) {
        libc::AF_INET => {
            // SAFETY: as above.
            let v4 = unsafe { ptr::read_unaligned(raw.cast::<libc::sockaddr_in>()) };
            Some(Ipv4Addr::from(u32::from_be(v4.sin_addr.s_addr)).into())
        }
        libc::AF_INET6 => {
            // SAFETY: as above.
            let v6 = unsafe { ptr::read_unaligned(raw.cast::<libc::sockaddr_in6>()) };
            Some(Ipv6Addr::from(v6.sin6_addr.s6_addr).into())
        }
        _ => None,
    }
}

/// An address as the kernel gave it, and its canonical form.
fn decode(name: &Name) -> Option<(SocketAddr, SocketAddr)> {
    // SAFETY: both members are plain integers, and both begin with the family.
    unsafe {
        match i32::from(name.v4.sin_family) {
            libc::AF_INET => {
                let ip = Ipv4Addr::from(name.v4.sin_addr.s_addr.to_ne_bytes());
                let address = SocketAddr::V4(SocketAddrV4::new(ip, u16::from_be(name.v4.sin_port)));
                Some((address, address))
            }
            libc::AF_INET6 => {
                let ip = Ipv6Addr::from(name.v6.sin6_addr.s6_addr);
                let port = u16::from_be(name.v6.sin6_port);
                let raw = SocketAddr::V6(SocketAddrV6::new(ip, port, 0, name.v6.sin6_scope_id));
                Some((raw, ip.to_ipv4_mapped().map_or(raw, |v4| SocketAddr::V4(SocketAddrV4::new(v4, port)))))
            }
            _ => None,
        }
    }
}

fn check(result: i32) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::UdpSocket;
    use std::os::fd::AsRawFd;

    fn bound(address: &str) -> (UdpSocket, SocketAddr) {
        let socket = UdpSocket::bind(address).expect("a loopback address");
        socket.set_nonblocking(true).expect("a socket");
        let address = socket.local_addr().expect("a bound socket");
        (socket, address)
    }

    fn burst(range: Range<usize>, segment: usize, from: SocketAddr, to: SocketAddr) -> Burst {
        Burst { range, segment, from, to }
    }

    /// Receives until *wanted* datagrams are there: their bytes with both addresses.
    fn read(receiver: &mut Receiver, fd: RawFd, wanted: usize) -> Vec<(Vec<u8>, SocketAddr, SocketAddr)> {
        let mut got = Vec::new();
        for _ in 0..1000 {
            receiver.receive(fd).expect("a UDP socket");
            got.extend(receiver.arrived.iter().map(|one| (receiver.arena[one.range.clone()].to_vec(), one.from, one.to)));
            if got.len() >= wanted {
                break;
            }
            std::thread::yield_now();
        }
        got
    }

    fn arena(size: usize) -> Vec<u8> {
        (0..size).map(|at| (at / 7) as u8).collect()
    }

    fn a_burst_arrives_whole(server: &str, client: &str, seen: &str) {
        let (server, at) = bound(server);
        let (client, from) = bound(client);
        let to: SocketAddr = format!("{seen}:{}", at.port()).parse().expect("an address");
        let data = arena(10 * 1200 + 300);
        let mut sender = Sender::new();
        let bursts = [burst(0..data.len(), 1200, from, to), burst(5..6, 1200, from, to)];
        assert_eq!(sender.send(client.as_raw_fd(), &bursts, &data), 2);
        assert_eq!((sender.datagrams, sender.failed, sender.calls), (12, 0, 1));
        let mut receiver = Receiver::new();
        let got = read(&mut receiver, server.as_raw_fd(), 12);
        let mut expected: Vec<_> = data.chunks(1200).map(|piece| (piece.to_vec(), from, to)).collect();
        expected.push((data[5..6].to_vec(), from, to));
        assert_eq!(got, expected);
        assert_eq!(receiver.datagrams, 12);
    }

    #[test]
    fn the_mtu_of_a_link_is_found_by_its_address() {
        assert!(link_mtu(IpAddr::from([127, 0, 0, 7])).is_some_and(|mtu| mtu >= 1280));
        assert_eq!(link_mtu(IpAddr::from([203, 0, 113, 1])), None); // of nobody (RFC 5737)
    }

    #[test]
    fn a_burst_arrives_whole_over_ipv4() {
        a_burst_arrives_whole("127.0.0.1:0", "127.0.0.1:0", "127.0.0.1");
    }

    #[test]
    fn a_burst_arrives_whole_over_ipv6() {
        a_burst_arrives_whole("[::1]:0", "[::1]:0", "[::1]");
    }

    #[test]
    fn a_wildcard_socket_tells_which_of_its_addresses_was_meant() {
        a_burst_arrives_whole("0.0.0.0:0", "127.0.0.1:0", "127.0.0.77");
        a_burst_arrives_whole("[::]:0", "[::1]:0", "[::1]");
    }

    #[test]
    fn a_dual_stack_socket_shows_ipv4_as_such() {
        a_burst_arrives_whole("[::]:0", "127.0.0.1:0", "127.0.0.1");
    }

    #[test]
    fn an_answer_leaves_from_the_address_that_was_asked() {
        for wildcard in ["0.0.0.0:0", "[::]:0"] {
            let (server, at) = bound(wildcard);
            let (client, asker) = bound("127.0.0.1:0");
            let from = SocketAddr::from(([127, 0, 0, 9], at.port()));
            let data = arena(2400);
            let mut sender = Sender::new();
            // one burst and one single datagram: with and without a segment size beside the source
            let bursts = [burst(0..2400, 1200, from, asker), burst(0..100, 1200, from, asker)];
            assert_eq!(sender.send(server.as_raw_fd(), &bursts, &data), 2);
            let got = read(&mut Receiver::new(), client.as_raw_fd(), 3);
            assert_eq!(got.iter().map(|one| (one.0.len(), one.1)).collect::<Vec<_>>(), [(1200, from), (1200, from), (100, from)]);
        }
    }

    #[test]
    fn gro_joins_and_is_cut_apart_again() {
        let (server, to) = bound("127.0.0.1:0");
        let (client, from) = bound("127.0.0.1:0");
        let mut receiver = Receiver::new();
        assert!(!receiver.receive(server.as_raw_fd()).expect("a socket")); // switches GRO on
        let data = arena(40 * 1000 + 1);
        assert_eq!(Sender::new().send(client.as_raw_fd(), &[burst(0..data.len(), 1000, from, to)], &data), 1);
        let got = read(&mut receiver, server.as_raw_fd(), 41);
        assert_eq!(got.iter().map(|one| one.0.len()).collect::<Vec<_>>(), [vec![1000; 40], vec![1]].concat());
        assert_eq!(got.concat_bytes(), data);
        assert_eq!(receiver.calls, 2, "41 datagrams with one call");
    }

    trait ConcatBytes {
        fn concat_bytes(&self) -> Vec<u8>;
    }

    impl ConcatBytes for Vec<(Vec<u8>, SocketAddr, SocketAddr)> {
        fn concat_bytes(&self) -> Vec<u8> {
            self.iter().flat_map(|one| one.0.clone()).collect()
        }
    }

    #[test]
    fn an_empty_datagram_is_one() {
        let (server, to) = bound("127.0.0.1:0");
        let (client, from) = bound("127.0.0.1:0");
        client.send_to(b"", to).expect("a way");
        assert_eq!(read(&mut Receiver::new(), server.as_raw_fd(), 1), [(Vec::new(), from, to)]);
    }

    #[test]
    fn more_messages_than_one_call_takes_are_told() {
        let (server, to) = bound("127.0.0.1:0");
        let mut clients = Vec::new();
        for number in 0..=RECEIVED {
            let (client, _) = bound("127.0.0.1:0");
            client.send_to(&[number as u8], to).expect("a way");
            clients.push(client);
        }
        let mut receiver = Receiver::new();
        assert!(receiver.receive(server.as_raw_fd()).expect("a socket"));
        assert_eq!(receiver.arrived.len(), RECEIVED);
        assert!(!receiver.receive(server.as_raw_fd()).expect("a socket"));
        assert_eq!(receiver.arrived.len(), 1);
        assert!(!receiver.receive(server.as_raw_fd()).expect("a socket"));
        assert!(receiver.arrived.is_empty());
    }

    #[test]
    fn what_is_no_socket_is_an_error_in_and_a_failure_out() {
        assert!(Receiver::new().receive(-1).is_err());
        let here = SocketAddr::from(([127, 0, 0, 1], 9));
        let mut sender = Sender::new();
        assert_eq!(sender.send(-1, &[burst(0..2500, 1200, here, here)], &arena(2500)), 1);
        assert_eq!((sender.failed, sender.datagrams), (3, 0));
    }

    #[test]
    fn a_destination_without_a_way_costs_only_its_own_datagrams() {
        let (client, from) = bound("127.0.0.1:0");
        let (server, to) = bound("127.0.0.1:0");
        // An IPv4 socket has no way to an IPv6 address, and a socket bound to loopback none to the rest of the world.
        let nowhere: SocketAddr = "[2001:db8::1]:443".parse().expect("an address");
        let data = arena(1200);
        let bursts = [burst(0..1200, 1200, from, nowhere), burst(0..1200, 400, from, nowhere), burst(0..1200, 1200, from, to)];
        let mut sender = Sender::new();
        assert_eq!(sender.send(client.as_raw_fd(), &bursts, &data), 3);
        assert_eq!((sender.failed, sender.datagrams), (4, 1));
        assert_eq!(read(&mut Receiver::new(), server.as_raw_fd(), 1).len(), 1);
    }

    /// The kernel of a script: each entry answers one call, with how many messages it takes or an error; then it takes all.
    /// Returns the sizes that it took, call by call.
    fn scripted(sender: &mut Sender, bursts: &[Burst], data: &[u8], script: &[Result<usize, i32>]) -> (usize, Vec<Vec<usize>>) {
        let (socket, _) = bound("127.0.0.1:0");
        let mut script = script.iter();
        let mut calls = Vec::new();
        let done = sender.send_by(socket.as_raw_fd(), bursts, data, |messages| {
            // SAFETY: ``fill`` made one piece for each message.
            let sizes: Vec<usize> = messages.iter().map(|one| unsafe { (*one.msg_hdr.msg_iov).iov_len }).collect();
            match script.next() {
                Some(Err(number)) => Err(io::Error::from_raw_os_error(*number)),
                Some(Ok(count)) => {
                    calls.push(sizes[..*count].to_vec());
                    Ok(*count)
                }
                None => {
                    calls.push(sizes.clone());
                    Ok(sizes.len())
                }
            }
        });
        (done, calls)
    }

    fn three(segment: usize) -> Vec<Burst> {
        let here = SocketAddr::from(([127, 0, 0, 1], 9));
        (0..3).map(|_| burst(0..3 * segment - 100, segment, here, here)).collect()
    }

    #[test]
    fn a_full_socket_keeps_the_rest() {
        let data = arena(6000);
        let bursts = three(1200);
        let mut sender = Sender::new();
        assert_eq!(scripted(&mut sender, &bursts, &data, &[Ok(1), Err(libc::EAGAIN)]), (1, vec![vec![3500]]));
        assert_eq!(scripted(&mut sender, &bursts[1..], &data, &[Err(libc::EAGAIN)]), (0, vec![]));
        assert_eq!(scripted(&mut sender, &bursts[1..], &data, &[Err(libc::EINTR)]), (2, vec![vec![3500, 3500]]));
        assert_eq!((sender.datagrams, sender.failed), (9, 0));
    }

    #[test]
    fn without_offload_bursts_go_one_by_one_for_good() {
        let data = arena(6000);
        let bursts = three(1200);
        let mut sender = Sender::new();
        let apart = vec![1200, 1200, 1100];
        // the socket fills in the middle of the first burst, which is not sent twice
        assert_eq!(scripted(&mut sender, &bursts, &data, &[Err(libc::EIO), Ok(2), Err(libc::EAGAIN)]), (0, vec![vec![1200, 1200]]));
        assert_eq!(scripted(&mut sender, &bursts, &data, &[]), (3, vec![[vec![1100], apart.clone(), apart.clone()].concat()]));
        assert_eq!(scripted(&mut sender, &bursts, &data, &[]), (3, vec![apart.repeat(3)]));
        assert_eq!((sender.datagrams, sender.failed), (18, 0));
    }

    #[test]
    fn segments_larger_than_the_link_end_no_offload() {
        let data = arena(6000);
        let bursts = three(1500);
        let mut sender = Sender::new();
        let script = [Err(libc::EINVAL), Err(libc::EMSGSIZE), Err(libc::EMSGSIZE), Ok(1)];
        assert_eq!(scripted(&mut sender, &bursts, &data, &script), (3, vec![vec![1400], vec![4400, 4400]]));
        assert_eq!((sender.datagrams, sender.failed), (7, 2));
        assert_eq!(scripted(&mut sender, &three(1200), &data, &[Err(libc::EINVAL)]), (3, vec![[1200, 1200, 1100].repeat(3)]));
    }

    #[test]
    fn a_batch_is_bounded() {
        let here = SocketAddr::from(([127, 0, 0, 1], 9));
        let bursts = vec![burst(0..100, 1200, here, here); SENT + 6];
        let (done, calls) = scripted(&mut Sender::new(), &bursts, &arena(100), &[]);
        assert_eq!((done, calls.iter().map(Vec::len).collect::<Vec<_>>()), (SENT + 6, vec![SENT, 6]));
    }
}
