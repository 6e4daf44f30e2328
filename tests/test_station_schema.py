"""Requests made from the service's own schema, fitting and unfitting ones, get answers that the schema tells of."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import pytest

pytest.importorskip("starlette.testclient", exc_type=ImportError, reason="httpx2 is not installed")
pytest.importorskip("schemathesis", reason="schemathesis is not installed")

import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis.generation import GenerationMode
from schemathesis.specs.openapi.checks import positive_data_acceptance

from stations import Station, picture
from threecad.station.safety import Guard

pytestmark = pytest.mark.slow

EXAMPLES = 8
"""Of each operation, fitting and unfitting ones."""

RULES_OF_THEIR_OWN = ("thresholds", "calibration", "model", "inspect")
"""Operations that may refuse what their schema allows: crossed budgets, no confirmed part, bytes that show nothing."""

thorough = settings(
    max_examples=EXAMPLES,
    derandomize=True,
    database=None,
    deadline=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)


@pytest.mark.parametrize("mode", GenerationMode)
def test_every_operation_answers_as_its_schema_says(mode: GenerationMode, tmp_path: Path) -> None:
    station = Station(tmp_path / "store", guard=Guard())
    for seed in (1, 2):
        station.post(picture(seed, defect=seed == 2), part=f"P{seed}")
    schema = schemathesis.openapi.from_asgi("/openapi.json", station.client.app)
    operations = [found.ok() for found in schema.get_all_operations()]
    for operation in operations:

        @thorough
        @given(case=operation.as_strategy(generation_mode=mode))
        def fits(case: schemathesis.Case) -> None:
            has_own_rules = case.operation.path.endswith(RULES_OF_THEIR_OWN)
            case.call_and_validate(excluded_checks=[positive_data_acceptance] if has_own_rules else [])

        with suppress(Unsatisfiable):  # there is nothing to be wrong with an operation that takes nothing
            fits()
    assert len(operations) > 15
    assert station.post(picture(3)).json()["verdict"] == "OK"
    station.close()
