"""The language described by itself: complete, true, and in step with the page in the repository."""

from pathlib import Path

import jsonschema
import pytest
import yaml
from config_folder import SITE

from proxy.config.model_server import File
from proxy.config.reference import json_schema, markdown, models

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def validator():
    schema = json_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


def test_every_key_has_a_description():
    for model in models():
        assert model.__doc__
        for name, field in model.model_fields.items():
            assert field.description, f"{model.__name__}.{name}"


def test_the_schema_has_every_key_and_no_other():
    schema = json_schema()
    for model in models():
        shape = schema if model is File else schema["$defs"].get(model.__name__)
        if shape is None:
            continue  # the forms of a key stand where they are used
        shape = shape if "properties" in shape else shape["anyOf"][0]
        assert set(shape["properties"]) == {field.alias or name for name, field in model.model_fields.items()}
        assert shape["additionalProperties"] is False
        assert all(entry["description"] for entry in shape["properties"].values())
    assert len(schema["$defs"]) >= len(models()) - 4


def test_defaults_stand_as_one_would_write_them():
    shapes = json_schema()["$defs"]
    assert shapes["ServerTimeouts"]["properties"]["idle"]["default"] == "75s"
    assert shapes["ServerTimeouts"]["properties"]["drain_delay"]["default"] == "off"
    assert shapes["Limits"]["properties"]["header_size"]["default"] == "32KiB"
    assert shapes["Server"]["properties"]["listeners"]["default"] == [{"address": "0.0.0.0:8443"}]
    assert shapes["Connections"]["properties"]["lifetime"]["default"] == "1h"


def test_the_schema_takes_what_the_loader_takes(validator):
    validator.validate(yaml.safe_load(SITE))
    validator.validate(
        yaml.safe_load(
            """
server: {admin: off, health: off, limits: {body_size: off}, timeouts: {drain_delay: off}, log: {access: off}}
sites:
  - hosts: [b.example.com]
    health:
    routes:
      - {redirect: "https://x{path}", match: {headers: {X-A: , X-B: 1}}}
      - {pool: web, replace_prefix: {from: /a, to: /b}, headers: {request: {set: {X: 1}}}}
pools:
  web:
    endpoints: ["http://x", {url: "http://y", weight: 2}]
    balance: {key: {header: X-A}}
    health: {status: [200, "300-399"]}
    passive: off
"""
        )
    )


@pytest.mark.parametrize(
    "text",
    [
        "plus: 1",
        "server: {listener: []}",
        "server: {timeouts: {idle: 75}}",
        "site: {}",
        "pools: {web: {endpoints: []}}",
        "server: {admin: on}",
    ],
)
def test_the_schema_refuses_what_the_loader_refuses(validator, text):
    assert not validator.is_valid(yaml.safe_load(text))


def test_the_schema_takes_the_example(validator):
    files = list((ROOT / "conf.d").rglob("*.yaml"))
    assert files
    for file in files:
        validator.validate(yaml.safe_load(file.read_text()))


def test_the_page_in_the_repository_is_the_one_that_the_source_makes():
    page = (ROOT / "docs" / "reference" / "configuration.md").read_text()
    assert page == markdown(), "run: qproxy schema --markdown > docs/reference/configuration.md"


def test_the_page_has_every_key():
    page = markdown()
    for model in models():
        section = page.split("## A file" if model is File else f"## {model.__name__}\n", 1)[1].split("\n## ", 1)[0]
        assert [line.split("`")[1] for line in section.splitlines() if line.startswith("| `")] == [
            field.alias or name for name, field in model.model_fields.items()
        ]
