"""Addresses, networks, names, paths, templates: parsers, and the pydantic types made of them. See ``units`` for how a parser speaks."""

import re
from base64 import b64decode
from ipaddress import ip_address, ip_network
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import BeforeValidator, WithJsonSchema

from proxy.config.units import as_text, is_off, text_of, wrong
from proxy.message import Address
from proxy.policy.headers import check_editable
from proxy.policy.template import Template, TemplateError

METHODS = ("GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE")
SCALAR = ["string", "number", "boolean"]
"""What an editor may see where we read text."""

_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,128}")
_UNFIT_IN_PATH = re.compile(r"[\x00-\x20\x7f]")
_OCTET = r"(?:25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])"
_PLAIN_ENDPOINT = re.compile(rf"http://(?:{_OCTET}\.){{3}}{_OCTET}:(?!80$)(?:[1-5][0-9]{{4}}|[1-9][0-9]{{0,3}})")
"""Most endpoints are this: an IPv4 address with a port, in the normal form already."""
_LABEL = re.compile(r"(?!-)[a-z0-9_-]{1,63}(?<!-)")


def parse_address(value: object) -> Address:
    """``0.0.0.0:8443`` or ``[::]:8443``. Port 0 takes any free one."""
    expected = "an IP address and a port, such as 0.0.0.0:8443 or [::]:8443"
    text = text_of(value, expected)
    host, colon, port = text.rpartition(":")
    if not colon or not port.isascii() or not port.isdigit() or int(port[:6]) > 65535:
        raise wrong(expected, suggestion=f"0.0.0.0:{text}" if text.isascii() and text.isdigit() and int(text[:6]) <= 65535 else None)
    if host in ("", "*"):
        raise wrong(expected, suggestion=f"0.0.0.0:{port}")
    if host == "localhost":
        raise wrong(expected, suggestion=f"127.0.0.1:{port}")
    bracketed = host.startswith("[") and host.endswith("]")
    try:
        address = ip_address(host[1:-1] if bracketed else host)
    except ValueError:
        raise wrong(expected) from None
    if bracketed != (address.version == 6) or "%" in host:
        raise wrong(expected, suggestion=f"[{address}]:{port}" if address.version == 6 and "%" not in host else None)
    return str(address), int(port)


def parse_place(value: object) -> Address:
    """``10.0.0.12:8444``, ``[2001:db8::12]:8444`` or ``instances.example.com:8444``."""
    expected = "an IP address or a host name, and a port, such as 10.0.0.12:8444 or instances.internal:8444"
    text = text_of(value, expected)
    host, colon, port = text.rpartition(":")
    if not colon or not port.isascii() or not port.isdigit() or not 0 < int(port[:6]) < 65536:
        raise wrong(expected)
    if host.startswith("[") or _is_address(host):
        return parse_address(text)
    host = host.lower().removesuffix(".")
    if not _is_host(host) or host[-1:].isdigit():
        raise wrong(expected)
    return host, int(port)


def parse_nameserver(value: object) -> str:
    """``10.0.0.53``, ``10.0.0.53:5353`` or ``[2001:db8::53]:53``; gives it with its port."""
    expected = "the IP address of a nameserver, with or without a port, such as 10.0.0.53 or [2001:db8::53]:53"
    text = text_of(value, expected)
    bare = text[1:-1] if text.startswith("[") and text.endswith("]") else text
    if "%" not in bare and _is_address(bare):
        return f"[{ip_address(bare)}]:53" if ":" in bare else f"{bare}:53"
    try:
        host, port = parse_address(text)
    except ValueError:
        raise wrong(expected) from None
    if not port:
        raise wrong(expected)
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def parse_network(value: object) -> str:
    """A CIDR block or a single address, normalised."""
    expected = "a network such as 10.0.0.0/8 or 2001:db8::/32, or one address"
    text = text_of(value, expected)
    try:
        return str(ip_network(text))
    except ValueError:
        pass
    try:
        near = str(ip_network(text, strict=False))
    except ValueError:
        raise wrong(expected) from None
    raise wrong(expected, why="has bits set behind its prefix", suggestion=near)


