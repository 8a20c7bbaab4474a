"""Wrong configurations, whole: `qproxy check`, `qproxy -c` and a reload say the same, with places; a running proxy keeps what it has."""

import os
import shutil
import signal
from pathlib import Path

import pytest
from harness.cli import qproxy
from harness.guard import Guard, sample

FILE = "sites/c.yaml"
SITE = """\
site:
  hosts: [c.example.com]
  tls: {self_signed: true}
  routes: [{pool: web}]
  pools: {web: {endpoints: ["http://127.0.0.1:9"]}}
"""


@pytest.fixture(scope="module")
def guard(authority, proxy, backends):
    return Guard(authority, proxy, backends, expected=b"the new configuration is wrong; the present one stays")


def site(old: str, new: str) -> dict[str, str | bytes]:
    assert old in SITE
    return {FILE: SITE.replace(old, new)}


CASES: dict[str, tuple[dict[str, str | bytes], list[str]]] = {
    # each expected line begins behind the folder's name: file:line:column, and words that must stand in the message
    "an unknown key, nearly right": (site("routes:", "rotues:"), [f"{FILE}:4:3: unknown key 'rotues'; perhaps you meant 'routes'"]),
    "an unknown key at the top": ({FILE: SITE + "severs: {}\n"}, [f"{FILE}:6:1: unknown key 'severs'; perhaps you meant 'server'"]),
    "a pool that is not there": (site("[{pool: web}]", "[{pool: wbe}]"), [f"{FILE}:4:19: unknown pool 'wbe'; perhaps you meant 'web'"]),
    "a host twice in a file": (
        site("[c.example.com]", "[c.example.com, C.example.com]"),
        [f"{FILE}:2:26: host 'c.example.com' stands twice"],
    ),
    "a host of another file": (
        site("[c.example.com]", "[a.example.com]"),
        [f"{FILE}:2:11: host 'a.example.com' stands twice", "a.example.com.yaml:"],
    ),
    "a host with a path": (site("[c.example.com]", "[c.example.com/x]"), [f"{FILE}:2:11: "]),
    "a wildcard in the middle": (site("[c.example.com]", '["c.*.com"]'), [f"{FILE}:2:11: "]),
    "no routes": ({FILE: SITE.replace("  routes: [{pool: web}]\n", "")}, [f"{FILE}:2:3: key 'routes' is missing"]),
    "no endpoints": (site('{endpoints: ["http://127.0.0.1:9"]}', "{endpoints: []}"), [f"{FILE}:5:28: "]),
    "an endpoint of another scheme": (site("http://127.0.0.1:9", "ftp://127.0.0.1:9"), [f"{FILE}:5:29: "]),
    "a duration without a unit": (
        site('["http://127.0.0.1:9"]', '["http://127.0.0.1:9"], health: {interval: 5}'),
        [f"{FILE}:5:71: ", "perhaps you meant '5s'"],
    ),
    "a path without a slash": (site("{pool: web}", "{match: {path: api}, pool: web}"), [f"{FILE}:4:27: ", "perhaps you meant '/api'"]),
    "a route with two actions": (site("{pool: web}", "{pool: web, redirect: /x}"), [f"{FILE}:4:"]),
    "a route with no action": (site("{pool: web}", "{match: {path: /}}"), [f"{FILE}:4:"]),
    "a variable that is not there": (
        site("{pool: web}", "{pool: web, headers: {request: {set: {x-a: '{clinet_address}'}}}}"),
        [f"{FILE}:4:", "perhaps you meant", "client_address"],
    ),
    "a network that is none": (site("{pool: web}", "{pool: web, access: {allow: [10.0.0.0/33]}}"), [f"{FILE}:4:"]),
    "a key twice": ({FILE: SITE + "site: {}\n"}, [f"{FILE}:6:1: duplicate key 'site'; it stands at line 1, column 1 already"]),
    "a second server": ({"z.yaml": "server: {}\n"}, ["z.yaml:1:"]),
    "YAML that never ends": ({FILE: "site: [\n"}, [f"{FILE}:2:1: not valid YAML"]),
    "a tab where spaces belong": ({FILE: "site:\n\thosts: []\n"}, [f"{FILE}:2:1: not valid YAML"]),
    "a list at the top": ({FILE: "- 1\n"}, [f"{FILE}:1:1: "]),
    "an unknown tag": (site("[c.example.com]", "!!python/object/apply:os.system ['true']"), [f"{FILE}:2:10: unknown tag"]),
    "an alias of nothing": (site("[c.example.com]", "*hosts"), [f"{FILE}:2:10: "]),
    "a bomb of aliases": (
        {FILE: "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(f"{k}: &{k} [{', '.join(['*' + chr(ord(k) - 1)] * 9)}]\n" for k in "bcdefghi")},
        [f"{FILE}:"],
    ),
    "nested without end": ({FILE: "site: " + "[" * 5000}, [f"{FILE}:1:"]),
    "bytes that are no text": ({FILE: bytes(range(256)) * 8}, [f"{FILE}:", "UTF-8"]),
    "an ELF file": ({FILE: b"\x7fELF\x02\x01\x01" + bytes(4096)}, [f"{FILE}:"]),
    "UTF-16": ({FILE: SITE.encode("utf-16")}, [f"{FILE}:"]),
    "a file of a hundred megabytes of nothing": ({FILE: b"#" * (20 * 1024 * 1024)}, [f"{FILE}:", "too large"]),
    "an environment variable that is not set": (
        site("http://127.0.0.1:9", "http://${NO_SUCH_HOST}:9"),
        [f"{FILE}:5:29: environment variable NO_SUCH_HOST is not set"],
    ),
    "a file that is not there": (site("{pool: web}", "{respond: {body: !file none.html}}"), [f"{FILE}:4:29: !file none.html: "]),
    "a certificate that is not there": (site("{self_signed: true}", "{certificate: none.pem}"), [f"{FILE}:3:22: ", "none.pem"]),
    "a certificate that is none": (
        {**site("{self_signed: true}", "{certificate: no.pem}"), "sites/no.pem": "hello\n"},
        [f"{FILE}:3:22: ", "no.pem"],
    ),
    "a key of another certificate": (
        site("{self_signed: true}", "{certificate: ../a.example.com.pem, key: ../b.example.com.key}"),
        [f"{FILE}:3:", "does not belong to the certificate"],
    ),
    "a key that is none": (
        {
            **site("{self_signed: true}", "{certificate: ../a.example.com.pem, key: no.key}"),
            "sites/no.key": "-----BEGIN PRIVATE KEY-----\nAAAA\n",
        },
        [f"{FILE}:3:", "no.key"],
    ),
    "a certificate for other hosts": (
        site("{self_signed: true}", "{certificate: ../a.example.com.pem, key: ../a.example.com.key}"),
        [f"{FILE}:", "c.example.com"],
    ),
}


def lay(folder: Path, files: dict[str, str | bytes]) -> None:
    for name, content in files.items():
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())


