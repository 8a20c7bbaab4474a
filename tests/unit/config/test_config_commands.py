"""``qproxy check`` and ``qproxy schema``, as they are called."""

import json

from click.testing import CliRunner
from config_folder import SITE

from proxy.cli import main


def run(*arguments):
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    return result.exit_code, result.stdout, result.stderr


def test_a_right_configuration_is_summed_up(folder):
    folder.write(
        SITE.replace("[a.example.com]", '[a.example.com, "*.a.example.com"]')
        + "server: {listeners: [{address: '[::]:8443', public_port: 443, proxy_protocol: {from: [10.0.0.0/8]}}],"
        + " engines: {h2: h2, quic: aioquic}}\n"
    )
    code, out, err = run("check", "-c", folder.root)
    lines = out.splitlines()
    assert (code, err) == (0, "")
    assert lines[:4] == [
        "listener [::]:8443: http/1.1 h2 h3, seen as port 443, PROXY protocol from trusted peers",
        "admin: 127.0.0.1:9090",
        "engines: h2 for HTTP/2, aioquic for HTTP/3",
        f"state: {folder.root.parent}/.state",
    ]
    assert lines[4].startswith("site a.example.com, *.a.example.com: 1 route, certificate self-signed until ")
    assert lines[5:] == [
        "pool a.example.com/web: 1 endpoint, consistent_hash by connection, no probes",
        f"{folder.root}: right, 0 warnings",
    ]


def test_check_writes_nothing(folder):
    folder.write(SITE)
    run("check", "-c", folder.root)
    assert [path.name for path in folder.root.parent.iterdir()] == ["conf.d"]


def test_warnings_do_not_fail(folder):
    folder.write(SITE.replace("pools: {", 'pools: {spare: {endpoints: ["http://x"], balance: {policy: random}, health: {}}, '))
    code, out, err = run("check", "-c", folder.root)
    assert code == 0
    assert err == f"warning: {folder.root}/qproxy.yaml:5:11: no route uses pool 'spare'\n"
    assert "pool a.example.com/spare: 1 endpoint, random, probes /health" in out.splitlines()
    assert out.endswith("right, 1 warning\n")


def test_mistakes_are_told_all_and_fail_with_2(folder):
    folder.write(SITE.replace("{pool: web}", "{pool: wbe}") + "server: {limit: {}}\n")
    code, out, err = run("check", "-c", folder.root)
    assert (code, out) == (2, "")
    assert err.splitlines() == [
        f"{folder.root}/qproxy.yaml:4:19: unknown pool 'wbe'; perhaps you meant 'web'",
        f"{folder.root}/qproxy.yaml:6:10: unknown key 'limit'; perhaps you meant 'limits'",
        f"{folder.root}: 2 mistakes",
    ]


def test_a_missing_folder_fails_with_2(tmp_path):
    code, _, err = run("check", "-c", tmp_path / "no")
    assert code == 2
    assert err.splitlines()[0].endswith("does not exist; expected a folder with *.yaml files, or one such file")


def test_schema_is_json_and_the_page_is_markdown():
    code, out, _ = run("schema")
    assert code == 0
    assert json.loads(out)["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    code, out, _ = run("schema", "--markdown")
    assert code == 0
    assert out.startswith("# Configuration reference\n")