def parse_host(value: object) -> str:
    """A host name of a site, in lower case; a wildcard stands for one label at the front."""
    expected = "a host name such as a.example.com or *.example.com"
    text = text_of(value, expected)
    if not text.isascii():
        try:
            near = text.encode("idna").decode()
        except UnicodeError:
            near = None
        raise wrong(expected, why="is not in ASCII", suggestion=near)
    name = text.lower()
    bare = name.removeprefix("*.")
    if _is_address(name.strip("[]")):
        raise wrong(expected, why="is an address, for which clients send no SNI")
    if bare.startswith("."):
        raise wrong(expected, suggestion="*" + bare)
    without_port, _, port = name.partition(":")
    if port.isdigit():
        raise wrong(expected, why="has a port; ports belong to server.listeners", suggestion=without_port)
    if "//" in name:
        raise wrong(expected, suggestion=_host_of_url(name))
    if bare.endswith("."):
        raise wrong(expected, suggestion=name.rstrip("."))
    if len(name) > 253 or not all(_LABEL.fullmatch(label) for label in bare.split(".")):
        raise wrong(expected)
    return name


def parse_path(value: object) -> str:
    """A path without query, as the engines let it through: ASCII, no dot segments."""
    expected = "a path that begins with /, such as /api/"
    text = text_of(value, expected)
    if not text.startswith("/"):
        near = None if "//" in text or not text.isascii() or not text else "/" + text
        raise wrong(expected, suggestion=near)
    if len(text) > 4096:
        raise wrong("a path of 4096 characters at most", why="is too long")
    if not text.isascii() or _UNFIT_IN_PATH.search(text):
        raise wrong("a path in ASCII, other characters percent-encoded")
    if "?" in text or "#" in text:
        raise wrong("a path without ? and #; queries have a key of their own", suggestion=re.split("[?#]", text)[0])
    if ("." in text or "%" in text) and any(segment.lower().replace("%2e", ".") in (".", "..") for segment in text.split("/")):
        raise wrong("a path without . and .. segments, since requests with them are refused")
    return text


def parse_probe_path(value: object) -> str:
    """A path that may have a query."""
    text = text_of(value, "a path that begins with /, such as /health")
    path, mark, query = text.partition("?")
    parse_path(path)
    if not query.isascii() or any(ord(character) <= 32 for character in query) or "#" in query or len(query) > 4096:
        raise wrong("a query in ASCII, other characters percent-encoded")
    return path + mark + query


def parse_method(value: object) -> str:
    """A method; they are case-sensitive (RFC 9110, section 9.1)."""
    expected = "a method such as GET"
    text = text_of(value, expected)
    if text.upper() in METHODS and text not in METHODS:
        raise wrong(expected, why="is in lower case, and methods are case-sensitive", suggestion=text.upper())
    if text == "CONNECT" or not _TOKEN.fullmatch(text):
        raise wrong(expected)
    return text


def parse_token(value: object) -> str:
    """The name of a header field, a cookie or the like."""
    text = text_of(value, "a name")
    if not _TOKEN.fullmatch(text):
        raise wrong("a name of letters, digits and -")
    return text


def parse_field(value: object) -> str:
    """The name of a header field to match on."""
    name = parse_token(value)
    if name.lower() in ("host", "transfer-encoding", "connection"):
        raise wrong(
            "the name of a header field that belongs to the message" + ("; hosts are matched by sites" if name.lower() == "host" else "")
        )
    return name


def parse_editable(value: object) -> str:
    """The name of a header field that may be set or removed."""
    text = text_of(value, "the name of a header field")
    reason = check_editable(text)
    if reason is not None:
        raise wrong("the name of a header field that may be changed", why=f"can't be set or removed ({reason})")
    return text


