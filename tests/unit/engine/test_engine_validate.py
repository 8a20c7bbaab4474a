"""One validator for all versions: what it lets through whole, and the reason and status of what it refuses."""

import pytest

from proxy.engine import grammar
from proxy.engine.events import RequestHead
from proxy.engine.seam import EngineLimits
from proxy.engine.validate import REASONS, Framing, Malformed, plain_request, plain_response, pseudo_request, trailers
from proxy.policy.forwarded import FROM_STRANGERS
from proxy.policy.headers import HOP_BY_HOP

LIMITS = EngineLimits()
CONNECTION_FIELDS = {b"connection", b"keep-alive", b"proxy-connection", b"transfer-encoding", b"upgrade"}
PSEUDO = [(b":method", b"GET"), (b":scheme", b"https"), (b":authority", b"a.example.com"), (b":path", b"/")]


def pseudo(*fields, base=PSEUDO, limits=LIMITS, **replaced):
    """A request of HTTP/2 or HTTP/3; ``path=None`` leaves a pseudo-field out."""
    names = {b":" + name.encode(): value for name, value in replaced.items()}
    head = [(name, names.get(name, value)) for name, value in base]
    return pseudo_request(1, [field for field in head if field[1] is not None] + list(fields), limits, end=True)


def lines(fields):
    """Field lines of HTTP/1 for names and values as they stand."""
    return [name + b":" + value for name, value in fields]


def response(fields):
    return plain_response(200, lines(fields))[0]


def plain(*fields, method=b"GET", target=b"/", host=b"a.example.com", limits=LIMITS, scheme=b"https", http_1_0=False):
    """A request of HTTP/1; ``host=None`` leaves Host out."""
    head = [] if host is None else [(b"Host", b" " + host)]
    return plain_request(1, method, target, lines(head + list(fields)), limits, scheme=scheme, http_1_0=http_1_0)[0]


def framing(*fields):
    """What a request of HTTP/1 says of its body and its connection."""
    return plain_request(1, b"POST", b"/", lines([(b"host", b"a"), *fields]), LIMITS, scheme=b"https")[1]


def refusal(call, *args, **kwargs):
    with pytest.raises(Malformed) as caught:
        call(*args, **kwargs)
    assert caught.value.reason in REASONS
    assert caught.value.detail.isprintable()
    return caught.value.reason, caught.value.status


# What passes


def test_pseudo_request_whole():
    fields = [*PSEUDO, (b"accept", b"*/*"), (b"x-y", b"\xe4 1\t2"), (b"te", b"trailers"), (b"content-length", b"007"), (b"x-empty", b"")]
    assert pseudo_request(3, fields, LIMITS, end=False) == RequestHead(
        stream=3,
        method=b"GET",
        scheme=b"https",
        authority=b"a.example.com",
        path=b"/",
        headers=[(b"accept", b"*/*"), (b"x-y", b"\xe4 1\t2"), (b"te", b"trailers"), (b"content-length", b"7"), (b"x-empty", b"")],
        end=False,
        content_length=7,
        expect_continue=False,
    )


def test_plain_request_whole():
    parts = plain_request(
        5,
        b"POST",
        b"/a?b=/../c",
        lines(
            [
                (b"hOST", b"\ta.example.com:8443 "),
                (b"X-Thing", b" one "),
                (b"X-Empty", b""),
                (b"Connection", b" Keep-Alive, X-Thing"),
                (b"TE", b" trailers, deflate;q=0.5"),
                (b"Expect", b" 100-Continue"),
                (b"Content-Length", b" 5 "),
                (b"content-length", b"5"),
            ]
        ),
        LIMITS,
        scheme=b"http",
    )
    head = RequestHead(
        stream=5,
        method=b"POST",
        scheme=b"http",
        authority=b"a.example.com:8443",
        path=b"/a?b=/../c",
        headers=[
            (b"x-thing", b"one"),
            (b"x-empty", b""),
            (b"connection", b"Keep-Alive, X-Thing"),
            (b"te", b"trailers, deflate;q=0.5"),
            (b"content-length", b"5"),
        ],
        end=True,
        content_length=5,
        expect_continue=True,
    )
    assert parts == (head, Framing(connection=b"keep-alive, x-thing", accepts_trailers=True))


