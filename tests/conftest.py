"""What all tests share: how many examples the properties try (FUZZ=N: N times as many as each names), and the option ``--engines``."""

import os

import pytest
from hypothesis import settings

from proxy import exchange

settings.register_profile("qproxy", deadline=None, print_blob=True)  # machines that are busy are no failure
settings.load_profile("qproxy")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--engines",
        choices=["portable", "fast", "all"],
        help="the engines that the end-to-end tests run on; one that is absent is then an error. Not given: all, the absent ones skipped "
        "(with CI=true in the environment: an error)",
    )
    parser.addoption(
        "--workers-per-proxy",
        type=int,
        metavar="N",
        help="workers of the proxies in end-to-end tests that don't say themselves. Not given: two in the modules that are marked so, "
        "else one",
    )
    parser.addoption("--soak", action="store_true", help="the long tests at their full length: bodies of a GiB, 24,000 requests")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "replaces: puts something in the place of code that the compiled form calls directly")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not str(exchange.__file__).endswith(".py"):
        for item in items:
            if item.get_closest_marker("replaces"):
                item.add_marker(pytest.mark.skip("the compiled form calls directly what this test replaces"))
    factor = int(os.environ.get("FUZZ", "1"))
    if factor == 1:
        return
    seen = set()
    for item in items:
        function = getattr(item, "function", None)
        if getattr(function, "is_hypothesis_test", False) and function not in seen:
            seen.add(function)
            named = getattr(function, "_hypothesis_internal_use_settings", None) or settings.default
            function._hypothesis_internal_use_settings = settings(named, max_examples=named.max_examples * factor)