def parse_template(value: object) -> str:
    """A text with ``{variables}``; checked here, compiled with the Snapshot."""
    expected = "a text, in which {host}, {path} and other variables may stand"
    text = text_of(value, expected)
    if len(text) > 8192:
        raise wrong("a text of 8192 characters at most", why="is too long")
    try:
        Template.compile(text)
    except TemplateError as error:
        raise wrong(
            expected, why=f"is not a template ({error.message})", suggestion=error.suggestion and f"{{{error.suggestion}}}"
        ) from None
    return text


def parse_field_value(value: object) -> str:
    """A constant field value."""
    text = text_of(value, "a text")
    if any(ord(character) < 32 or ord(character) == 127 for character in text):
        raise wrong("a text without control characters")
    return text


def parse_any_text(value: object) -> str:
    """Text, with nothing written meaning none."""
    return "" if value is None else text_of(value, "a text")


def parse_condition(value: object) -> str | None:
    """The value to match, or nothing: any."""
    return None if value is None else text_of(value, "a text, or nothing for any value")


def parse_endpoint(value: object) -> str:
    """``http://host:port``, ``https://host:port``, ``unix:/path`` or ``srv+http://name``, normalised: the backend's identity."""
    expected = "an endpoint such as http://127.0.0.1:9001, https://backend.internal or unix:/run/app.sock"
    text = text_of(value, expected)
    if text.startswith("unix:"):
        path = text.removeprefix("unix:")
        path = "/" + path.lstrip("/") if path.startswith("//") else path
        if not path.startswith("/") or len(path.encode()) > 107 or "\0" in path:
            raise wrong("unix: and an absolute path of at most 107 bytes, such as unix:/run/app.sock")
        return "unix:" + path
    if _PLAIN_ENDPOINT.fullmatch(text):
        return text
    if text.startswith(SRV):
        return _parse_services(text)
    if "://" not in text:
        raise wrong(expected, suggestion=f"http://{text}" if re.fullmatch(r"[\w.\[\]:-]+", text, re.ASCII) else None)
    try:
        url = urlsplit(text)
        port = url.port
    except ValueError:
        raise wrong(expected) from None
    if url.scheme not in ("http", "https"):
        near = perhaps_scheme(url.scheme)
        raise wrong(expected, why="has an unknown scheme", suggestion=near and near + text[len(url.scheme) :])
    if url.path not in ("", "/") or url.query or url.fragment:
        raise wrong(
            "an endpoint without path and query; replace_prefix of a route changes paths", suggestion=f"{url.scheme}://{url.netloc}"
        )
    host = url.hostname or ""
    if "@" in url.netloc or not _is_host(host) or port == 0:
        raise wrong(expected)
    shown_host = f"[{ip_address(host)}]" if ":" in host else host.lower()
    default = 443 if url.scheme == "https" else 80
    return f"{url.scheme}://{shown_host}" + (f":{port}" if port not in (None, default) else "")


SRV = "srv+"
"""Begins the URL of an endpoint that stands for the SRV records of a name."""

DNS = "dns+"
"""Begins the URL of an endpoint that stands for all addresses of a name."""


def parse_instance(value: object) -> str:
    """``10.0.0.11:8443``, ``[2001:db8::11]:8443`` or ``name:8443``, as a URL: ``tcp://`` or, for all addresses of a name, ``dns+tcp://``."""
    expected = "an IP address or a host name, with a port, such as 10.0.0.11:8443 or instances.internal:8443"
    text = text_of(value, expected)
    if "://" in text:
        raise wrong(expected, why="has a scheme", suggestion=text.partition("://")[2].rstrip("/"))
    host, colon, port = text.rpartition(":")
    if not colon or not re.fullmatch(r"[0-9]{1,5}", port, re.ASCII) or not 0 < int(port) <= 65535:
        raise wrong(expected)
    bracketed = host.startswith("[") and host.endswith("]")
    if bracketed or _is_address(host):
        try:
            address = ip_address(host[1:-1] if bracketed else host)
        except ValueError:
            raise wrong(expected) from None
        if bracketed != (address.version == 6) or "%" in host:
            raise wrong(expected, suggestion=f"[{address}]:{port}" if address.version == 6 and "%" not in host else None)
        return f"tcp://[{address}]:{port}" if bracketed else f"tcp://{address}:{port}"
    if not _is_host(host.removesuffix(".")):
        raise wrong(expected)
    return f"{DNS}tcp://{host.removesuffix('.').lower()}:{port}"


