from collections.abc import Callable

import pytest

from pastry.report.data import ReportData
from pastry.report.page import render
from tests.report.sample import full, minimal


@pytest.fixture(scope="session")
def report_data() -> Callable[..., ReportData]:
    """Makes the data of a run without the stages that may be left out; any field can be replaced."""
    return minimal


@pytest.fixture(scope="session")
def pages() -> dict[str, str]:
    """The page of as little as there may be, and of everything."""
    return {"minimal": render(minimal()), "full": render(full())}
