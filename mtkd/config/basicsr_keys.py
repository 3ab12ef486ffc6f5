"""What option files have from BasicSR: keys that need no work here, kinds of runs that are missing, the debug run."""

from __future__ import annotations

from typing import Any, Literal

IGNORED_KEYS = {
    "num_worker_per_gpu": "images are decoded once and crops are cut on the device or from memory; workers cut them "
    "only where the images stay on the disk (`cache`)",
    "prefetch_mode": "batches are made on the device, and ahead of it where that takes time",
    "num_prefetch_queue": "batches are made on the device, and ahead of it where that takes time",
    "pin_memory": "memory is pinned wherever it is copied to a GPU",
    "persistent_workers": "workers, where there are any, live as long as the run",
    "dataset_enlarge_ratio": "a pass over the data set costs nothing to restart",
    "use_shuffle": "the order is drawn from the seed, every image once per pass",
    "io_backend": "folders are decoded once into an image store",
    "mean": "networks take images in [0, 1] and shift them inside",
    "std": "networks take images in [0, 1] and scale them inside",
    "dist_params": "torchrun sets up the processes",
    "find_unused_parameters": "methods use all their parameters in every iteration",
    "pbar": "progress is printed in lines",
    "ignore_resume_networks": "only what was trained is resumed; teachers come from their own files",
}
"""BasicSR's keys that are accepted without effect, and why nothing is lost."""

IGNORED_AT_TOP = ("dist_params", "find_unused_parameters")
IGNORED_OUTSIDE_DATASETS = (*IGNORED_AT_TOP, "ignore_resume_networks", "pbar")
"""Those of `IGNORED_KEYS` that BasicSR has elsewhere than in a data set; all others belong there."""

LOADER_KEYS = (
    "num_worker_per_gpu", "prefetch_mode", "num_prefetch_queue", "pin_memory", "persistent_workers",
    "dataset_enlarge_ratio", "use_shuffle", "batch_size_per_gpu",
)  # fmt: skip
"""What BasicSR's loader, not its data sets, reads of a data set's section."""

METRICS_BETTER: dict[str, Literal["higher", "lower"]] = {
    "calculate_niqe": "lower",
    "calculate_psnr_pt": "higher",
    "calculate_ssim_pt": "higher",
}
"""The better value, higher or lower, of metrics that are only in BasicSR."""

UNSUPPORTED_KEYS = {
    "network_d": "GAN training is not part of mtkd. Remove it, and the terms and optimizer of the critic",
    "degradation": "degradations that are made during training are not part of mtkd. Remove it",
}
"""Top-level keys of BasicSR's other models -> why they are refused."""


TERMS = {"perceptual": "One term takes any loss, such as pixel_opt: {type: PerceptualLoss, ...}, in place of its L1."}
"""Terms of BasicSR's models that no method here has -> the way on."""


def apply_debug(data: dict[str, Any], *, debug: bool, is_train: bool) -> None:
    """Change `data`, an option file's values, for `--debug`.

    `debug_` goes before the name. A training whose name holds "debug", even without the flag, validates and saves every
    8 iterations, prints every one, and uses neither TensorBoard nor wandb.
    """
    name = data.get("name")
    if not isinstance(name, str):
        return
    if debug and not name.startswith("debug"):
        name = data["name"] = f"debug_{name}"
    if "debug" not in name or not is_train:
        return
    if isinstance(data.get("val"), dict):
        data["val"]["val_freq"] = 8
    logger = data.get("logger")
    if logger is None or isinstance(logger, dict):
        quick = {"print_freq": 1, "save_checkpoint_freq": 8, "use_tb_logger": False, "wandb": None}
        data["logger"] = {**(logger or {}), **quick}