@pytest.mark.parametrize("value", [b"close", b"Close", b"keep-alive", b"Keep-Alive"])
def test_a_connection_field_that_names_no_other_ends_here(value):
    assert (plain((b"Connection", value)).headers, response([(b"Connection", value)]).headers) == ([], [])
    assert framing((b"Connection", value)) == plain_response(200, lines([(b"Connection", value)]))[1] == Framing(connection=value.lower())
    assert plain((b"Connection", value)).plain
    assert response([(b"Connection", value)]).plain


def test_chunked_is_told_and_taken_out():
    parts = plain((b"Transfer-Encoding", b" Chunked "), method=b"POST")
    assert (parts.content_length, parts.headers) == (None, [])
    assert framing((b"Transfer-Encoding", b" Chunked ")) == Framing(transfer_encoding=b"chunked")


@pytest.mark.parametrize("name", sorted(FROM_STRANGERS))
def test_a_head_with_a_field_that_a_proxy_takes_out_is_not_plain(name):
    value = {b"te": b"trailers", b"upgrade": b"h2c", b"transfer-encoding": b"chunked", b"connection": b"x"}.get(name, b"1")
    names = (name, name.title(), name.upper())
    framed = name == b"transfer-encoding"  # taken out by the engine itself
    assert all(plain((form, value), method=b"POST").plain is framed for form in names)
    if name in HOP_BY_HOP:
        assert all(response([(form, value)]).plain is framed for form in names)
    if name in CONNECTION_FIELDS:
        assert refusal(pseudo, (name, value)) == ("connection_field", 400)
    else:
        assert not pseudo((name, value)).plain


def test_a_head_without_such_fields_is_plain():
    fields = [(b"accept", b"*/*"), (b"cookie", b"a=1"), (b"date", b"x"), (b"content-length", b"0"), (b"x-y", b"")]
    assert pseudo(*fields).plain
    assert plain(*fields).plain
    assert response(fields).plain


def test_a_response_is_dated_or_not():
    assert response([(b"DATE", b"Mon, 23 Nov 2026 03:00:00 GMT")]).dated
    assert not response([(b"x-date", b"Mon, 23 Nov 2026 03:00:00 GMT")]).dated


def test_cookie_crumbs_become_one_field_in_place():
    parts = pseudo((b"cookie", b"a=1"), (b"accept", b"*/*"), (b"cookie", b"b=2"), (b"cookie", b"c=3"))
    assert parts.headers == [(b"cookie", b"a=1; b=2; c=3"), (b"accept", b"*/*")]


def test_fields_of_http_1_that_policies_deal_with_stay():
    fields = [(b"cookie", b"a=1"), (b"cookie", b"b=2"), (b"keep-alive", b"timeout=5"), (b"proxy-connection", b"close")]
    assert plain(*fields).headers == fields


def test_host_alone_makes_the_authority():
    assert pseudo((b"host", b"b.example.com"), authority=None).authority == b"b.example.com"


@pytest.mark.parametrize(
    ("authority", "host"),
    [(b"a.example.com", b"A.Example.COM"), (b"a.example.com", b"a.example.com:443"), (b"a.example.com:443", b"a.example.com")],
)
def test_host_and_authority_that_name_the_same_agree(authority, host):
    assert pseudo((b"host", host), authority=authority).authority == authority


def test_expectation_is_told_and_taken_out():
    parts = pseudo((b"expect", b"100-continue"), (b"content-length", b"1"))
    assert (parts.expect_continue, parts.headers) == (True, [(b"content-length", b"1")])


def test_http_1_0_goes_without_host_and_without_expectations():
    parts = plain((b"Expect", b"anything"), host=None, http_1_0=True)
    assert (parts.authority, parts.expect_continue, parts.headers) == (b"", False, [])


@pytest.mark.parametrize(
    ("method", "target", "authority", "path"),
    [
        (b"GET", b"https://a.example.com/x?y", b"a.example.com", b"/x?y"),
        (b"GET", b"HTTPS://a.example.com", b"a.example.com", b"/"),
        (b"GET", b"https://a.example.com?y=/", b"a.example.com", b"/?y=/"),
        (b"OPTIONS", b"https://a.example.com", b"a.example.com", b"*"),
        (b"OPTIONS", b"*", b"a.example.com", b"*"),
        (b"GET", b"https://a.example.com:443/", b"a.example.com:443", b"/"),
        (b"GET", b"/https://b.example.com/", b"a.example.com", b"/https://b.example.com/"),
    ],
)
def test_target_forms(method, target, authority, path):
    parts = plain(method=method, target=target)
    assert (parts.authority, parts.path) == (authority, path)


