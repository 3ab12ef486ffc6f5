"""`val`: how images are upscaled and measured, in training and in tests."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from mtkd.config.schema.fields import MOST, Count, FileName, Int, Section


class TileOptions(Section):
    """Evaluation in tiles of `tile_size` lq pixels with `tile_pad` pixels of context on each side."""

    tile_size: Count = Field(description="side of a tile in lq pixels")
    tile_pad: Int = Field(
        default=32, ge=0, le=MOST, description="lq pixels of context around a tile, which are cut off the result"
    )


class ValOptions(Section):
    """`val`. `metrics` maps a name to `type`, `better` ("higher" or "lower") and the metric's arguments."""

    val_freq: Count | None = Field(
        default=None, description="iterations between validations; `~`: after the last one only. Not in a test file"
    )
    save_img: bool = Field(default=False, description="keep the images that the network makes, as PNG files")
    suffix: FileName | None = Field(
        default=None, description="what `mtkd test` adds to the names of the images it keeps; `~`: the file's `name`"
    )
    metrics: dict[str, dict[str, Any]] = Field(default={}, description="what is measured, by the name of its column")
    best_metric: str | None = Field(
        default=None,
        description="the metric by which weights are the best, for `logger.save_best` and `train.early_stop`; `~`: the "
        "first. Not in a test file",
    )
    best_set: str | None = Field(
        default=None,
        description="key of the validation set whose `best_metric` counts, such as `val_2`; `~`: the first. Not in a "
        "test file",
    )
    tile: TileOptions | None = Field(
        default=None, description="run the network over tiles of an image, for large images; `~`: over whole images"
    )
    self_ensemble: bool = Field(
        default=False, description="average over the eight flips and rotations of each image (x8, the + of EDSR+)"
    )
    compile: bool = Field(
        default=False,
        description="torch.compile of the network, for images of all sizes. What cannot be compiled runs "
        "uncompiled, and the log says so",
    )
