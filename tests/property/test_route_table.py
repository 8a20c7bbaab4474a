"""A route table agrees with an oracle that sorts all routes and tries one after the other."""

from dataclasses import dataclass

from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.policy.path import canonical
from proxy.route.match import Match
from proxy.route.table import RouteTable


@dataclass(frozen=True)
class Numbered:
    number: int
    match: Match


segments = st.sampled_from([b"a", b"b", b"ab", b"%61", b"c", b""])
paths = st.builds(lambda parts, last: b"/" + b"/".join(parts) + last, st.lists(segments, max_size=4), st.sampled_from([b"", b"/"]))
conditions = st.fixed_dictionaries(
    {
        "methods": st.sampled_from([frozenset(), frozenset({b"GET"}), frozenset({b"PUT", b"GET"})]),
        "headers": st.sampled_from([(), ((b"x", None),), ((b"x", b"1"),), ((b"x", b"1"), (b"y", None))]),
        "query": st.sampled_from([(), ((b"q", None),), ((b"q", b"a b"),)]),
    }
)
matches = st.one_of(
    st.builds(lambda path, rest: Match(prefix=path, **rest), paths | st.none(), conditions),
    st.builds(lambda path, rest: Match(exact=path, **rest), paths, conditions),
)


def oracle(routes: list[Numbered], method: bytes, path: bytes, headers: list[tuple[bytes, bytes]]) -> Numbered | None:
    def rank(route: Numbered) -> tuple[int, int, int, int]:
        match = route.match
        if match.exact is not None:
            return (0, 0, -match.conditions, route.number)
        return (1, -len(canonical(match.prefix or b"/")), -match.conditions, route.number)

    bare = canonical(path.split(b"?")[0])
    for route in sorted(routes, key=rank):
        match = route.match
        if match.exact is not None:
            fits = bare == canonical(match.exact)
        else:
            prefix = canonical(match.prefix or b"/")
            fits = prefix in {b"/", bare} or bare.startswith(prefix if prefix.endswith(b"/") else prefix + b"/")
        if fits and match.holds(method, path, headers):
            return route
    return None


@settings(max_examples=400, deadline=None)
@given(
    st.lists(matches, max_size=8),
    st.sampled_from([b"GET", b"PUT", b"POST"]),
    paths | st.just(b"*"),
    st.sampled_from([b"", b"?q", b"?q=a+b", b"?q=%61%20b", b"?/a"]),
    st.lists(st.tuples(st.sampled_from([b"x", b"y"]), st.sampled_from([b"1", b"2"])), max_size=3),
)
def test_the_table_agrees_with_the_oracle(all_matches, method, path, query, headers):
    routes = [Numbered(number, match) for number, match in enumerate(all_matches)]
    table = RouteTable(routes)
    expected = oracle(routes, method, path + query, headers)
    assert table.find(method, path + query, headers) == expected
    taken = [route for route, wins, _ in table.explain(method, path + query, headers) if wins]
    assert taken == ([] if expected is None else [expected])