@pytest.fixture
def folder(proxy, tmp_path):
    """A copy of the running proxy's right configuration, with nothing absolute in it."""
    copy = tmp_path / "conf.d"
    shutil.copytree(proxy.config, copy)
    for file in copy.rglob("*.yaml"):
        file.write_text(file.read_text().replace(str(proxy.config), str(copy)))
    return copy


@pytest.mark.parametrize("name", CASES)
def test_check_says_what_is_wrong_and_where(folder, name):
    files, expected = CASES[name]
    lay(folder, files)
    ran = qproxy("check", "-c", folder)
    assert ran.code == 2
    first, *others = expected
    assert any(line.startswith(f"{folder}/{first}") for line in ran.err.splitlines()), ran.err
    assert all(words in ran.err for words in others), ran.err
    assert len(ran.err) < 10_000
    assert ran.out == ""


@pytest.mark.parametrize("name", CASES)
def test_a_running_proxy_keeps_what_it_has(proxy, guard, name):
    """SIGHUP with the mistake in place: logged with its place, counted as failed, and everything is served as before."""
    files, (first, *_) = CASES[name]
    lay(proxy.config, files)
    try:
        with guard.case(sample("qproxy_reloads_total", result="failed")):
            proxy.process.send_signal(signal.SIGHUP)
        assert first in proxy.logs()
    finally:
        for file in files:
            (proxy.config / file).unlink()


def test_and_goes_on_with_a_right_one(proxy, guard):
    """After all of these, the right configuration is taken as ever."""
    lay(proxy.config, {FILE: SITE})
    try:
        with guard.case(sample("qproxy_reloads_total", result="ok")):
            proxy.process.send_signal(signal.SIGHUP)
    finally:
        (proxy.config / FILE).unlink()


SERVED = ["an unknown key, nearly right", "YAML that never ends", "bytes that are no text", "a key of another certificate"]


