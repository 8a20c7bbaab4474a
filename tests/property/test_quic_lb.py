"""What the codec of connection IDs promises for every layout."""

from hypothesis import given
from hypothesis import strategies as st

from balancer.quic_lb import Codec, Layout, NotRoutable


@st.composite
def layouts(draw: st.DrawFn) -> Layout:
    slot = draw(st.booleans())
    server_id = draw(st.integers(1, 15 - slot))
    nonce = draw(st.integers(4, 19 - slot - server_id))
    key = draw(st.none() | st.binary(min_size=16, max_size=16))
    return Layout(draw(st.integers(0, 6)), server_id, nonce, slot=slot, key=key, length_in_first=draw(st.booleans()))


@given(layouts(), st.data())
def test_what_is_encoded_is_decoded(layout: Layout, data: st.DataObject) -> None:
    codec = Codec(layout)
    server_id = data.draw(st.binary(min_size=layout.server_id_bytes, max_size=layout.server_id_bytes))
    nonce = data.draw(st.binary(min_size=layout.nonce_bytes, max_size=layout.nonce_bytes))
    slot, low_bits = data.draw(st.integers(0, 255)), data.draw(st.integers(0, 31))
    cid = codec.encode(server_id, nonce, slot=slot, low_bits=low_bits)
    assert len(cid) == layout.cid_bytes
    decoded = codec.decode(cid)
    assert (decoded.server_id, decoded.nonce) == (server_id, nonce)
    assert decoded.slot == (slot if layout.slot else None)


@given(layouts(), st.binary(max_size=24))
def test_any_bytes_decode_or_are_not_routable_and_encode_to_themselves(layout: Layout, cid: bytes) -> None:
    codec = Codec(layout)
    try:
        decoded = codec.decode(cid)
    except NotRoutable:
        return
    again = codec.encode(decoded.server_id, decoded.nonce, slot=decoded.slot or 0, low_bits=cid[0])
    assert again[1:] == cid[1 : layout.cid_bytes]