GOOD_PATHS = [
    b"/",
    b"/.well-known/acme-challenge/x",
    b"/a/...",
    b"/a..b/.c/..d",
    b"/%41%2e%2ea",
    b"/a%20b",
    b"//double",
    b"/a;b=1",
    b"/?a=%zz&b=..&c=\\&d=/../",
    b"/x?",
    b"/%7euser",
    b'/"<>^`{|}',
]


@pytest.mark.parametrize("path", GOOD_PATHS)
def test_paths_that_pass(path):
    assert (pseudo(path=path).path, plain(target=path).path) == (path, path)


@pytest.mark.parametrize(
    "authority",
    [b"a", b"a.example.com.", b"A_b-c.example.com", b"127.0.0.1:80", b"[::1]", b"[2001:db8::1]:8443", b"[::ffff:1.2.3.4]:1", b"x:65535"],
)
def test_authorities_that_pass(authority):
    assert (pseudo(authority=authority).authority, plain(host=authority).authority) == (authority, authority)


def test_any_token_is_a_method():
    assert (pseudo(method=b"M-SEARCH!").method, plain(method=b"get").method) == (b"M-SEARCH!", b"get")


# Paths, authorities, methods, schemes

BAD_PATHS = [
    b"",
    b"a",
    b"*",
    b"?a",
    b"/a b",
    b"/a\tb",
    b"/a#b",
    b"/a?b#c",
    b"/\xc3\xa4",
    b"/a\x7f",
    b"/.",
    b"/..",
    b"/a/../b",
    b"/a/./b",
    b"/a/..?b",
    b"/%2e%2e/b",
    b"/.%2E/b",
    b"/a/%2e",
    b"/a%2f..%2fb",
    b"/a%5c..%5cb",
    b"/a\\b",
    b"/..;x=1/b",
    b"/..%3bx/b",
    b"/%",
    b"/%4",
    b"/%zz",
    b"/%00",
    b"/a%0d%0ab",
    b"/%7f",
]


@pytest.mark.parametrize("path", BAD_PATHS)
def test_paths_refused(path):
    assert refusal(plain, target=path) == ("path", 400)
    control = path.endswith(b"\x7f")  # there the value of a pseudo-field
    assert refusal(pseudo, path=path) == ("field_value" if control else "path", 400)


BAD_AUTHORITIES = [
    b"",
    b"user@a.example.com",
    b"user:pw@a.example.com",
    b"a.example.com:",
    b"a.example.com:0",
    b"a.example.com:65536",
    b"a.example.com:+80",
    b"a.example.com:80:80",
    b"a..example.com",
    b".example.com",
    b"a.example.com/x",
    b"a.example.com?x",
    b"a b",
    b"a,b",
    b"%61.example.com",
    b"a\\b",
    b"::1",
    b"[::1",
    b"[::1]x",
    b"[1::2::3]",
    b"[fe80::1%25eth0]",
    b"[v1.x]",
    b"\xe4.example.com",
    b"a" * 262,
]


@pytest.mark.parametrize("authority", BAD_AUTHORITIES)
def test_authorities_refused(authority):
    assert refusal(pseudo, authority=authority) == ("authority", 400)
    assert refusal(pseudo, (b"host", authority), authority=None) == ("authority", 400)
    assert refusal(plain, host=authority) == ("authority", 400)
    assert refusal(plain, host=authority, http_1_0=True) == ("authority", 400)


@pytest.mark.parametrize("host", [b"b.example.com", b"a.example.com:80", b"a.example.com.", b""])
def test_host_against_the_authority(host):
    assert refusal(pseudo, (b"host", host)) == ("authority", 400)
    assert refusal(plain, host=host, target=b"https://a.example.com/") == ("authority", 400)


def test_host_missing_or_twice():
    assert refusal(pseudo, authority=None) == ("authority", 400)
    assert refusal(pseudo, (b"host", b"a.example.com"), (b"host", b"a.example.com")) == ("authority", 400)
    assert refusal(plain, host=None) == ("authority", 400)
    assert refusal(plain, (b"HOST", b"a.example.com")) == ("authority", 400)


@pytest.mark.parametrize("target", [b"ftp://a.example.com/", b"http://a.example.com/", b"://a.example.com/"])
def test_another_scheme_than_the_connections(target):
    assert refusal(plain, target=target) == ("scheme", 400)