def parse_upstream_host(value: object) -> str:
    """``preserve``, ``endpoint``, or a literal Host value."""
    expected = "preserve, endpoint, or a host name with or without a port"
    text = text_of(value, expected)
    if text in ("preserve", "endpoint"):
        return text
    host, _, port = text.rpartition(":") if re.search(r":[0-9]{1,5}$", text) else (text, "", "")
    if not _is_host(host.strip("[]")) or (port and int(port) > 65535):
        raise wrong(expected)
    return text.lower()


def parse_server_name(value: object) -> str:
    """A name for SNI and verification."""
    text = text_of(value, "a host name")
    if not _is_host(text):
        raise wrong("a host name")
    return text.lower()


def parse_status_range(value: object) -> tuple[int, int]:
    """``200`` or ``200-399``."""
    expected = "a status such as 204 or a range such as 200-399"
    found = re.fullmatch(r"([1-5][0-9]{2})(?:-([1-5][0-9]{2}))?", text_of(value, expected), re.ASCII)
    if found is None:
        raise wrong(expected)
    low, high = int(found[1]), int(found[2] or found[1])
    if high < low:
        raise wrong(expected, why="is an empty range", suggestion=f"{high}-{low}")
    return low, high


def parse_name(value: object) -> str:
    """The name of a pool."""
    text = text_of(value, "a name")
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,62}", text):
        raise wrong("a name of letters, digits, _ . and -, 63 characters at most")
    return text


def parse_bytes(value: object) -> bytes:
    """Bytes as hexadecimal digits, with or without ``0x``, or in base64 behind ``base64:`` (RFC 4648, section 4)."""
    expected = "bytes as pairs of hexadecimal digits, or base64:..."
    text = text_of(value, expected).strip()
    try:
        if text.startswith("base64:"):
            return b64decode(text.removeprefix("base64:"), validate=True)
        return bytes.fromhex(text.removeprefix("0x"))
    except ValueError:
        raise wrong(expected) from None


def parse_server_id(value: object) -> bytes | str:
    """Bytes, or ``address``."""
    return value if value == "address" else parse_bytes(value)


def parse_cid_key(value: object) -> bytes | str:
    """Bytes, or ``off``."""
    return "off" if is_off(value) else parse_bytes(value)


def parse_keys(value: object) -> str:
    """The text of a key file; what it says is for ``keys.parse``."""
    expected = "the lines of a key file: EPOCH BEGIN KEY"
    text = text_of(value, expected)
    if not text.strip():
        raise wrong(expected, why="is empty")
    return text


def parse_file(value: object) -> str:
    """A file's name, relative to the YAML file that it stands in."""
    text = text_of(value, "the name of a file")
    if not text or "\0" in text or "\n" in text:
        expected = "the name of a file; what it holds can't stand here" if "\n" in text else "the name of a file"
        raise wrong(expected)
    return text


def _parse_services(text: str) -> str:
    """``srv+http://NAME`` or ``srv+https://NAME``, normalised."""
    expected = "srv+http:// or srv+https:// and the name of SRV records, such as srv+http://_http._tcp.api.example.com"
    scheme, _, name = text.partition("://")
    name = name.removesuffix("/").removesuffix(".").lower()
    if scheme not in (SRV + "http", SRV + "https"):
        raise wrong(expected)
    bare, colon, port = name.rpartition(":")
    if colon and port.isdigit():
        raise wrong(expected, why="has a port, which SRV records tell", suggestion=f"{scheme}://{bare}")
    if _is_address(name) or not _is_host(name):
        raise wrong(expected)
    return f"{scheme}://{name}"


