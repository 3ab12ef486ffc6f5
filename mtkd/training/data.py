"""The training data of a run, opened and checked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from mtkd import build
from mtkd.build import open_training_images
from mtkd.config import ItemTrainSetOptions, Options
from mtkd.data.foreign import ForeignItems
from mtkd.data.store import ImageStore
from mtkd.data.training import TrainingSet
from mtkd.runtime.progress import Progress
from mtkd.targets.store_check import open_targets


@dataclass(frozen=True)
class TrainingData:
    """Decoded `images`, perhaps stored `targets` and kept `answers` of teachers, or `items` of a class from outside."""

    images: TrainingSet | None = None
    targets: ImageStore | None = None
    answers: Mapping[str, ImageStore] = field(default_factory=dict)
    items: ForeignItems | None = None

    @property
    def num_samples(self) -> int:
        """Training images."""
        if self.images is not None:
            return len(self.images)
        assert self.items is not None
        return len(self.items)


def open_data(options: Options, seed: int) -> TrainingData:
    """What `options` name; `seed` is for the class from outside.

    Raises:
        MtkdError: images, targets or answers are missing, damaged, or do not belong together.
    """
    train_set = options.train_set
    if isinstance(train_set, ItemTrainSetOptions):
        return TrainingData(items=build.open_items(train_set, options.scale, phase="train", seed=seed))
    with Progress("decoding the training images", print) as decoding:
        images = open_training_images(options, decoding)
    targets = open_targets(options, images) if options.target_store else None
    return TrainingData(images, targets, build.open_training_answers(options, images))