@pytest.mark.parametrize("target", [b"https://", b"https:///x", b"https://user@a.example.com/", b"https://a.example.com\\@b/"])
def test_absolute_form_without_a_good_authority(target):
    assert refusal(plain, target=target, host=None) == ("authority", 400)


@pytest.mark.parametrize("target", [b"a.example.com:443", b"a.example.com", b"/../https://a.example.com", b"x/https://a.example.com/"])
def test_no_target_form(target):
    assert refusal(plain, target=target) == ("path", 400)


@pytest.mark.parametrize("method", [b"", b"G ET", b"GET\t", b"G(T", b"G\xcbT", b'"GET"', b"G/T", b"G:T", b"G@T", b"{GET}", b"G,T", b"G=T"])
def test_methods_refused(method):
    assert refusal(pseudo, method=method)[1] == 400
    assert refusal(plain, method=method) == ("method", 400)


def test_connect_and_upgrades_are_not_implemented():
    assert refusal(pseudo, (b"accept", b"*/*"), method=b"CONNECT") == ("not_implemented", 501)
    assert refusal(pseudo, method=b"CONNECT", scheme=None, path=None) == ("not_implemented", 501)
    assert refusal(pseudo, base=[*PSEUDO, (b":protocol", b"websocket")], method=b"CONNECT") == ("not_implemented", 501)
    assert refusal(plain, method=b"CONNECT", target=b"a.example.com:443") == ("not_implemented", 501)
    assert refusal(plain, (b"Connection", b"Upgrade"), (b"Upgrade", b"websocket")) == ("not_implemented", 501)


def test_an_upgrade_that_may_be_ignored_is():
    assert plain((b"Connection", b"Upgrade, HTTP2-Settings"), (b"Upgrade", b"h2c"), (b"HTTP2-Settings", b"AAMAAABk")).path == b"/"
    assert plain((b"Upgrade", b"websocket")).path == b"/"  # without Connection it asks for nothing (RFC 9110, section 7.8)


# Pseudo-fields


@pytest.mark.parametrize(
    "fields",
    [
        PSEUDO[1:],
        [PSEUDO[0], *PSEUDO[2:]],
        PSEUDO[:3],
        [*PSEUDO, PSEUDO[0]],
        [*PSEUDO, PSEUDO[1]],
        [*PSEUDO, PSEUDO[2]],
        [*PSEUDO, PSEUDO[3]],
        [*PSEUDO, (b":protocol", b"x"), (b":protocol", b"x")],
        [*PSEUDO[:3], (b"accept", b"*/*"), PSEUDO[3]],
        [*PSEUDO[:3], (b"host", b"a.example.com"), PSEUDO[3]],
        [*PSEUDO[:3], (b"cookie", b"a=1"), PSEUDO[3]],
        [(b"te", b"trailers"), *PSEUDO],
        [*PSEUDO, (b":status", b"200")],
        [*PSEUDO, (b":unknown", b"x")],
        [*PSEUDO, (b":", b"x")],
        [*PSEUDO, (b":Path", b"/")],
    ],
)
def test_pseudo_fields_refused(fields):
    assert refusal(pseudo_request, 1, fields, LIMITS, end=True) == ("pseudo_field", 400)


def test_pseudo_fields_are_no_names_on_http_1():
    assert refusal(plain, (b":method", b"GET")) == ("field_name", 400)


@pytest.mark.parametrize("scheme", [b"", b"ftp", b"HTTPS", b"https:"])
def test_schemes_refused(scheme):
    assert refusal(pseudo, scheme=scheme) == ("scheme", 400)


# Fields

BAD_NAMES = [b"", b"a b", b" a", b"a ", b"a\t", b"a:b", b"a\0", b"a\r", b"a\n", b"\xe4", b"a(b)", b"a/b", b"a\x7f", b"a@b", b'"a"', b"a,b"]


@pytest.mark.parametrize("name", BAD_NAMES)
def test_names_refused(name):
    assert refusal(pseudo, (name, b"x")) == ("field_name", 400)
    if b":" not in name:  # a line of HTTP/1 ends its name there
        assert refusal(plain, (name, b"x")) == ("field_name", 400)
        assert refusal(response, [(name, b"x")]) == ("field_name", 400)
    assert refusal(trailers, [(name, b"x")], LIMITS) == ("field_name", 400)


@pytest.mark.parametrize("name", [b"Accept", b"X-y", b"HOST", b"x-Y"])
def test_upper_case_is_malformed_after_http_1(name):
    assert refusal(pseudo, (name, b"x")) == ("field_name", 400)
    assert refusal(trailers, [(name, b"x")], LIMITS) == ("field_name", 400)


