"""``qproxy keygen``: writes the keys that instances share, and adds the next one. No key is ever written over."""

import os
import re
import sys
import tempfile
import time
from base64 import b64encode
from pathlib import Path

import click

from proxy.config.source import read_text
from proxy.config.units import parse_duration
from proxy.engine.quic.tickets import LIFETIME
from proxy.keys import EPOCHS, MAX_KEYS, SECRET_BYTES, Key, KeyFileError, KeySet, config_id, parse, parse_time, shown_time

AHEAD = 3600.0
"""Seconds from now to the begin of a key that is added: for its file to come to all instances."""

HEAD = """\
# The keys that instances of qproxy share (server.cluster). Who has them can read early data, and play the server to clients with a ticket.
# Each line: EPOCH BEGIN KEY. All open, the one that began last seals. 'qproxy keygen --add' adds the next.
"""


class _When(click.ParamType):  # type: ignore[type-arg]  # generic since 8.5 only
    name = "WHEN"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """A time, or a duration from now."""
        try:
            return parse_time(value)
        except ValueError:
            pass
        try:
            return time.time() + parse_duration(value)
        except ValueError:
            self.fail(f"{value!r} is no time; expected one like 2026-11-23T20:00:00Z, or a duration from now like 2h", param, ctx)


@click.command()
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False), required=False)
@click.option("--add", is_flag=True, help="Add the next key to FILE.")
@click.option(
    "--begin", type=_When(), help="From when on it seals: 2026-11-23T20:00:00Z, or 2h from now. Default: now, and with --add in 1h."
)
def keygen(file: Path | None, *, add: bool, begin: float | None) -> None:
    """Write a first key for instances to share into FILE, or to standard output; or add the next key to it."""
    now = float(int(time.time()))
    try:
        if add:
            if file is None:
                msg = "--add needs the FILE to add a key to"
                raise click.UsageError(msg)
            _add(file, now, now + AHEAD if begin is None else float(int(begin)))
        else:
            _first(file, now if begin is None else float(int(begin)))
    except OSError as error:
        raise click.ClickException(f"{error.filename or file}: {error.strerror}") from None


def _first(file: Path | None, begin: float) -> None:
    text = f"{HEAD}{_ring_line(os.urandom(SECRET_BYTES))}\n{Key(0, begin, os.urandom(SECRET_BYTES)).line()}\n"
    if file is None:
        click.echo(text, nl=False)
        return
    try:
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        msg = f"{file} is there already, and no key is written over; expected a new file, or --add to add a key to this one"
        raise click.ClickException(msg) from None
    with os.fdopen(descriptor, "w") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    click.echo(f"{file}: a key of epoch 0. Bring it to every instance, for server: {{cluster: {{key_file: {file.name}}}}}")


def _add(file: Path, now: float, begin: float) -> None:
    text, reason = read_text(file)
    if text is None:
        msg = f"{file}: {reason}"
        raise click.ClickException(msg)
    try:
        keys = parse(text, str(file))
    except KeyFileError as error:
        for problem in error.problems:
            click.echo(problem, err=True)
        sys.exit(2)
    last = keys.keys[-1]
    if begin <= last.begin:
        msg = f"{file}: the key of epoch {last.epoch} begins at {shown_time(last.begin)}; expected a later begin than {shown_time(begin)}"
        raise click.ClickException(msg)
    lines = text.splitlines()
    if not any(line.split()[:1] == ["ring"] for line in lines):
        lines.append(_ring_line(keys.ring))  # what served for it may be dropped some day
    dropped: Key | None = None
    if len(keys.keys) == MAX_KEYS:
        dropped = _done_with(file, keys, now)
        lines = [line for line in lines if not re.match(rf"\s*0*{dropped.epoch}\s", line)]
    kept = [key for key in keys.keys if key is not dropped]
    new = Key(_next_epoch(last.epoch, kept), begin, os.urandom(SECRET_BYTES))
    whole = "\n".join([*lines, new.line()]) + "\n"
    parse(whole, str(file))
    _replace(file, whole)
    if dropped is not None:
        click.echo(f"{file}: the key of epoch {dropped.epoch} is dropped; nothing that it sealed is good any more")
    click.echo(f"{file}: the key of epoch {new.epoch} seals from {shown_time(begin)} on")
    if begin <= now:
        click.echo("warning: it has begun: an instance without it can't open what others seal; bring it to all at once", err=True)
    else:
        click.echo("Bring the file to every instance and reload each before that, in any order.")


def _done_with(file: Path, keys: KeySet, now: float) -> Key:
    """The oldest key, where nothing that it sealed is good any more. Else the file is full."""
    oldest, after = keys.keys[0], keys.keys[1].begin
    if now < after + LIFETIME:
        msg = f"{file}: {MAX_KEYS} keys, and tickets of the oldest, epoch {oldest.epoch}, are good until {shown_time(after + LIFETIME)}"
        raise click.ClickException(f"{msg}; expected to add another then, or a key removed by hand")
    return oldest


def _next_epoch(last: int, kept: list[Key]) -> int:
    """The one after *last* whose connection IDs can be told from those of the others."""
    taken = {config_id(key.epoch) for key in kept}
    return next(epoch % EPOCHS for epoch in range(last + 1, last + EPOCHS) if config_id(epoch % EPOCHS) not in taken)


def _ring_line(secret: bytes) -> str:
    return f"ring {b64encode(secret).decode()}"


def _replace(file: Path, text: str) -> None:
    """Put *text* there at once, for those who could read it before."""
    target = file.resolve()
    status = target.stat()
    descriptor, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}-")
    try:
        with os.fdopen(descriptor, "w") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
            os.fchmod(stream.fileno(), status.st_mode & 0o777)
            if (status.st_uid, status.st_gid) != (os.geteuid(), os.getegid()):
                os.fchown(stream.fileno(), status.st_uid, status.st_gid)
        Path(temporary).replace(target)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
