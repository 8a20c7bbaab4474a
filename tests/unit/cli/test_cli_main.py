"""The command line as its users meet it: exit codes, sentences in place of tracebacks, and a quick start."""

import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from proxy import __version__
from proxy.cli import COMMANDS, main
from proxy.engine.choice import ENGINES

ROOT = Path(__file__).parents[3]


def invoke(*arguments: str):
    return CliRunner().invoke(main, arguments)


def test_version_and_overview():
    version = invoke("--version").output.splitlines()
    assert version[0].startswith(f"qproxy {__version__} (")
    assert [line.partition(" ")[0] for line in version if not line.startswith(" ")] == ["qproxy", "HTTP/2:", "HTTP/3:"]
    assert len(version) == 1 + len(ENGINES)
    overview = invoke("--help")
    assert overview.exit_code == 0
    for name, text in COMMANDS.items():
        assert name in overview.output
        assert text in overview.output


@pytest.mark.parametrize("arguments", [(), ("run",), ("check",), ("--nonsense",), ("nonsense",)])
def test_a_wrong_command_line_is_told_with_exit_code_2(arguments):
    result = invoke(*arguments)
    assert result.exit_code == 2
    assert "Error: " in result.output


@pytest.mark.parametrize("before", [True, False])
def test_the_configuration_may_be_named_before_or_after_the_command(tmp_path, before):
    (tmp_path / "site.yaml").write_text("sitte: {}\n")
    arguments = ("-c", str(tmp_path), "check") if before else ("check", "-c", str(tmp_path))
    result = invoke(*arguments)
    assert result.exit_code == 2
    assert f"{tmp_path}/site.yaml:1:1: " in result.output


def test_serving_a_wrong_configuration_ends_with_2_and_no_traceback(tmp_path):
    (tmp_path / "site.yaml").write_text("site: {hosts: [a.example.com], rutes: []}\n")
    done = subprocess.run(
        [sys.executable, "-m", "proxy", "-c", str(tmp_path)], capture_output=True, text=True, check=False, cwd=ROOT, timeout=60
    )
    assert done.returncode == 2
    assert "site.yaml:1:" in done.stderr
    assert "routes" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_overview_loads_neither_the_proxy_nor_its_libraries():
    program = "import sys; from proxy.cli import main; main(['--help'], standalone_mode=False); print(sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT, timeout=60)
    for heavy in ("'pydantic'", "'aioquic'", "'h2'", "'asyncio'", "'proxy.app'"):
        assert heavy not in done.stdout
