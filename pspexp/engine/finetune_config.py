"""The settings of fine-tuning: the node ``finetune`` of the configuration."""

from dataclasses import dataclass, field
from typing import Annotated, Literal

from pydantic import ConfigDict, Field, StrictFloat, StrictInt, StrictStr


@dataclass(frozen=True)
class FinetuneConfig:
    """How to start from pretrained weights without losing what they know.

    Attributes:
        freeze: Names of modules or parameters, or patterns for them, that are not trained; the statistics of batch
            norms in them stay as they are, too.
        unfreeze_at: Epoch from which they are trained, from 1.
        layer_decay: Factor of the learning rate from one stage of the backbone to the one below; the last stage has
            the learning rate of the optimizer (cf. Clark et al., ELECTRA, ICLR 2020; Bao et al., BEiT, ICLR 2022).
        freeze_batch_norm: Whether batch norms, all or those of the backbone, use and keep the statistics they start
            with. Their scales and offsets are trained.
    """

    __pydantic_config__ = ConfigDict(extra="forbid")
    freeze: list[StrictStr] = field(default_factory=list)
    unfreeze_at: Annotated[StrictInt, Field(ge=2)] | None = None
    layer_decay: Annotated[StrictFloat, Field(gt=0, le=1)] | None = None
    freeze_batch_norm: Literal[False, True, "backbone"] = False
