"""Classes that come later: a Universal Model learns a new one without forgetting those that it has (section 3.4).

With a controller a class, the new one's alone is trained, and what the network says of the old classes stays as it is,
bit by bit. Or, as in the paper, the old network labels the new cases with its own classes, and all weights train.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vesalius.data.class_tables import ClassTable
from vesalius.errors import ConfigError
from vesalius.nn.language_head import LanguageDriven
from vesalius.pretrain.universal import Universal, UniversalConfig, with_pseudo_labels


class Extension(Universal):
    """Training of the last classes of a network, or of all with the old network's guesses.

    Args:
        config: hyper-parameters.
        network: before the extension; it is copied.
        table: of its classes, and the new ones after them.
        embeddings: ``[J, E]`` of the new ones.
        pseudo_labels: train all weights, on what the old network says of its own classes where nothing is labelled.

    Raises:
        ConfigError: one controller makes all classes, and nothing would keep the old ones.
    """

    def __init__(
        self,
        config: UniversalConfig,
        network: LanguageDriven,
        *,
        table: ClassTable,
        embeddings: Tensor,
        pseudo_labels: bool = False,
    ):
        controllers = network.head.controller
        if not pseudo_labels and not isinstance(controllers, nn.ModuleList):
            raise ConfigError(
                "one controller makes all classes of this network: to train it for a new one changes the old ones",
                remedy="use pseudo_labels, or start from a network with --model.controller per_class",
            )
        known = len(network.classes)
        extended = copy.deepcopy(network)
        extended.extend(table.names[known:], embeddings)
        super().__init__(config, table=table, network=extended)
        self.known, self.pseudo_labels = known, pseudo_labels
        self._old = [network.eval().requires_grad_(False)]  # in a list: it is not stored with the checkpoint
        if not pseudo_labels:
            self.network.requires_grad_(False)
            self.new_heads.requires_grad_(True)

    @property
    def old(self) -> LanguageDriven:
        """The network before the extension."""
        return self._old[0].to(self.members.device)

    @property
    def new_heads(self) -> nn.ModuleList:
        """The controllers of the new classes."""
        controllers = self.network.head.controller
        assert isinstance(controllers, nn.ModuleList)
        return controllers[self.known :]

    def train(self, mode: bool = True) -> Extension:
        """As of any module; what does not train stays in evaluation mode."""
        super().train(mode)
        if not self.pseudo_labels:
            self.network.eval()
        return self

    def loss(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """That of the new classes; with pseudo labels, of the old ones too."""
        labelled = batch["labelled"]
        rows = list(range(len(self.classes)))
        if not self.pseudo_labels:
            rows = rows[self.known :]
        target = self.members[:, rows][batch["mask"].long()].movedim(-1, 1)
        labelled = labelled[:, rows]
        if self.pseudo_labels:
            with torch.no_grad():
                guesses = self.old(batch["image"])
            target, labelled = with_pseudo_labels(target, labelled, guesses, range(self.known))
        return self.terms(batch, target, labelled, rows)


def changed_tensors(before: nn.Module, after: nn.Module) -> list[str]:
    """Names of the tensors that are no longer what they were; of the table of embeddings, only the old rows count."""
    new = after.state_dict()
    return [
        name
        for name, old in before.state_dict().items()
        if not torch.equal(old, new[name][: len(old)] if name == "head.embedding" else new[name])
    ]


def old_classes_only(case: dict[str, Any], known: int) -> dict[str, Any]:
    """A case of `Universal.val_view` as if only the first classes were labelled."""
    labelled: Sequence[bool] = [n < known and bool(is_one) for n, is_one in enumerate(case["labelled"])]
    return {**case, "labelled": torch.tensor(labelled)}
