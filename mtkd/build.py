"""From an option file to networks: students, teachers, the fused teacher, the method."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from mtkd import catalog, zoo
from mtkd.archs.ensemble import Ensemble, FusedTeacher, MeanFusion
from mtkd.config import ItemSetOptions, NetworkOptions
from mtkd.contracts import MtkdError, Task
from mtkd.data.foreign import ForeignImages, ForeignItems
from mtkd.data.paired import PairedImages
from mtkd.methods.base import Method, MethodConfig

if TYPE_CHECKING:
    from mtkd.config import FusionOptions, Options, TeacherOptions


def set_backends(options: Options | None, *, sizes_vary: bool = False) -> None:
    """Tell torch what `tf32` and `deterministic` say; every command that runs a network does so first.

    Args:
        options: None where there is no option file: what one has by default.
        sizes_vary: images come in many sizes, on each of which cuDNN's benchmark would try all its algorithms.
    """
    tf32, deterministic = (True, False) if options is None else (options.tf32, options.deterministic)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = tf32
    torch.backends.cudnn.benchmark = not deterministic and not sizes_vary
    torch.use_deterministic_algorithms(deterministic, warn_only=True)


def choose_device(options: Options, local_rank: int = 0) -> torch.device:
    """The CUDA device of process `local_rank` on this machine; the CPU where there is none or `num_gpu` is 0."""
    if not torch.cuda.is_available() or options.num_gpu == 0:
        return torch.device("cpu")
    # slurm may show each process its own device alone.
    return torch.device("cuda", local_rank % torch.cuda.device_count())


def named_device(name: str | torch.device) -> torch.device:
    """The device that a user names: "cpu", "cuda", "cuda:1", ...; a CUDA device has its index.

    Raises:
        MtkdError: it is no device, or not here.
    """
    try:
        device = torch.device(name)
        if device.type != "cuda":
            torch.ones(1, device=device).cpu()  # a device of torch's need not be here, and `meta` holds no values
    except (RuntimeError, NotImplementedError, AssertionError) as error:
        raise MtkdError(f"There is no device {name} here; name cpu, cuda, or one of several, cuda:1.") from error
    if device.type != "cuda":
        return device
    count = torch.cuda.device_count()
    if (device.index or 0) >= count:
        raise MtkdError(f"There is no device {name}: torch sees {count} CUDA devices here.")
    return torch.device("cuda", torch.cuda.current_device() if device.index is None else device.index)


def autocast(precision: str, device: torch.device) -> AbstractContextManager[Any]:
    """Context for `precision` "fp32", "bf16" or "fp16" on `device`."""
    if precision == "fp32":
        return nullcontext()
    return torch.autocast(device.type, dtype={"bf16": torch.bfloat16, "fp16": torch.float16}[precision])


def build_network(options: NetworkOptions, scale: int | None = None) -> nn.Module:
    """Network `options.type` of the catalog with its arguments, freshly initialised; `scale` where it has none.

    Raises:
        MtkdError: it does not take these arguments.
    """
    try:
        return catalog.make_network(options.type, options.args, scale=scale)
    except MtkdError:
        raise
    except Exception as error:  # a class from anywhere may raise anything
        told = f"{type(error).__name__}: {error}".strip().splitlines()[0]
        raise MtkdError(f"{options.type} cannot be built with {plain(options.args)}: {told}") from error


def load_weights(net: nn.Module, source: str, *, key: str | None = "auto", strict: bool = True) -> dict[str, Any]:
    """Load `source` (a file or `zoo:NAME`) into `net`, whose `origin` then says which weights it has, and return the
    facts stored with them.

    Args:
        key: entry of the file that holds the weights; "auto" takes `params_ema`, then `params`, then the usual others.
        strict: every key must match; `False` reports what differs, as BasicSR's `strict_load_g: false` does.

    Raises:
        MtkdError: no such file, an unsafe or broken one, or one that holds another network.
    """
    path = zoo.resolve(source)
    checkpoint = zoo.read_checkpoint(path, key=key)
    zoo.load_into(net, checkpoint.state, strict=strict, source=str(path))
    net.origin = checkpoint.origin(source if source.startswith("zoo:") else path)  # pyright: ignore[reportAttributeAccessIssue]
    return checkpoint.facts


def network_of(section: TeacherOptions | FusionOptions) -> NetworkOptions:
    """The network of a teacher or of the fusion, as the option file says, or as its weights do.

    Raises:
        MtkdError: the weights are to say it, and are missing or do not.
    """
    if section.network is not None:
        return section.network
    found = zoo.describe(section.pretrain, key=section.param_key or "auto")
    return NetworkOptions(type=found.type, args=found.args)


def build_teachers(options: Options) -> dict[str, nn.Module]:
    """The teachers a method sees, loaded: the declared ones, or one fused teacher when `fusion` is declared.

    Raises:
        MtkdError: weights are missing or foreign, or the fusion network was trained with other members or another
            order.
    """
    members: dict[str, nn.Module] = {}
    for name, teacher in options.teachers.items():
        members[name] = build_network(network_of(teacher), options.scale)
        load_weights(members[name], teacher.pretrain, key=teacher.param_key or "auto")
    if options.fusion is None:
        return members
    ensemble = Ensemble(members)
    if options.fusion == "mean":
        return {"mean": FusedTeacher(ensemble, MeanFusion(len(members)))}
    fusion = build_network(network_of(options.fusion))
    facts = load_weights(fusion, options.fusion.pretrain, key=options.fusion.param_key or "auto")
    if "members" not in facts:
        raise MtkdError(
            f"{options.fusion.pretrain} does not say for which teachers, in which order, it was trained; a fusion "
            "checkpoint written by mtkd does. Train one with `model_type: MTKDFusion`."
        )
    ensemble.check_order(facts["members"])
    return {"fused": FusedTeacher(ensemble, fusion)}


def build_method(options: Options, student: nn.Module, teachers: dict[str, nn.Module], task: Task) -> Method:
    """The method `options.model_type`, with the terms that the option file leaves active.

    In training, `zoo:NAME` anywhere in the options of the method and its terms becomes a file, fetched when it is not
    there (`vgg: zoo:vgg19`). A test has no terms, so that nothing would be done with it.
    """
    cls = catalog.get("method", options.model_type)
    if options.train is None:
        return cls(student, teachers, task, MethodConfig(terms={}, options=options.method))
    terms = {name: zoo.resolve_inside(term.args) for name, term in options.train.terms.items()}
    return cls(student, teachers, task, MethodConfig(terms=terms, options=zoo.resolve_inside(options.method)))


def open_items(given: ItemSetOptions, scale: int, *, phase: str, seed: int = 0) -> ForeignItems:
    """The data set of a class from outside that a section of the option file describes."""
    return ForeignItems(catalog.get("dataset", given.type), given.model_dump(), phase=phase, scale=scale, seed=seed)


def build_image_set(given: Any, scale: int, *, phase: str = "val") -> PairedImages | ForeignImages:
    """Validation or test images from their section of the option file."""
    if isinstance(given, ItemSetOptions):
        return ForeignImages(open_items(given, scale, phase=phase))
    return PairedImages.of_section(given.model_dump(), scale=scale)


def network_facts(options: Options) -> dict[str, Any]:
    """What is stored beside the student's weights so that the file describes itself."""
    return {
        "arch": {"type": options.network_g.type, "args": plain(options.network_g.args)},
        "scale": options.scale,
        "name": options.name,
        "method": options.model_type,
    }


def plain(value: Any) -> Any:
    """`value` with tuples as lists, so that a checkpoint holds only what `weights_only` loading allows."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value
