"""`path` and `logger`: where a run begins, where it writes, and how often."""

from __future__ import annotations

from pydantic import Field

from mtkd.config.schema.fields import Count, Section, UserPath


class PathOptions(Section):
    """`path`. Relative paths start at the working directory, `~` is the home folder."""

    pretrain_network_g: UserPath | None = Field(
        default=None,
        description="weights of `network_g`, a file or `zoo:NAME`: where training begins, or what is tested; `~` in a "
        "test file: its teachers alone",
    )
    param_key_g: str | None = Field(
        default="auto",
        description="entry of that file that holds the weights, `~` for a bare state dict; `auto` takes `params_ema`, "
        "then `params`",
    )
    strict_load_g: bool = Field(
        default=True, description="every tensor must match the network; `false` loads what does and says what does not"
    )
    resume_state: UserPath | None = Field(
        default=None,
        description="training state to go on from; `mtkd train --auto_resume` finds the newest one itself",
    )
    experiments_root: UserPath = Field(default="experiments", description="folder of the folders of training runs")
    results_root: UserPath = Field(default="results", description="folder of the folders of tests")


class WandbOptions(Section):
    """`logger.wandb`."""

    project: str = Field(description="project at wandb; `~` switches wandb off")
    resume_id: str | None = Field(default=None, description="id of the run at wandb that goes on; `~`: a new one")


class LoggerOptions(Section):
    """`logger`; frequencies in iterations."""

    print_freq: Count = Field(
        default=100, description="iterations between lines of the log, and over which their losses are averaged"
    )
    save_checkpoint_freq: Count = Field(default=5000, description="iterations between checkpoints")
    keep_last: Count | None = Field(
        default=None,
        description="checkpoints and training states that are kept, the newest ones; `~`: all. `net_g_best` and "
        "`net_g_latest` are never removed",
    )
    save_best: bool = Field(
        default=True,
        description="keep the weights that were the best in a validation as `models/net_g_best.pth`; "
        "`val.best_metric` says by what",
    )
    use_tb_logger: bool = Field(default=False, description="write TensorBoard events to `tb_logger/NAME`")
    wandb: WandbOptions | None = Field(default=None, description="log to Weights & Biases; `~`: do not")
