"""Small option files that the tests change at one place."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from mtkd.config import OptionError, Options, Problem, make_options, yaml_loader

BASICSR_EDSR = """\
# general settings
name: 201_EDSR_Mx4_f64b16_DIV2K_300k_B16G1_wandb
model_type: SRModel
scale: 4
num_gpu: 1  # set num_gpu: 0 for cpu mode
manual_seed: 10

# dataset and data loader settings
datasets:
  train:
    name: DIV2K
    type: PairedImageDataset
    dataroot_gt: datasets/DIV2K/DIV2K_train_HR_sub
    dataroot_lq: datasets/DIV2K/DIV2K_train_LR_bicubic/X4_sub
    filename_tmpl: '{}'
    io_backend:
      type: disk
    gt_size: 192
    use_hflip: true
    use_rot: true
    # data loader
    use_shuffle: true
    num_worker_per_gpu: 6
    batch_size_per_gpu: 16
    dataset_enlarge_ratio: 100
    prefetch_mode: ~
  val:
    name: Set5
    type: PairedImageDataset
    dataroot_gt: datasets/Set5/GTmod12
    dataroot_lq: datasets/Set5/LRbicx4
    io_backend:
      type: disk

network_g:
  type: EDSR
  num_in_ch: 3
  num_out_ch: 3
  num_feat: 64
  num_block: 16
  upscale: 4
  res_scale: 1
  img_range: 255.
  rgb_mean: [0.4488, 0.4371, 0.4040]

path:
  pretrain_network_g: ~
  strict_load_g: true
  resume_state: ~

train:
  ema_decay: 0.999
  optim_g:
    type: Adam
    lr: !!float 1e-4
    weight_decay: 0
    betas: [0.9, 0.99]
  scheduler:
    type: MultiStepLR
    milestones: [200000]
    gamma: 0.5
  total_iter: !!float 3e5
  warmup_iter: -1  # no warm up
  pixel_opt:
    type: L1Loss
    loss_weight: 1.0
    reduction: mean

val:
  val_freq: !!float 5e3
  save_img: false
  metrics:
    psnr: # metric name, can be arbitrary
      type: calculate_psnr
      crop_border: 4
      test_y_channel: false

logger:
  print_freq: 100
  save_checkpoint_freq: !!float 5e3
  use_tb_logger: true
  wandb:
    project: ~
    resume_id: ~

dist_params:
  backend: nccl
  port: 29500
"""
"""The form of BasicSR's own option files, keys and notation unchanged."""

TRAIN = yaml_loader.parse("""\
name: small
scale: 2
datasets:
  train: {name: t, type: PairedImageDataset, dataroot_gt: gt, gt_size: 32, batch_size_per_gpu: 2}
  val: {name: v, type: PairedImageDataset, dataroot_gt: val}
network_g: {type: EDSR, num_feat: 8, num_block: 1}
train:
  optim_g: {type: Adam, lr: 1e-3}
  scheduler: {type: MultiStepLR, milestones: [5]}
  total_iter: 10
  pixel_opt: {type: L1Loss}
val: {val_freq: 5, metrics: {psnr: {type: calculate_psnr, crop_border: 2}}}
""").data

TEACHER = {"network": {"type": "EDSR", "num_feat": 16}, "pretrain": "zoo:edsr_m_x2"}

TEST = yaml_loader.parse("""\
name: test
scale: 2
datasets:
  test_1: {name: Set5, type: PairedImageDataset, dataroot_gt: datasets/Set5/HR}
network_g: {type: EDSR}
path: {pretrain_network_g: zoo:edsr_m_x2}
val: {metrics: {psnr: {type: calculate_psnr, crop_border: 2}}}
""").data


def changed(base: dict[str, Any], changes: dict[str, Any], drop: tuple[str, ...] = ()) -> dict[str, Any]:
    """A copy of `base` with values set and dropped at paths such as "train.optim_g.lr"."""
    data = copy.deepcopy(base)
    for path, value in changes.items():
        *parents, last = path.split(".")
        target = data
        for parent in parents:
            target = target.setdefault(parent, {})
        target[last] = value
    for path in drop:
        *parents, last = path.split(".")
        target = data
        for parent in parents:
            target = target[parent]
        del target[last]
    return data


def train(changes: dict[str, Any] | None = None, drop: tuple[str, ...] = ()) -> Options:
    return make_options(changed(TRAIN, changes or {}, drop))


def mtkd(changes: dict[str, Any] | None = None, drop: tuple[str, ...] = ()) -> Options:
    base = changed(TRAIN, {"model_type": "MTKD", "teachers.one": TEACHER}, ("train.pixel_opt",))
    return make_options(changed(base, changes or {}, drop))


def fake(changes: dict[str, Any] | None = None, drop: tuple[str, ...] = ()) -> Options:
    base = changed(
        TRAIN,
        {"model_type": "tests.config.fakes:Fake", "teachers.one": TEACHER, "method.taps": ["body.0"]},
        ("train.pixel_opt",),
    )
    return make_options(changed(base, changes or {}, drop))


def evaluation(changes: dict[str, Any] | None = None, drop: tuple[str, ...] = ()) -> Options:
    return make_options(changed(TEST, changes or {}, drop))


def problems(make: Any, *args: Any, **kwargs: Any) -> list[Problem]:
    """What `make(...)` finds wrong."""
    with pytest.raises(OptionError) as raised:
        make(*args, **kwargs)
    return raised.value.problems


def only_problem(make: Any, *args: Any, **kwargs: Any) -> Problem:
    """The one thing that `make(...)` finds wrong."""
    found = problems(make, *args, **kwargs)
    assert len(found) == 1, [str(problem) for problem in found]
    return found[0]