def perhaps_scheme(scheme: str) -> str | None:
    """The scheme that was meant by a near miss."""
    return {"htttp": "http", "htpp": "http", "h2": "https", "h2c": "http", "tls": "https", "tcp": "http", "ssl": "https"}.get(scheme)


def _host_of_url(text: str) -> str | None:
    try:
        return urlsplit(text).hostname
    except ValueError:
        return None


def _is_host(host: str) -> bool:
    if "%" not in host and _is_address(host):
        return True
    return len(host) <= 253 and all(_LABEL.fullmatch(label) for label in host.lower().split("."))


def _is_address(text: str) -> bool:
    if ":" not in text and not text[-1:].isdigit():
        return False  # neither IPv6 nor IPv4: what ip_address would find out more slowly
    try:
        ip_address(text)
    except ValueError:
        return False
    return True


SocketAddress = Annotated[Address, *as_text(parse_address, "IP address and port", examples=["0.0.0.0:8443", "[::]:8443"])]
InstanceAddress = Annotated[str, *as_text(parse_instance, "address of an instance", examples=["10.0.0.11:8443", "instances.internal:8443"])]
Place = Annotated[Address, *as_text(parse_place, "host and port", examples=["10.0.0.12:8444", "instances.internal:8444"])]
Nameserver = Annotated[str, *as_text(parse_nameserver, "nameserver", examples=["10.0.0.53", "[2001:db8::53]:53"])]
Network = Annotated[str, *as_text(parse_network, "network", examples=["10.0.0.0/8"])]
HostName = Annotated[str, *as_text(parse_host, "host name", examples=["a.example.com", "*.example.com"])]
Path = Annotated[str, *as_text(parse_path, "path", pattern="^/")]
ProbePath = Annotated[str, *as_text(parse_probe_path, "path", pattern="^/")]
Method = Annotated[str, *as_text(parse_method, "method")]
Token = Annotated[str, *as_text(parse_token, "name")]
FieldName = Annotated[str, *as_text(parse_field, "field name")]
EditableField = Annotated[str, *as_text(parse_editable, "field name")]
TemplateText = Annotated[str, *as_text(parse_template, "text with variables", type=SCALAR)]
FieldValue = Annotated[str, *as_text(parse_field_value, "text", type=SCALAR)]
BodyText = Annotated[str, *as_text(parse_any_text, "text")]
Condition = Annotated[
    str | None, BeforeValidator(parse_condition), WithJsonSchema({"type": ["string", "number", "boolean", "null"]}), "text or nothing"
]
EndpointUrl = Annotated[str, *as_text(parse_endpoint, "URL", examples=["http://127.0.0.1:9001", "unix:/run/app.sock"])]
UpstreamHost = Annotated[
    str, *as_text(parse_upstream_host, "`preserve`, `endpoint` or a host", examples=["preserve", "endpoint", "app.internal"])
]
ServerName = Annotated[str, *as_text(parse_server_name, "host name")]
StatusRange = Annotated[
    tuple[int, int], BeforeValidator(parse_status_range), WithJsonSchema({"type": ["string", "integer"]}), "status or range"
]
Name = Annotated[str, *as_text(parse_name, "name")]
HexBytes = Annotated[bytes, *as_text(parse_bytes, "hexadecimal digits", examples=["0x00c0ffee"])]
ServerId = Annotated[
    bytes | Literal["address"], *as_text(parse_server_id, "hexadecimal digits, or `address`", examples=["0x00c0ffee", "address"])
]
CidKey = Annotated[bytes | Literal["off"], *as_text(parse_cid_key, "hexadecimal digits, or `off`")]
KeyText = Annotated[str, *as_text(parse_keys, "lines of a key file")]
FileName = Annotated[str, *as_text(parse_file, "file name")]
