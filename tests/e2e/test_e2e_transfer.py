"""Bodies whose length nobody knows beforehand, and many small ones by a client that is neither curl nor Python."""

import hashlib

import pytest
from harness import clients
from harness.content import MIB, content, digest

SIZE = 16 * MIB + 7


@pytest.mark.parametrize("version", clients.VERSIONS[:2])
def test_a_chunked_upload_of_unknown_length_is_right(authority, proxy, version):
    with clients.httpx_client(authority, version) as client:
        response = client.post(proxy.url("/upload"), content=content(SIZE, 3))
    assert response.json() == {"sha256": digest(SIZE, 3), "size": SIZE}


@pytest.mark.parametrize("version", clients.VERSIONS)
def test_a_chunked_download_of_unknown_length_is_right(authority, proxy, version):
    with clients.curl_session(authority, proxy.port, version) as session:
        response = session.get(proxy.url(f"/bytes/{SIZE}?seed=4&chunked=1"))
    assert "content-length" not in response.headers
    assert hashlib.sha256(response.content).hexdigest() == digest(SIZE, 4)


@pytest.mark.parametrize("version", clients.VERSIONS[:2])
def test_h2load_loses_no_request(proxy, version):
    load = clients.h2load(proxy.port, "/hello", version=version, requests=5000, connections=20).result()
    assert (load.total, load.succeeded, load.failed) == (5000, 5000, 0), load.text