@pytest.mark.parametrize("byte", [*range(9), *range(0x0A, 0x20), 0x7F])
def test_control_characters_in_values_refused(byte):
    value = b"a" + bytes([byte]) + b"b"
    for name in (b"accept", b"x-other", b"cookie", b"content-length", b"host"):
        assert refusal(pseudo, (name, value)) == ("field_value", 400)
        assert refusal(plain, (name, value)) == ("field_value", 400)
        assert refusal(response, [(name, value)]) == ("field_value", 400)
        assert refusal(trailers, [(name, value)], LIMITS) == ("field_value", 400)
    assert refusal(pseudo, path=b"/" + value) == ("field_value", 400)


@pytest.mark.parametrize("value", [b" a", b"a ", b"\ta", b"a\t", b" ", b"\t"])
def test_white_space_around_values_is_malformed_after_http_1(value):
    assert refusal(pseudo, (b"accept", value)) == ("field_value", 400)
    assert refusal(pseudo, (b"accept", value), (b"x-y", b"1")) == ("field_value", 400)
    assert refusal(pseudo, path=value)[1] == 400
    assert refusal(trailers, [(b"x-y", value)], LIMITS) == ("field_value", 400)
    assert plain((b"Accept", value)).headers == [(b"accept", value.strip())]


@pytest.mark.parametrize(
    "field",
    [
        (b"connection", b"close"),
        (b"connection", b"keep-alive"),
        (b"keep-alive", b"timeout=5"),
        (b"proxy-connection", b"close"),
        (b"transfer-encoding", b"chunked"),
        (b"upgrade", b"h2c"),
        (b"te", b"gzip"),
        (b"te", b"trailers, gzip"),
        (b"te", b""),
    ],
)
def test_connection_specific_fields_are_malformed_after_http_1(field):
    assert refusal(pseudo, field) == ("connection_field", 400)


@pytest.mark.parametrize("value", [b"content-length", b"close, Content-Length", b"transfer-encoding", b"keep-alive,host", b"HOST"])
def test_connection_does_not_take_framing_away(value):
    assert refusal(plain, (b"Connection", value), (b"Content-Length", b"5")) == ("connection_field", 400)


def test_unknown_expectation():
    assert refusal(pseudo, (b"expect", b"tea")) == ("expect", 417)
    assert refusal(plain, (b"Expect", b"")) == ("expect", 417)


# Framing

BAD_LENGTHS = [
    b"",
    b"+5",
    b"-1",
    b"-0",
    b"1_0",
    b"5, 6",
    b"5, 5",
    b"5,5",
    b"0x5",
    b"5.0",
    b"5e1",
    b"5 5",
    b"five",
    b"5;",
    b"\xb2",
    b"1" * 19,
    b"9" * 5000,
]


@pytest.mark.parametrize("value", BAD_LENGTHS)
def test_content_lengths_refused(value):
    assert refusal(pseudo, (b"content-length", value)) == ("content_length", 400)
    assert refusal(plain, (b"Content-Length", value)) == ("content_length", 400)
    assert refusal(response, [(b"Content-Length", value)]) == ("content_length", 400)


def test_content_lengths_that_differ():
    assert refusal(pseudo, (b"content-length", b"5"), (b"content-length", b"6")) == ("content_length", 400)
    assert refusal(plain, (b"Content-Length", b"5"), (b"content-length", b"6")) == ("content_length", 400)
    assert refusal(response, [(b"Content-Length", b"5"), (b"content-length", b"6")]) == ("content_length", 400)


def test_content_lengths_that_agree_become_one():
    fields = (b"content-length", b"5"), (b"content-length", b"5")
    assert pseudo(*fields).headers == plain(*fields).headers == response(fields).headers == [(b"content-length", b"5")]


@pytest.mark.parametrize(
    ("value", "status"),
    [
        (b"gzip, chunked", 501),
        (b"gzip", 400),
        (b"identity", 400),
        (b"chunked, chunked", 400),
        (b"chunked, identity", 400),
        (b"xchunked", 400),
        (b"chunked;a=b", 400),
        (b'"chunked"', 400),
        (b"chunked,", 400),
        (b",chunked", 400),
        (b"", 400),
        (b"chunked chunked", 400),
        (b"x chunked", 400),
    ],
)
def test_transfer_encodings_refused(value, status):
    assert refusal(plain, (b"Transfer-Encoding", value), method=b"POST") == ("transfer_encoding", status)


