"""The command line of a floor: runs until killed."""

import argparse
import asyncio
import gc
from pathlib import Path

import uvloop

from bench.floor import bare, engines, tcp, udp
from bench.floor.upstream import Pool

GC_YOUNG = 50_000
"""Allocations between two looks at the young generation, as in the product."""


def main() -> None:
    """Serve one version by one engine."""
    parser = argparse.ArgumentParser(prog="bench/floor", description="One engine with bytes in, one backend, bytes out.")
    parser.add_argument("version", choices=("h1", "h2", "h3"))
    parser.add_argument("--engine", choices=(*engines.NAMES, "bare"), required=True)
    parser.add_argument("--port", type=int, required=True, help="of 127.0.0.1; 0 takes a free one")
    parser.add_argument("--backend", type=int, required=True)
    parser.add_argument("--certificate", type=Path, required=True, help="chain and key in one file")
    options = parser.parse_args()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve(options))


async def serve(options: argparse.Namespace) -> None:
    """Start what the options name; keeps it until it is cancelled."""
    pool = Pool(options.backend)
    if options.version == "h3":
        floor = udp.listen(options.port, pool, engines.endpoint(options.engine, options.certificate))
        port = floor.address[1]
    else:
        if options.engine == "bare":
            server = await bare.listen(options.port, options.backend, options.certificate)
        else:
            context = engines.contexts(options.certificate, options.version)
            server = await tcp.listen(options.port, pool, engines.connection(options.engine), context)
        port = server.sockets[0].getsockname()[1]
    print("listening on port", port, flush=True)
    gc.collect()
    gc.freeze()
    gc.set_threshold(GC_YOUNG, 20, 100)
    await asyncio.Event().wait()  # what listens is kept by this frame meanwhile


if __name__ == "__main__":
    main()
