"""What an option file may say: one model per section, field names are BasicSR's keys."""

from __future__ import annotations

from mtkd.config.schema.datasets import (
    WITHOUT_GT,
    DatasetsOptions,
    EvalSetOptions,
    ItemSetOptions,
    ItemTrainSetOptions,
    TrainSetOptions,
)
from mtkd.config.schema.fields import Section
from mtkd.config.schema.folders import LoggerOptions, PathOptions, WandbOptions
from mtkd.config.schema.networks import NO_NETWORK, AnswersOptions, FusionOptions, NetworkOptions, TeacherOptions
from mtkd.config.schema.run import Head, Options
from mtkd.config.schema.training import (
    SCHEDULERS,
    CurriculumOptions,
    EarlyStopOptions,
    OptimOptions,
    SchedulerName,
    SchedulerOptions,
    TermOptions,
    TrainOptions,
)
from mtkd.config.schema.validation import TileOptions, ValOptions

__all__ = [
    "NO_NETWORK",
    "SCHEDULERS",
    "WITHOUT_GT",
    "AnswersOptions",
    "CurriculumOptions",
    "DatasetsOptions",
    "EarlyStopOptions",
    "EvalSetOptions",
    "FusionOptions",
    "Head",
    "ItemSetOptions",
    "ItemTrainSetOptions",
    "LoggerOptions",
    "NetworkOptions",
    "OptimOptions",
    "Options",
    "PathOptions",
    "SchedulerName",
    "SchedulerOptions",
    "Section",
    "TeacherOptions",
    "TermOptions",
    "TileOptions",
    "TrainOptions",
    "TrainSetOptions",
    "ValOptions",
    "WandbOptions",
]
