"""A configuration that was packed for another process is the same there, contexts and keys included."""

import ssl

from proxy.config.compile import compile_snapshot
from proxy.config.diff import diff
from proxy.config.material import self_signed
from proxy.config.transfer import pack, unpack
from proxy.observe import Metrics


def compiled(configuration):
    return compile_snapshot(
        configuration,
        metrics=Metrics(),
        secret=bytes(32),
        seed=0,
        generation=1,
        make_request_id=lambda: b"",
        default_certificate=self_signed(("localhost",), 0),
    )


def test_a_configuration_arrives_as_it_was_sent(folder, make_pair):
    certificate, key = make_pair("client", ["client"])
    folder.write(f"""
site:
  hosts: [a.example.com]
  tls: {{self_signed: true, client_certificates: {{ca: {certificate}, mode: require}}}}
  routes: [{{match: {{path: /}}, pool: web}}]
  pools:
    web:
      endpoints: ["https://127.0.0.1:9001", {{url: "http://127.0.0.1:9002", weight: 3}}]
      tls: {{ca: {certificate}, certificate: {certificate}, key: {key}, server_name: b.example.com}}
""")
    sent = folder.load()
    arrived = unpack(pack(sent))
    one, other = compiled(sent), compiled(arrived)
    assert one.exact_hosts.keys() == other.exact_hosts.keys() == {b"a.example.com"}
    assert [line for line in diff(one, other) if not line.startswith("certificate of default")] == []
    tls = other.pools["a.example.com/web"].tls
    assert tls.server_name == "b.example.com"
    assert tls.fingerprint == one.pools["a.example.com/web"].tls.fingerprint
    assert tls.context.verify_mode == ssl.CERT_REQUIRED
    assert len(tls.context.get_ca_certs()) == 1
    assert arrived.sites == sent.sites
    assert arrived.certificate_files == sent.certificate_files


def test_no_key_is_shown_in_messages(make_pair, folder):
    certificate, key = make_pair("client", ["client"])
    folder.write(f"""
site:
  hosts: [a.example.com]
  tls: {{self_signed: true}}
  routes: [{{match: {{path: /}}, pool: web}}]
  pools: {{web: {{endpoints: ["https://127.0.0.1:9001"], tls: {{certificate: {certificate}, key: {key}}}}}}}
""")
    (tls,) = folder.load().upstream_tls.values()
    assert "PRIVATE KEY" not in repr(tls)
