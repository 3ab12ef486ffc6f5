"""Several teachers called as one network, and the ways to make one image of theirs.

The order of the members is part of what a fusion network has learnt: its first convolution tells the teachers
apart by channel position only. So the order is kept in one place, `Ensemble.names`; it is stored with the fusion
weights and compared by `Ensemble.check_order` when they are loaded.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from einops import reduce
from torch import Tensor, nn

from mtkd.contracts import MtkdError


class Ensemble(nn.Module):
    """Named, ordered networks whose images are concatenated on the channel axis.

    Nothing is frozen here; wrap the ensemble in `mtkd.methods.base.Frozen` for that.

    Args:
        members: name -> network lq -> sr, in the order in which the images are concatenated. All must have the same
            `scale`. Names may not be empty or hold a dot, for they become parts of module paths.

    Attributes:
        names: the members' names in order.
        scale: the members' common scale.
        feature_names: the members' own taps under `members.NAME.`.

    Raises:
        MtkdError: there is no member, a name cannot be used, a member has no `scale`, or the scales differ.
    """

    def __init__(self, members: Mapping[str, nn.Module]) -> None:
        super().__init__()
        if not members:
            raise MtkdError("An ensemble needs at least one network; none is declared under `teachers:`.")
        self.members = nn.ModuleDict()
        for name, net in members.items():
            if not isinstance(name, str) or not name or "." in name or hasattr(self.members, name):
                raise MtkdError(
                    f"A teacher cannot be called {name!r}: a name is a word without dots, and not one of the words "
                    "that torch's ModuleDict keeps for itself (such as keys, items, type, train). Rename it under "
                    "`teachers:`."
                )
            self.members[name] = net
        self.names: tuple[str, ...] = tuple(members)
        scales = {name: getattr(net, "scale", None) for name, net in members.items()}
        without = [name for name, scale in scales.items() if scale is None]
        if without:
            raise MtkdError(
                f"The teacher {without[0]!r} ({type(members[without[0]]).__name__}) has no attribute `scale`, so it "
                "cannot be compared with the others. Give the network `scale: int`, its magnification."
            )
        if len(set(scales.values())) > 1:
            listed = ", ".join(f"{name} x{scale}" for name, scale in scales.items())
            raise MtkdError(f"The teachers of one ensemble must have the same scale; these differ: {listed}.")
        self.scale: int = scales[self.names[0]]  # pyright: ignore[reportAttributeAccessIssue]
        self.feature_names: tuple[str, ...] = tuple(
            f"members.{name}.{tap}" for name, net in members.items() for tap in getattr(net, "feature_names", ())
        )

    def forward(self, lq: Tensor, answers: Mapping[str, Tensor] | None = None) -> Tensor:
        """Images of all members.

        Args:
            lq: (N, C, h, w), floating point; C is 3 for RGB. Never changed, not even by a member that works in place.
            answers: member -> its image of this lq, for members that are not to run; other names are left aside.

        Returns:
            (N, C * len(names), h * scale, w * scale) of lq's dtype, members in the order of `names`.

        Raises:
            MtkdError: a member's output is not (N, C, h * scale, w * scale).
        """
        n, c, h, w = lq.shape
        expected = (n, c, h * self.scale, w * self.scale)
        images = []
        for name, net in self.members.items():
            image = answers[name] if answers and name in answers else net(lq.clone())
            if tuple(image.shape) != expected:
                raise MtkdError(
                    f"The teacher {name!r} made an image of shape {tuple(image.shape)} from lq of shape "
                    f"{tuple(lq.shape)}; at scale {self.scale} it must be {expected}. Check the `scale` or `upscale` "
                    "of its network, and whether it pads odd sizes and crops them again."
                )
            images.append(image.to(lq.dtype))
        return torch.cat(images, dim=1)

    def check_order(self, stored: Sequence[str]) -> None:
        """Make sure that a fusion network was trained on these members in this order.

        Args:
            stored: the names kept with the fusion weights.

        Raises:
            MtkdError: `stored` is not `names`, or no names at all; both orders are in the text.
        """
        if not isinstance(stored, list | tuple) or not all(isinstance(name, str) for name in stored):
            raise MtkdError("The fusion weights do not name their teachers: `members` is not a list.")
        if tuple(stored) == self.names:
            return
        if sorted(stored) == sorted(self.names):
            what = "in another order"
            remedy = "Put `teachers:` in the stored order"
        else:
            what = "on other teachers"
            remedy = "Declare the stored names in the stored order under `teachers:`"
        raise MtkdError(
            f"The fusion network was trained {what}: its weights were made with [{', '.join(stored)}], this run "
            f"declares [{', '.join(self.names)}]. It tells the teachers apart by position alone, so the result would "
            f"be wrong without any other sign. {remedy}, or train the fusion network again."
        )


class MeanFusion(nn.Module):
    """The mean of the teachers' images: the honest baseline of every learnt fusion. It has no parameters.

    Args:
        num_teachers: how many images are concatenated in the input.

    Raises:
        MtkdError: `num_teachers` is less than one.
    """

    feature_names: tuple[str, ...] = ()

    def __init__(self, num_teachers: int) -> None:
        super().__init__()
        if num_teachers < 1:
            raise MtkdError(f"MeanFusion needs num_teachers of at least 1, not {num_teachers}.")
        self.num_teachers = num_teachers

    def forward(self, images: Tensor) -> Tensor:
        """Mean of `images` (N, num_teachers * C, H, W), teacher by teacher, as (N, C, H, W).

        Raises:
            MtkdError: the channels are not a multiple of `num_teachers`.
        """
        if images.shape[1] % self.num_teachers:
            raise MtkdError(
                f"MeanFusion with num_teachers={self.num_teachers} got {images.shape[1]} channels, which is "
                "not a multiple of it."
            )
        return reduce(images, "n (t c) h w -> n c h w", "mean", t=self.num_teachers)


class FusedTeacher(nn.Module):
    """An ensemble and its fusion network as one teacher, lq -> fused image.

    Args:
        ensemble: the members.
        fusion: network (N, C * members, H, W) -> (N, C, H, W), a `DCTSwin` or `MeanFusion`. Where it has
            `num_teachers` and `scale`, they must be those of the ensemble.

    Attributes:
        names: the members' names in order.
        scale: the ensemble's scale.
        feature_names: taps of the members under `ensemble.` and of the fusion network under `fusion.`.

    Raises:
        MtkdError: the fusion network is made for another number of teachers or another scale.
    """

    def __init__(self, ensemble: Ensemble, fusion: nn.Module) -> None:
        super().__init__()
        num_teachers = getattr(fusion, "num_teachers", len(ensemble.names))
        if num_teachers != len(ensemble.names):
            raise MtkdError(
                f"The fusion network {type(fusion).__name__} is made for num_teachers={num_teachers}, and the "
                f"ensemble has {len(ensemble.names)}: {', '.join(ensemble.names)}."
            )
        scale = getattr(fusion, "scale", ensemble.scale)
        if scale != ensemble.scale:
            raise MtkdError(
                f"The fusion network {type(fusion).__name__} is made for scale {scale} (its `upscale`), and the "
                f"teachers {', '.join(ensemble.names)} have scale {ensemble.scale}."
            )
        self.ensemble = ensemble
        self.fusion = fusion
        self.names = ensemble.names
        self.scale = ensemble.scale
        self.image_channels: int = min(getattr(member, "image_channels", 3) for member in ensemble.members.values())
        self.feature_names: tuple[str, ...] = tuple(f"ensemble.{tap}" for tap in ensemble.feature_names) + tuple(
            f"fusion.{tap}" for tap in getattr(fusion, "feature_names", ())
        )

    def forward(self, lq: Tensor, answers: Mapping[str, Tensor] | None = None) -> Tensor:
        """Fused image (N, C, h * scale, w * scale) of `lq` (N, C, h, w); `answers` as `Ensemble.forward` takes them."""
        return self.fusion(self.ensemble(lq, answers))
