"""A model of a training step on N cards: computing, exchanging gradients and statistics, reading images."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from pspexp.utils.tables import markdown_table


@dataclass(frozen=True)
class Training:
    """What is trained.

    Attributes:
        step_s: Seconds of a step on one card, by the number of its images.
        backward_share: Share of the step during which gradients become ready, so that their exchange costs nothing.
        gradient_bytes: Bytes of all gradients.
        last_bytes: Bytes of the gradients that are ready last; their exchange is never hidden.
        num_norms: Number of batch norms, each of which exchanges its statistics twice a step, unhidden.
        num_images: Images of the data set.
        image_bytes: Mean bytes of a file with its label.
        epochs: Length of the training.
    """

    step_s: dict[int, float]
    backward_share: float
    gradient_bytes: float
    last_bytes: float
    num_norms: int
    num_images: int
    image_bytes: float
    epochs: int


@dataclass(frozen=True)
class Cluster:
    """How cards are connected.

    Attributes:
        cards_per_machine: Number of cards in each machine.
        inside, between: Bytes per second of each card, to cards of its machine and of other machines.
        launch_s: Seconds to start an exchange, however small.
        hop_inside_s, hop_between_s: Seconds that each hop of a small message adds.
        images_per_worker: Images per second that a worker of the loader reads.
    """

    cards_per_machine: int = 8
    inside: float = 300e9
    between: float = 45e9
    launch_s: float = 10e-6
    hop_inside_s: float = 1e-6
    hop_between_s: float = 5e-6
    images_per_worker: float = 200.0


@dataclass(frozen=True)
class Step:
    """A step on N cards, in seconds."""

    compute_s: float
    exposed_s: float
    norms_s: float

    @property
    def total_s(self) -> float:
        return self.compute_s + self.exposed_s + self.norms_s


def all_reduce_s(num_bytes: float, cards: int, cluster: Cluster) -> float:
    """Seconds of a ring all-reduce: each card sends twice its share of (N - 1) / N (Patarasuk and Yuan, 2009).

    Small messages take a tree instead, whose depth is the logarithm of N.
    """
    if cards == 1:
        return 0.0
    spans = cards > cluster.cards_per_machine
    bandwidth = cluster.between if spans else cluster.inside
    hop_s = cluster.hop_between_s if spans else cluster.hop_inside_s
    hops = 2 * math.ceil(math.log2(cards))
    return 2 * (cards - 1) / cards * num_bytes / bandwidth + cluster.launch_s + hops * hop_s


def step(training: Training, per_card: int, cards: int, cluster: Cluster, *, synchronised: bool = True) -> Step:
    """The step of a training with ``per_card`` images on each card.

    Args:
        synchronised: Whether batch norms are synchronised.
    """
    compute_s = training.step_s[per_card]
    hidden_s = training.backward_share * compute_s
    gradients_s = all_reduce_s(training.gradient_bytes, cards, cluster)
    last_s = all_reduce_s(training.last_bytes, cards, cluster)
    exposed_s = max(gradients_s - hidden_s, min(last_s, gradients_s))
    norms_s = 2 * training.num_norms * all_reduce_s(4096, cards, cluster) if synchronised else 0.0
    return Step(compute_s, exposed_s, norms_s)


def table(training: Training, cluster: Cluster, cards: Sequence[int], per_card: Sequence[int]) -> list[str]:
    """One row for each number of cards and of images on each, as Markdown."""
    rows = []
    for number in cards:
        for images in per_card:
            found = step(training, images, number, cluster)
            total, rate = images * number, images * number / found.total_s
            steps = training.num_images / total
            hours = training.epochs * training.num_images / rate / 3600
            rows.append(
                (
                    f"{number}",
                    f"{images}",
                    f"{total:,}",
                    "\N{NO-BREAK SPACE}+\N{NO-BREAK SPACE}".join(
                        f"{1e3 * part_s:.1f}" for part_s in (found.compute_s, found.exposed_s, found.norms_s)
                    ),
                    f"{100 * found.compute_s / found.total_s:.0f} %",
                    f"{rate:,.0f}",
                    f"{steps:,.1f}",
                    f"{hours:.2f}",
                    f"{rate * training.image_bytes / 1e6 / number * min(number, cluster.cards_per_machine):,.0f}",
                    f"{math.ceil(rate / number / cluster.images_per_worker)}",
                )
            )
    header = (
        *("GPUs", "images each", "images per step", "ms: compute + gradients + norms", "efficiency", "images/s"),
        *("steps per epoch", f"hours for {training.epochs} epochs", "MB/s read per machine", "workers per GPU"),
    )
    return markdown_table(header, rows, right_aligned=range(len(header)))
