"""Option files: their typed schema and their strict reading.

The grammar is BasicSR's: one file is one run, field names are BasicSR's keys, `train.X_opt` configures the loss term X
of the method, `~` switches something off. On top come `teachers`, `fusion`, `target_store` and `method`. A key that is
unknown, misspelt or of the wrong type is an error, and all errors are reported at once. BasicSR keys that need no work
here (`basicsr_keys.IGNORED_KEYS`), or that have no effect in this kind of file, are noted in `Options.notices`; keys of
ours without effect are errors, because the run would differ from its file.

Names are looked up while reading: networks, losses, metrics and methods exist in the catalog, and their arguments are
checked against the signatures found there.
"""

from __future__ import annotations

from mtkd.config.problems import OptionError, Problem
from mtkd.config.read import load_options, make_options
from mtkd.config.resolved import resolved_yaml
from mtkd.config.schema import (
    AnswersOptions,
    DatasetsOptions,
    EvalSetOptions,
    FusionOptions,
    ItemSetOptions,
    ItemTrainSetOptions,
    LoggerOptions,
    NetworkOptions,
    OptimOptions,
    Options,
    PathOptions,
    SchedulerOptions,
    TeacherOptions,
    TermOptions,
    TileOptions,
    TrainOptions,
    TrainSetOptions,
    ValOptions,
    WandbOptions,
)

__all__ = [
    "AnswersOptions",
    "DatasetsOptions",
    "EvalSetOptions",
    "FusionOptions",
    "ItemSetOptions",
    "ItemTrainSetOptions",
    "LoggerOptions",
    "NetworkOptions",
    "OptimOptions",
    "OptionError",
    "Options",
    "PathOptions",
    "Problem",
    "SchedulerOptions",
    "TeacherOptions",
    "TermOptions",
    "TileOptions",
    "TrainOptions",
    "TrainSetOptions",
    "ValOptions",
    "WandbOptions",
    "load_options",
    "make_options",
    "resolved_yaml",
]
