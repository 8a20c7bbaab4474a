"""The first cases of each program in ``tests/fuzz``: ``make fuzz`` runs many more."""

import pytest

from tests.fuzz import h2_engines, quic_endpoints, quic_tokens


@pytest.mark.parametrize("program", [h2_engines, quic_endpoints, quic_tokens], ids=lambda program: program.__name__.rpartition(".")[2])
def test_the_first_cases(program) -> None:
    for case in range(1, 26):
        program.check(case)
