"""The life of one request, top to bottom. Read this first.

An exchange *decides*: which route, whether the client may, which backend, whether to try another one, what to answer. Which site it is, and
whether the connection may ask for it, ``admission`` says. Body bytes go through ``pipe.Pipe`` and not through here (the request's by way of
``upload.Upload``). It is synchronous wherever it can be: with an idle connection to the backend at hand, a request goes from its head to
bytes towards the backend with no task, no future and no timer; only a connect makes it come back later.

    on_request -> _serve -> _forward -> _try -> _send -> on_response_head -> on_response_body ... -> on_response_end -> _finish
                     |                   ^  |
                     +-> _answer         |  +-> on_connect_failed / on_upstream_error -> _fail (no other candidate may be tried)
                                         +------------------------+

Every path ends in ``_finish``, once: there the counters, the balancer's report and the access log line are.
"""

from collections.abc import Iterator, Sequence
from functools import partial

from balancer.affinity import address_key
from balancer.backend import Backend
from balancer.pool import Outcome
from proxy.admission import Admitted, admit, health
from proxy.answers import date_header, failure_headers, plain_text
from proxy.deadlines import Expiring
from proxy.early import TOO_EARLY, declared, marked, unmarked
from proxy.engine.events import Informational, RequestBody, RequestHead, ResponseHead, UpstreamRequest
from proxy.errors import Kind, ProxyError, Reset
from proxy.message import Header, Headers, bracketed, host_of
from proxy.meters import AccessRecord, AccessSink
from proxy.pipe import Pipe
from proxy.policy.answer import Redirect, Respond
from proxy.policy.forwarded import from_stranger
from proxy.policy.headers import strip_hop_by_hop
from proxy.policy.template import Variables
from proxy.services import Services
from proxy.snapshot import Forward, Route, Timeouts
from proxy.stream import Attempt, BackendConnection, BackendConnections, ClientConnection
from proxy.upload import Upload

IDEMPOTENT = frozenset({b"GET", b"HEAD", b"OPTIONS", b"PUT", b"DELETE", b"TRACE"})
"""Methods that may be sent again (RFC 9110, section 9.2.2)."""

MAX_CONNECT_FAILURES = 8
"""Candidates that one request may fail to connect to, however long the pool is."""

_SUCCESS = Outcome.SUCCESS


