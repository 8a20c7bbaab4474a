"""No field of one hop reaches the next, whatever is sent; a stranger's claims never do; rewritten paths stay paths."""

from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.policy.access import Networks
from proxy.policy.forwarded import Forwarding
from proxy.policy.headers import HOP_BY_HOP, KEPT, strip_hop_by_hop
from proxy.policy.path import canonical, prefix_length
from proxy.policy.rewrite import PathRewrite
from proxy.policy.template import NAMES, Template, TemplateError, Variables

names = st.sampled_from(
    sorted({*HOP_BY_HOP, *KEPT, b"accept", b"cookie", b"x-a", b"x-b", b"x-real-ip", b"x_forwarded_for"} - {b"connection"})
)
options = st.lists(names | st.sampled_from([b"close", b"Keep-Alive", b"X-A", b"", b" x-b\t"]), max_size=4).map(b",".join)
fields = st.tuples(names, st.sampled_from([b"", b"1", b"forged", b"for=forged", b"10.9.9.9, forged"])) | st.tuples(
    st.just(b"connection"), options
)
addresses = st.sampled_from(["192.0.2.1", "10.0.0.1", "::1", "::ffff:10.0.0.1", "nowhere"])


def named_by_connection(headers):
    return {option.strip(b" \t").lower() for name, value in headers if name == b"connection" for option in value.split(b",")} - KEPT


@settings(max_examples=300, deadline=None)
@given(st.lists(fields, max_size=12))
def test_nothing_of_one_hop_passes_and_all_else_does_in_order(headers):
    gone = HOP_BY_HOP | named_by_connection(headers)
    assert strip_hop_by_hop(headers) == [field for field in headers if field[0] not in gone]


@settings(max_examples=300, deadline=None)
@given(st.lists(fields, max_size=12), addresses)
def test_outbound_lets_no_hop_by_hop_field_through_and_says_each_thing_once(headers, peer):
    rule = Forwarding(Networks(["10.0.0.0/8"]), lambda: b"made")
    result = rule.outbound(headers, peer=peer, authority=b"a.example.com:1", scheme=b"https", version="HTTP/3")
    gone = HOP_BY_HOP | named_by_connection(headers)
    sent = [name for name, _ in result.headers]
    assert not gone & set(sent)
    for name in (b"forwarded", b"x-forwarded-for", b"x-forwarded-host", b"x-forwarded-proto", b"x-request-id"):
        assert sent.count(name) == 1
    assert [value for name, value in result.headers if name == b"content-length"] == [v for n, v in headers if n == b"content-length"]
    assert result.headers[-2][0] == b"via"
    if not rule._peers[peer].trusted:
        ours = [value for name, value in result.headers if b"forwarded" in name or name in {b"x-real-ip", b"x-request-id"}]
        assert not any(b"forged" in value for value in ours)
        assert result.client_address == ("unknown" if peer == "nowhere" else peer)
    assert rule.client_address(peer, headers) == result.client_address


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.sampled_from([b"/", b"a", b"%61", b"%2F", b"b", b"%", b"//", b"."]), max_size=8).map(lambda parts: b"/" + b"".join(parts)),
    st.sampled_from([b"/", b"/a", b"/a/", b"/a/b", b"/a/b/"]),
    st.sampled_from([b"", b"/", b"/v1", b"/v1/"]),
)
def test_a_rewrite_takes_exactly_the_prefix_that_rules_saw(bare, prefix, replacement):
    form = canonical(bare)
    begins = form.startswith(prefix) and (prefix.endswith(b"/") or form == prefix or form[len(prefix) : len(prefix) + 1] == b"/")
    taken = prefix_length(bare, prefix)
    assert (taken is not None) == begins
    result = PathRewrite(prefix, replacement).apply(bare + b"?q//")
    if taken is None:
        assert result == bare + b"?q//"
    else:
        assert canonical(bare[:taken]) == prefix
        assert result.startswith(b"/")
        assert not result.startswith(b"//")
        assert result.endswith(bare[taken:].lstrip(b"/") + b"?q//")


pieces = st.one_of(st.sampled_from([*(f"{{{name}}}" for name in NAMES), "{{", "}}", "{", "}", "{x}"]), st.text(max_size=4))


@settings(max_examples=300, deadline=None)
@given(st.lists(pieces, max_size=5).map("".join), st.binary(max_size=8))
def test_a_template_raises_only_its_own_error_and_renders_without_control_bytes(text, value):
    try:
        template = Template.compile(text)
    except TemplateError:
        return
    rendered = template.render(Variables(*[value] * len(NAMES)))
    assert not any(octet < 0x20 or octet == 0x7F for octet in rendered)
