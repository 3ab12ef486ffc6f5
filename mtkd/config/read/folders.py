"""Reads `path` and `logger`."""

from __future__ import annotations

from typing import Any

from mtkd.config.read.reader import Reader
from mtkd.config.schema import LoggerOptions, PathOptions


def read_path(reader: Reader, data: Any) -> PathOptions:
    """`path`; the defaults after reporting what is wrong."""
    given = dict(reader.mapping(data, ("path",)))
    if "ignore_resume_networks" in given:
        reader.ignore_basicsr_key(("path", "ignore_resume_networks"))
        del given["ignore_resume_networks"]
    if not reader.is_train:
        if given.get("resume_state") is not None:
            reader.ignore(("path", "resume_state"), "a test file resumes nothing")
            del given["resume_state"]
        if given.get("pretrain_network_g") is None and not reader.num_teachers:
            reader.problem(("path", "pretrain_network_g"), "required in a test file: the weights to test.")
    return reader.section(PathOptions, given, ("path",)) or PathOptions()


def read_logger(reader: Reader, data: Any) -> LoggerOptions:
    """`logger`; the defaults after reporting what is wrong."""
    if data is not None and not reader.is_train:
        reader.ignore(("logger",), "testing writes a table, a CSV and a JSON")
        return LoggerOptions()
    given = dict(reader.mapping(data, ("logger",)))
    if isinstance(given.get("wandb"), dict) and given["wandb"].get("project", "") is None:
        # BasicSR's files switch wandb off by `project: ~`.
        given["wandb"] = None
    return reader.section(LoggerOptions, given, ("logger",)) or LoggerOptions()