class Exchange:
    """One request of one client, and its answer."""

    __slots__ = (
        "_action",
        "_admitted",
        "_attempt",
        "_attempts",
        "_backend",
        "_body_out",
        "_candidates",
        "_client_address",
        "_connect_failures",
        "_connected_at",
        "_connection",
        "_done",
        "_endpoint",
        "_first_byte",
        "_head",
        "_head_sent",
        "_key",
        "_progress",
        "_request",
        "_request_id",
        "_response_pipe",
        "_route",
        "_sent_at",
        "_services",
        "_started",
        "_status",
        "_tried",
        "_upload",
        "bucket",
        "client",
        "stream",
    )

    def __init__(self, services: Services, client: ClientConnection, head: RequestHead) -> None:
        self._services = services
        self.client = client
        self.stream = head.stream
        self.bucket: dict[Expiring, None] | None = None
        self._head = head
        self._started = self._progress = services.clock()
        self._done = self._head_sent = False
        self._status = self._attempts = self._connect_failures = self._body_out = 0
        self._admitted: Admitted | None = None
        self._route: Route | None = None
        self._request_id = self._key = b""
        self._client_address = ""
        # towards the backend
        self._action: Forward | None = None
        self._candidates: Iterator[Backend] | None = None
        self._backend: Backend | None = None
        self._tried: Backend | None = None
        self._endpoint: BackendConnections | None = None
        self._attempt: Attempt | None = None
        self._connection: BackendConnection | None = None
        self._request: UpstreamRequest | None = None
        self._upload: Upload | None = None
        self._connected_at = self._sent_at = self._first_byte = 0.0
        self._response_pipe: Pipe | None = None

    # 1. Which site and route

    def on_request(self) -> None:
        """The request head has come: decide."""
        head = self._head
        client = self.client
        snapshot = self._services.snapshot
        admitted = client.admitted
        if admitted is None or not admitted.holds(snapshot, client, head):
            try:
                found = admit(self._services, client, head)
            except ProxyError as error:
                self._fail(error)
                return
            if isinstance(found, Respond):
                self._answer(found.status, found.headers, found.body)
                return
            admitted = client.admitted = found
        elif snapshot.answers_health(admitted.host, head.path):
            answer = health(self._services, head.method)
            self._answer(answer.status, answer.headers, answer.body)
            return
        self._admitted = admitted
        admitted.requests.value += 1
        route = self._route = admitted.site.routes.find(head.method, head.path, head.headers)
        if route is None:
            self._fail(ProxyError(Kind.NO_ROUTE, "no route of this site matches"))
        elif (load := self._services.shedding) is not None and load.sheds(route.priority, head.headers, client.peer[0]):
            words = "the proxy has too much to do for a request of this class"
            self._fail(ProxyError(Kind.OVERLOADED, words, retry_after=load.retry_after()))
        else:
            self._serve(route, admitted)

    # 2. The route's policies

    def _serve(self, route: Route, admitted: Admitted) -> None:
        if route.access is not None and not route.access.permits(self._address()):
            self._fail(ProxyError(Kind.DENIED, "the client's address is not allowed here"))
            return
        action = route.action
        if isinstance(action, Forward):
            length = self._head.content_length
            if route.body_bytes and length is not None and length > route.body_bytes:
                self._too_large(route)
            else:
                self._forward(route, action, admitted)
        elif isinstance(action, Redirect):
            headers = [(b"location", action.target(self._variables())), (b"content-length", b"0")]
            self._answer(action.status, self._edited(headers), b"")
        else:
            assert isinstance(action, Respond)
            self._answer(action.status, self._edited(list(action.headers)), action.body)

    def _too_large(self, route: Route) -> None:
        self._services.meters.limits_hit.cell("body_size").value += 1
        self._fail(ProxyError(Kind.BODY_TOO_LARGE, f"the request body is limited to {route.body_bytes} bytes"))

    def _edited(self, headers: Headers) -> Headers:
        """The fields of an answer as this route sends them; *headers* is changed."""
        route, admitted = self._route, self._admitted
        assert route is not None
        assert admitted is not None
        if admitted.alt_svc is not None:
            headers.append(admitted.alt_svc)
        edit = route.response_headers
        return headers if edit is None else edit.apply(headers, self._variables)

    def _address(self) -> str:
        """The client's address: the peer's, or the one that a trusted proxy names."""
        if not self._client_address:
            self._client_address = self._services.snapshot.forwarding.client_address(self.client.peer[0], self._head.headers)
        return self._client_address

    def _variables(self) -> Variables:
        head = self._head
        return Variables(
            method=head.method,
            scheme=head.scheme,
            host=bracketed(host_of(head.authority)),
            path=head.path,
            version=self.client.version.encode(),
            client_address=self._address().encode(),
            request_id=self._id(),
            affinity_key=self.client.affinity_key.hex().encode(),
            sni=(self.client.sni or "").encode(),
            backend=self._backend.identity.encode() if self._backend is not None else b"",
        )

    def _id(self) -> bytes:
        if not self._request_id:
            self._request_id = self._services.make_request_id()
        return self._request_id

    # 3. Which backend

    def _forward(self, route: Route, action: Forward, admitted: Admitted) -> None:
        services = self._services
        head = self._head
        client = self.client
        self._action = action
        hop, edit = admitted.hop, route.request_headers
        if hop is not None and edit is None:
            headers = head.headers if head.plain else from_stranger(head.headers)
            self._client_address = hop.address
            request_id = self._request_id = services.make_request_id()
            lines = b"%b%b\r\n" % (hop.lines, request_id)
        else:  # a trusted proxy's word counts, or a field may be one that is to be set: field by field
            outbound = admitted.snapshot.forwarding.outbound(
                head.headers, peer=client.peer[0], authority=head.authority, scheme=head.scheme, version=client.version
            )
            self._client_address = outbound.client_address
            self._request_id = outbound.request_id
            headers = outbound.headers if edit is None else edit.apply(outbound.headers, self._variables)
            lines = b""
        if head.early:
            headers = marked(headers)
        target = head.path if action.rewrite is None else action.rewrite.apply(head.path)
        self._request = UpstreamRequest(head.method, target, head.authority, headers, head.content_length, head.end, lines)
        if not head.end:
            self._upload = Upload(partial(client.consumed, self.stream), route.retry.body_bytes)
        now = self._started
        services.deadlines.begin(self, route.timeouts.first, now)
        pool = action.pool
        pool.balancer.note_request(now)
        self._key = client.affinity_key
        if pool.key.kind != "connection":
            self._key = pool.key.key(connection_key=client.affinity_key, client_key=self._client_key, path=head.path, headers=head.headers)
        pinned = client.pins.get(pool.name) if pool.pins else None
        if pinned is not None and pool.balancer.stays(pinned):
            self._try(pinned, now)
            return
        self._candidates = pool.balancer.candidates(self._key, now, pinned)
        backend = next(self._candidates, None)
        if backend is None:
            self._fail(ProxyError(Kind.NO_BACKEND, "no backend of the pool is available"))
        else:
            self._try(backend, now)

    def _client_key(self) -> bytes:
        return address_key(self._services.secret, self._address())

    def _try(self, backend: Backend, now: float, *, fresh: bool = False) -> None:
        """Send to a candidate: on an idle connection at once (unless it must be a *fresh* one), or on a new one later."""
        action = self._action
        assert action is not None
        self._backend = self._tried = backend
        self._attempts += 1
        action.pool.balancer.acquire(backend)
        endpoint = self._endpoint = self._services.upstreams.of(action.pool, backend.identity)
        connection = None if fresh else endpoint.take()
        if connection is not None:
            self._send(connection, now)
        else:
            assert self._route is not None
            self._attempt = endpoint.open(self, self._route.timeouts.connect, fast_open=self._head.method in IDEMPOTENT)

    def on_connected(self, connection: BackendConnection) -> None:
        """A new connection to the candidate is there."""
        self._attempt = None
        self._send(connection, self._services.clock())

    def on_connect_failed(self, error: ProxyError) -> None:
        """The candidate can't be reached: nothing was sent, so any request may walk on to the next one, at once."""
        self._attempt = None
        now = self._services.clock()
        if error.kind is Kind.OVERLOADED:
            self._connect_relieved(error, now)
            return
        self._give_up_backend(Outcome.CONNECT_FAILED, now)
        self._connect_failures += 1
        self._attempts -= 1
        candidate = self._next_candidate(now) if self._connect_failures < MAX_CONNECT_FAILURES else None
        if candidate is None:
            self._fail(error)
        else:
            self._try_again(candidate, now)

    def _connect_relieved(self, error: ProxyError, now: float) -> None:
        """We have no file descriptor left, which is no backend's fault: ask for one that is in reserve, once, and try the same again."""
        backend = self._backend
        assert backend is not None
        self._give_up_backend(None, now)
        self._connect_failures += 1
        self._attempts -= 1
        self._services.relieve()
        if self._connect_failures == 1:
            self._try(backend, now)
        else:
            self._fail(error)

    def _next_candidate(self, now: float) -> Backend | None:
        """The next one that was not tried yet."""
        candidates = self._candidates
        if candidates is None:  # the first one was pinned
            action, tried = self._action, self._tried
            assert action is not None
            assert tried is not None
            candidates = self._candidates = action.pool.balancer.others(self._key, now, tried)
        return next(candidates, None)

    def _try_again(self, candidate: Backend, now: float) -> None:
        assert self._action is not None
        self._services.meters.upstream_retries.cell(self._action.pool.name).value += 1
        self._try(candidate, now)

    # 4. To the backend

    def _send(self, connection: BackendConnection, now: float) -> None:
        action, backend, request = self._action, self._backend, self._request
        assert action is not None
        assert backend is not None
        assert request is not None
        self._connection = connection
        self._connected_at = self._sent_at = self._progress = now
        if action.host is not None:
            request.host = action.host or action.pool.endpoint(backend.identity).authority
        connection.begin(self, request)
        upload = self._upload
        if upload is None:
            return
        if self._head.expect_continue and self._attempts == 1 and not upload.complete and not upload.received:
            self.client.inform(self.stream, 100, [])
        upload.flow_to(connection)

    def on_request_body(self, event: RequestBody) -> None:
        """Body bytes from the client."""
        if self._done:
            self.client.consumed(self.stream, event.credit)
            return
        route, upload = self._route, self._upload
        assert route is not None
        assert upload is not None
        self._progress = self._services.clock()
        if route.body_bytes and upload.received + len(event.data) > route.body_bytes:
            self._too_large(route)
        else:
            upload.push(event.data, event.credit)

    def on_request_end(self, trailers: Headers) -> None:
        """The request is complete."""
        if self._upload is None or self._done:
            return
        self._progress = self._services.clock()
        if not self._first_byte:
            self._sent_at = self._progress
        self._upload.end(trailers)

    def on_upstream_drained(self) -> None:
        """The backend takes more of the request body."""
        if self._upload is not None:
            self._progress = self._services.clock()
            self._upload.drained()

    # 5. From the backend

    def on_informational(self, event: Informational) -> None:
        """A 1xx answer; 100 was ours to give."""
        if event.status != 100:
            self.client.inform(self.stream, event.status, strip_hop_by_hop(event.headers))

    def on_response_head(self, event: ResponseHead, now: float) -> None:
        """The backend answers; when all of it came at once, it needs no pipe."""
        if self._head.early and event.status == TOO_EARLY and not declared(self._head.headers):
            self._repeat_later(event, now)
            return
        headers = self._begin_response(event, now)
        self._head_sent = True
        client = self.client
        if not event.end:
            connection = self._connection
            assert connection is not None
            client.send_head(self.stream, event.status, headers, end=False)
            self._response_pipe = Pipe(partial(client.send_data, self.stream, end=False), connection.credit, connection.hold)
            return
        self._connection = None
        if event.body:
            self._body_out = len(event.body)
            client.respond(self.stream, event.status, headers, event.body)
        else:
            client.send_head(self.stream, event.status, headers, end=True)
        self._finish("complete", _SUCCESS, now)

    def _repeat_later(self, event: ResponseHead, now: float) -> None:
        """The backend wants the request, which was early, after the handshake (RFC 8470, section 5.2)."""
        connection, self._connection = self._connection, None
        if not event.end and connection is not None:
            connection.abort()
        self._give_up_backend(_SUCCESS, now)
        assert self._request is not None
        self._request.headers = unmarked(self._request.headers)
        self._head.early = False
        if not self.client.await_handshake(self.stream):
            self.on_handshake_completed()

    def on_handshake_completed(self) -> None:
        """The client is no replay: its request goes to the same backend again."""
        if not self._done:
            assert self._tried is not None
            self._attempts -= 1
            self._try(self._tried, self._services.clock())

    def _begin_response(self, event: ResponseHead, now: float) -> Headers:
        """Take note of the answer; gives the fields that go on to the client."""
        action, backend, endpoint = self._action, self._backend, self._endpoint
        assert action is not None
        assert backend is not None
        assert endpoint is not None
        self._first_byte = self._progress = now
        endpoint.seconds.observe(now - self._sent_at)
        self._status = event.status
        if action.pool.pins:
            self.client.pins[action.pool.name] = backend
        headers = event.headers if event.plain else strip_hop_by_hop(event.headers)
        if not event.dated:
            headers.append(date_header(self._services.wall_clock()))  # RFC 9110, section 6.6.1
        if self._upload is not None:
            self._upload.commit()
        return self._edited(headers)

    def on_response_body(self, data: bytes, now: float) -> None:
        """Body bytes from the backend."""
        assert self._response_pipe is not None
        self._progress = now
        self._response_pipe.push(data, len(data))

    def on_response_end(self, trailers: Headers, now: float) -> None:
        """The answer is complete."""
        self._connection = None
        if trailers:
            self.client.send_trailers(self.stream, trailers)
        else:
            self.client.send_data(self.stream, b"", end=True)
        self._finish("complete", _SUCCESS, now)

    def on_drained(self) -> None:
        """The client takes more of the answer."""
        if self._response_pipe is not None:
            self._progress = self._services.clock()
            self._response_pipe.drained()

    # 6. What can go wrong

    def on_upstream_error(self, error: ProxyError, *, stale: bool) -> None:
        """The connection to the backend failed, before or within the answer."""
        self._connection = None
        upload = self._upload
        if upload is not None:
            upload.interrupt()
        route, action = self._route, self._action
        assert route is not None
        assert action is not None
        if self._head_sent:
            self._fail(error)
            return
        replayable = upload is None or upload.replayable
        if error.kind is Kind.CONNECT_REFUSED and replayable:
            self.on_connect_failed(error)  # known only now, since TCP Fast Open had put the request into the SYN
            return
        repeatable = replayable and (error.retry or self._head.method in IDEMPOTENT)
        now = self._services.clock()
        if stale and repeatable:
            # It closed while idle: the backend has not failed, and the same one is asked again. On a new connection: the other idle
            # ones are as old, and this happens once at most.
            backend = self._backend
            assert backend is not None
            self._give_up_backend(None, now)
            self._attempts -= 1
            self._try(backend, now, fresh=True)
            return
        self._give_up_backend(Outcome.CONNECT_FAILED if error.kind is Kind.CONNECT_REFUSED else Outcome.RESPONSE_FAILED, now)
        if repeatable and self._attempts < route.retry.attempts:
            candidate = self._next_candidate(now)
            if candidate is not None and action.pool.balancer.allow_retry(now):
                self._try_again(candidate, now)
                return
        self._fail(error)

    def on_client_reset(self, reason: str) -> None:
        """The client went away or cut the stream: the backend hears of it at once."""
        if self._done:
            return
        if not self._head_sent:
            self._status = Kind.CANCELLED.status
        self._drop_upstream()
        self._finish(f"client: {reason}", None, self._services.clock())

    def on_rejected(self, status: int, detail: str) -> None:
        """The engine refused the rest of the request, and has answered so or cut the stream: the backend hears of it at once."""
        if self._done:
            return
        if not self._head_sent:
            self._status = status
        self._drop_upstream()
        self._finish("malformed", None, self._services.clock(), ProxyError(Kind.BAD_REQUEST, detail))

    def on_deadline(self, now: float) -> float | None:
        """The wheel asks: is it time? Gives the next time to ask."""
        if self._done or self._route is None:
            return None
        try:
            return self._check_time(self._route.timeouts, now)
        except Exception as error:  # noqa: BLE001  # the wheel turns for everybody
            self.on_internal_error(error)
            return None

    def _check_time(self, timeouts: Timeouts, now: float) -> float | None:
        if timeouts.total and now >= self._started + timeouts.total:
            self._time_out(ProxyError(Kind.TOTAL_TIMEOUT, f"not complete within {timeouts.total:g} s"))
            return None
        if self._connection is None:
            due = now + timeouts.body_idle  # each connect has its own limit, and there are MAX_CONNECT_FAILURES at most
        elif self._head_sent or (self._upload is not None and not self._upload.complete):
            due = self._progress + timeouts.body_idle
            if now >= due:
                self._time_out(self._idle_error(timeouts.body_idle))
                return None
        else:
            due = self._sent_at + timeouts.response
            if now >= due:
                self._time_out(ProxyError(Kind.RESPONSE_TIMEOUT, f"no response head within {timeouts.response:g} s"))
                return None
        # the next phase may have the shorter limit, and begins now at the earliest
        due = min(due, now + timeouts.response, now + timeouts.body_idle)
        return min(due, self._started + timeouts.total) if timeouts.total else due

    def _idle_error(self, seconds: float) -> ProxyError:
        """Whose silence it was."""
        if self._head_sent:
            if self._response_pipe is not None and self._response_pipe.stalled:
                return ProxyError(Kind.REQUEST_TIMEOUT, f"the client took nothing of the answer for {seconds:g} s")
            return ProxyError(Kind.READ_TIMEOUT, f"the backend sent nothing of its answer for {seconds:g} s")
        if self._upload is not None and self._upload.stalled:
            return ProxyError(Kind.READ_TIMEOUT, f"the backend took nothing of the request for {seconds:g} s")
        return ProxyError(Kind.REQUEST_TIMEOUT, f"the client sent nothing of its request for {seconds:g} s")

    def _time_out(self, error: ProxyError) -> None:
        upstream = error.kind in {Kind.RESPONSE_TIMEOUT, Kind.READ_TIMEOUT}
        self._drop_upstream()
        if upstream:
            self._give_up_backend(Outcome.RESPONSE_FAILED, self._services.clock())
        self._fail(error)

    # 7. How it ends

    def _answer(self, status: int, headers: Sequence[Header], body: bytes) -> None:
        """An answer of our own."""
        self._status = status
        self._head_sent = True
        self._body_out = len(body) if self._head.method != b"HEAD" else 0
        self.client.respond(self.stream, status, [*headers, date_header(self._services.wall_clock())], body)
        self._finish("answered", None, self._services.clock())

    def _fail(self, error: ProxyError) -> None:
        """Turn a fault into what the client gets for it: the only place."""
        if self._done:
            return
        self._drop_upstream()
        kind = error.kind
        self._services.meters.exchange_errors.cell(kind.name.lower()).value += 1
        if self._head_sent:
            self.client.reset(self.stream, Reset.INTERNAL if kind is not Kind.REQUEST_TIMEOUT else Reset.CANCEL)
        else:
            self._status = kind.status
            self._head_sent = True
            headers = failure_headers(error, self._id(), self._services.wall_clock())
            text = plain_text(error, self._id())
            self._body_out = len(text) if self._head.method != b"HEAD" else 0
            self.client.respond(self.stream, kind.status, headers, text)
        outcome = Outcome.RESPONSE_FAILED if kind in {Kind.UPSTREAM_CLOSED, Kind.UPSTREAM_PROTOCOL} else None
        self._finish(kind.name.lower(), outcome, self._services.clock(), error)

    def on_internal_error(self, error: Exception) -> None:
        """A fault of our own: logged once with its traceback, answered with 500; the worker lives."""
        log = self._services.log
        log.error("an exchange failed", request_id=self._id().decode("latin-1"), exc_info=error)
        try:
            self._fail(ProxyError(Kind.INTERNAL, "an internal error; the log has more under this request id"))
        except Exception as worse:  # even the answer failed: what is left is to be forgotten
            log.exception("a failed exchange could not be answered", exc_info=worse)
            self._finish(Kind.INTERNAL.name.lower(), None, self._services.clock())
        self.client.exchange_done(self.stream)  # for a fault within _finish

    def _drop_upstream(self) -> None:
        if self._attempt is not None:
            self._attempt.abandon()
            self._attempt = None
        if self._connection is not None:
            self._connection.abort()
            self._connection = None
        if self._upload is not None:
            self._upload.interrupt()

    def _give_up_backend(self, outcome: Outcome | None, now: float) -> None:
        """The present attempt is over: tell the balancer how it went."""
        backend, self._backend = self._backend, None
        if backend is not None:
            assert self._action is not None
            pool = self._action.pool
            if pool.balancer.release(backend, outcome, now):
                self._services.log.warning("backend changed state", pool=pool.name, backend=backend.identity, state=backend.state)

    def _finish(self, ended: str, outcome: Outcome | None, now: float, error: ProxyError | None = None) -> None:
        if self._done:
            return
        self._done = True
        services = self._services
        services.deadlines.cancel(self)
        body_in = self._upload.received if self._upload is not None else 0
        body_out = self._response_pipe.moved if self._response_pipe is not None else self._body_out
        self._give_up_backend(outcome, now)
        route = self._route
        if route is not None:
            counters = route.counters
            counters.statuses[min(self._status // 100, 5)].value += 1
            counters.bytes_in.value += body_in
            counters.bytes_out.value += body_out
            counters.seconds.observe(now - self._started)
        if services.access_log is not None:
            self._log(services.access_log, ended, error, now - self._started, (body_in, body_out))
        self.client.exchange_done(self.stream)

    def _log(self, log: AccessSink, ended: str, error: ProxyError | None, seconds: float, body_bytes: tuple[int, int]) -> None:
        head = self._head
        client = self.client
        log.append(
            AccessRecord(
                request_id=self._id(),
                time=self._services.wall_clock(),
                listener=client.listener.name,
                version=client.version,
                method=head.method,
                host=head.authority,
                path=head.path,
                status=self._status,
                site=self._admitted.site.name if self._admitted is not None else "",
                route=self._route.name if self._route is not None else "",
                backend=self._tried.identity if self._tried is not None else "",
                key=self._key,
                client_address=self._client_address or client.peer[0],
                bytes_in=body_bytes[0],
                bytes_out=body_bytes[1],
                seconds=seconds,
                seconds_connect=self._connected_at - self._started if self._connected_at else 0.0,
                seconds_first_byte=self._first_byte - self._started if self._first_byte else 0.0,
                attempts=self._attempts,
                ended=ended,
                error=error.detail if error is not None else "",
            )
        )
