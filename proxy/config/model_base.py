"""What all models of the configuration share."""

from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Discriminator


class Model(BaseModel):
    """A mapping of the configuration: unknown keys are errors, and nothing changes after reading. Docstrings become the reference."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        use_attribute_docstrings=True,
        allow_inf_nan=False,
        hide_input_in_errors=True,
    )

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> Self:
        """Itself, since nothing changes: pydantic copies the defaults that hold a list for every mapping that leaves them out."""
        return self


def _switch(value: Any) -> str:
    return "off" if value == "off" else "on"


SWITCH = Discriminator(_switch)
"""Tells ``off`` from a mapping, tagged ``off`` and ``on``: so that a mistake is told for the one that was meant."""