def test_transfer_encoding_in_company():
    chunked = (b"Transfer-Encoding", b"chunked")
    assert refusal(plain, chunked, (b"Content-Length", b"5")) == ("transfer_encoding", 400)
    assert refusal(plain, (b"Content-Length", b"0"), chunked) == ("transfer_encoding", 400)
    assert refusal(plain, chunked, chunked) == ("transfer_encoding", 400)
    assert refusal(plain, (b"Transfer-Encoding", b""), chunked) == ("transfer_encoding", 400)
    assert refusal(plain, chunked, http_1_0=True) == ("transfer_encoding", 400)


# Limits


def test_field_count():
    limits = EngineLimits(header_count=6)
    two, three = [(b"a", b"1")] * 2, [(b"a", b"1")] * 3
    assert len(pseudo(*two, limits=limits).headers) == 2
    assert refusal(pseudo, *three, limits=limits) == ("too_many_fields", 431)
    assert refusal(plain, *three, *three, limits=limits) == ("too_many_fields", 431)
    assert refusal(trailers, [*three, *three, *three], limits) == ("too_many_fields", 431)


def test_section_size_counts_32_for_each_field():
    size = sum(len(name) + len(value) + 32 for name, value in PSEUDO)
    assert pseudo(limits=EngineLimits(header_bytes=size)).path == b"/"
    assert refusal(pseudo, limits=EngineLimits(header_bytes=size - 1)) == ("header_too_large", 431)
    line = len(b"GET") + len(b"/") + len(b"Host") + len(b" a.example.com") + 32
    assert plain(limits=EngineLimits(header_bytes=line)).path == b"/"
    assert refusal(plain, limits=EngineLimits(header_bytes=line - 1)) == ("header_too_large", 431)


def test_what_is_remembered_is_bounded():
    for number in range(3 * grammar.NAMES_REMEMBERED):
        name = b"x-%d" % number
        pseudo((name, b"1"), authority=b"h%d.example" % number)
        plain((name.upper(), b"1"))
    pseudo((b"x" * (grammar.NAME_BYTES_REMEMBERED + 1), b"1"))
    assert b"x" * (grammar.NAME_BYTES_REMEMBERED + 1) not in grammar.lower_names
    assert len(grammar.lower_names) <= grammar.NAMES_REMEMBERED
    assert len(grammar.folded_names) <= grammar.NAMES_REMEMBERED
    assert len(grammar._authorities) <= grammar.AUTHORITIES_REMEMBERED
    assert refusal(pseudo, (b"connection", b"close")) == ("connection_field", 400)


# Trailers and responses


def test_trailers():
    fields = [(b"grpc-status", b"0"), (b"etag", b'"x"'), (b"set-cookie", b"a=1"), (b"authorization", b"x"), (b"x-checksum", b"1")]
    assert trailers(fields, LIMITS) == [(b"grpc-status", b"0"), (b"etag", b'"x"'), (b"x-checksum", b"1")]
    assert trailers([(b"X-Checksum", b" 1 ")], LIMITS, fold=True) == [(b"x-checksum", b"1")]
    assert trailers([], LIMITS) == []


@pytest.mark.parametrize("name", [b"content-length", b"transfer-encoding", b"host", b"connection", b"upgrade", b"keep-alive", b":path"])
def test_trailers_refused(name):
    assert refusal(trailers, [(name, b"1")], LIMITS) == ("trailers", 400)


def test_pseudo_fields_are_no_trailers():
    assert refusal(trailers, [(b":status", b"200")], LIMITS) == ("pseudo_field", 400)


def test_response_whole():
    fields = [
        (b"Content-Type", b" text/plain "),
        (b"CONTENT-LENGTH", b"5"),
        (b"Transfer-Encoding", b"x"),
        (b"Connection", b"Close"),
        (b"Host", b"a"),
    ]
    expected = [(b"content-type", b"text/plain"), (b"content-length", b"5")]
    head, framed = plain_response(200, lines(fields))
    assert (head.content_length, head.headers) == (5, expected)
    assert framed == Framing(b"x", b"close")


def test_backends_have_more_room():
    assert len(response([(b"a", b"1")] * 200).headers) == 200
    assert refusal(response, [(b"a", b"1")] * 201) == ("too_many_fields", 431)
    assert refusal(response, [(b"a", b"1" * 65536)]) == ("header_too_large", 431)
