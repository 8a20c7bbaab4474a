"""What the three floors share: their command line, TLS and loop."""

import argparse
import asyncio
import gc
import ssl
from collections.abc import Awaitable, Callable

import uvloop


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    for name in ("port", "backend"):
        parser.add_argument(f"--{name}", type=int, required=True)
    for name in ("certificate", "key"):
        parser.add_argument(f"--{name}", required=True)
    return parser.parse_args()


def tls(options: argparse.Namespace, protocol: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_cert_chain(options.certificate, options.key)
    context.set_alpn_protocols([protocol])
    return context


def serve(start: Callable[[], Awaitable[object]]) -> None:
    """Start on uvloop and run until killed."""

    async def main() -> None:
        server = await start()
        gc.collect()
        gc.freeze()
        await asyncio.Event().wait()
        del server

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())