@pytest.mark.parametrize("name", SERVED)
def test_serving_it_ends_at_once_with_2(folder, name):
    """`qproxy -c` with the same mistake: the same words, exit code 2, and no traceback."""
    files, (first, *_) = CASES[name]
    lay(folder, files)
    ran = qproxy("-c", folder)
    assert ran.code == 2
    assert f"{folder}/{first}" in ran.out + ran.err


def test_all_mistakes_are_told_at_once(folder):
    """Five in three files, in the order of files and lines, and then how many there are."""
    lay(
        folder,
        {
            "qproxy.yaml": "server:\n  listners: []\n  limits: {connections: -1}\n",
            FILE: SITE.replace("[{pool: web}]", "[{pool: wbe}]").replace("hosts", "host"),
            "sites/d.yaml": "pools:\n  web: {endpoints: [5]}\n",
        },
    )
    ran = qproxy("check", "-c", folder)
    places = [line.removeprefix(f"{folder}/").split(": ")[0] for line in ran.err.splitlines()[:-1]]
    assert {"qproxy.yaml:2:3", "qproxy.yaml:3:25", f"{FILE}:2:3", "sites/d.yaml:2:21"} <= set(places), ran.err
    assert ran.err.splitlines()[-1] == f"{folder}: {len(places)} mistakes"
    assert ran.code == 2


def test_both_places_of_a_duplicate_are_named(folder):
    """Pools and listeners, as well as hosts."""
    port = 18443
    lay(
        folder,
        {
            "qproxy.yaml": f"server:\n  listeners:\n    - address: 127.0.0.1:{port}\n    - address: 127.0.0.1:{port}\n  admin: off\n",
            "p.yaml": "pools:\n  shared: {endpoints: [http://127.0.0.1:9]}\n",
            "q.yaml": "pools:\n  shared: {endpoints: [http://127.0.0.1:9]}\n",
        },
    )
    ran = qproxy("check", "-c", folder)
    assert ran.code == 2
    assert f"qproxy.yaml:4:16: address 127.0.0.1:{port} stands twice; it is at {folder}/qproxy.yaml:3:16 already" in ran.err
    assert f"q.yaml:2:3: pool 'shared' stands twice; it is at {folder}/p.yaml:2:3 already" in ran.err


def test_an_expired_certificate_is_a_warning(folder, authority):
    """Its site can be repaired while the others are served."""
    chain, key = authority.issue("c.example.com", file="expired", days=-1, folder=folder)
    lay(folder, {FILE: SITE.replace("{self_signed: true}", f"{{certificate: {chain}, key: {key}}}")})
    ran = qproxy("check", "-c", folder)
    assert ran.code == 0, ran.err
    (warning,) = [line for line in ran.err.splitlines() if "expired on" in line]
    assert warning.startswith("warning: ")
    assert str(chain) in warning
    assert f"{FILE}:3:" in warning


def test_a_route_that_is_never_taken_is_a_warning(folder):
    lay(folder, site("[{pool: web}]", "[{pool: web}, {pool: web}]"))
    ran = qproxy("check", "-c", folder)
    assert ran.code == 0, ran.err
    assert f"warning: {folder}/{FILE}:4:" in ran.err
    assert "never taken" in ran.err


def test_a_folder_without_files(tmp_path):
    for command in (["check", "-c", tmp_path], ["-c", tmp_path]):
        ran = qproxy(*command)
        assert (ran.code, "holds no *.yaml" in ran.out + ran.err) == (2, True), ran


def test_a_folder_that_is_not_there(tmp_path):
    for command in (
        ["check", "-c", tmp_path / "none"],
        ["-c", tmp_path / "none"],
        ["explain", "-c", tmp_path / "none", "https://a.example.com/"],
    ):
        ran = qproxy(*command)
        assert (ran.code, "does not exist" in ran.out + ran.err) == (2, True), ran


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads every file")
def test_a_file_that_may_not_be_read(folder):
    lay(folder, {FILE: SITE})
    (folder / FILE).chmod(0)
    ran = qproxy("check", "-c", folder)
    assert (ran.code, "can't be read" in ran.err) == (2, True), ran


def test_secrets_stay_out_of_messages(folder):
    """What came from the environment or a file is never shown, wrong or not."""
    lay(folder, {**site("http://127.0.0.1:9", "${SECRET}"), "sites/secret.txt": "hunter2-in-a-file"})
    ran = qproxy("check", "-c", folder, environment={"SECRET": "hunter2-not-a-url"})
    assert ran.code == 2
    assert "hunter2" not in ran.err
    lay(folder, site("[c.example.com]", "!file secret.txt"))
    ran = qproxy("check", "-c", folder)
    assert ran.code == 2
    assert "hunter2" not in ran.err
