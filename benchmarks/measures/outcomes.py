"""A plugin of pytest that appends each test's outcome to a file the moment it is known: `-p measures.outcomes`.

The file is `$MTKD_OUTCOMES`, one JSON object a line: test, outcome, seconds, and the end of the report of a failure.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

_KEPT = 3000
"""Characters of a failure's report: its end, which names the error."""


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    # One line a test: its call, or what kept it from being called; from the process that hears of all of them.
    if "PYTEST_XDIST_WORKER" in os.environ or report.when != "call" and report.outcome == "passed":
        return
    line = {"test": report.nodeid, "outcome": report.outcome, "seconds": round(report.duration, 2)}
    if report.outcome == "failed":
        line["error"] = report.longreprtext[-_KEPT:]
    with Path(os.environ["MTKD_OUTCOMES"]).open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")
