"""What all models of the configuration share."""

from pydantic import BaseModel, ConfigDict


class Model(BaseModel):
    """A mapping of the configuration: unknown keys are errors, and nothing changes after reading. Docstrings become the reference."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        use_attribute_docstrings=True,
        allow_inf_nan=False,
        hide_input_in_errors=True,
    )
