"""What is minimized: the answers, and auxiliary readings that are thrown away after training.

Image cells are also asked directly what they show, after the vision part and again after the
encoder: answers alone would teach the vision part slowly where to look.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from training.coordinates import COORDINATES, SoftBins
from training.florence_2.architecture import TinyFlorence2, TrainingForward
from training.florence_2.data import BACKGROUND, LETTERS, NO_LETTER, Batch, CellTargets, Prompts
from training.florence_2.wording import KINDS

_DECISION_WEIGHT = 3.0
_LETTER_WEIGHT = 3.0
_BACKGROUND_WEIGHT = 0.3
_NO_LETTER_WEIGHT = 0.1

# Of the auxiliary readings, after the vision part and after the encoder.
_PART_WEIGHTS = {
    "kind": 0.25,
    "letter": 0.5,
    "box": 0.5,
    "read_kind": 0.25,
    "read_letter": 0.5,
    "read_box": 0.5,
}


class AuxiliaryHeads(nn.Module):
    """Linear readings of image cells; not part of the exported model."""

    def __init__(self, width: int):
        super().__init__()
        # After the vision part.
        self.kind = nn.Linear(width, len(KINDS) + 1)
        self.letter = nn.Linear(width, len(LETTERS) + 1)
        self.corners = nn.Linear(width, 4)
        # After the encoder.
        self.read_kind = nn.Linear(width, len(KINDS) + 1)
        self.read_letter = nn.Linear(width, len(LETTERS) + 1)
        self.read_corners = nn.Linear(width, 4 * width)
        nn.init.normal_(self.read_corners.weight, 0, 0.05)


class Objective:
    """The weighted sum of all losses for one batch."""

    def __init__(
        self, model: TinyFlorence2, heads: AuxiliaryHeads, tokenizer: PreTrainedTokenizerBase
    ):
        self._forward = TrainingForward(model)
        self._embeddings = model.model.language_model.shared.weight
        self._heads = heads
        self._first = tokenizer.convert_tokens_to_ids("<loc_0>")
        self._start = tokenizer.convert_tokens_to_ids("<s>")
        self._letters = torch.tensor(tokenizer.convert_tokens_to_ids(list(LETTERS)))

    def __call__(self, batch: Batch, soft_bins: SoftBins) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss to minimize, and its parts and some accuracies by name."""
        vision = self._forward.vision(batch.pixels)
        cells = vision[:, 1:]
        parts = {
            "kind": _cell_loss(self._heads.kind(cells), batch.cells.kind, _BACKGROUND),
            "letter": _cell_loss(self._heads.letter(cells), batch.cells.letter, _LETTERLESS),
            "box": self._corner_loss(cells, batch.cells),
        }
        answers, encoded = [], []
        for prompts in batch.groups:
            states, image = self._forward.language(
                vision[prompts.picture], prompts.tokens, prompts.is_prompt, prompts.said
            )
            answers.append(_answers(states, prompts))
            encoded.append((prompts.picture[prompts.first], image[prompts.first, 1:]))
        order = torch.cat([picture for picture, _ in encoded]).argsort()
        encoded_cells = torch.cat([image for _, image in encoded])[order]
        parts |= self._encoder_parts(encoded_cells, batch.cells, soft_bins)
        states, wanted, said = (torch.cat(column) for column in zip(*answers, strict=True))
        answer_loss, answer_parts = self._answer_loss(states, wanted, said, soft_bins)
        auxiliary = sum(_PART_WEIGHTS[name] * loss for name, loss in parts.items())
        return answer_loss + auxiliary, answer_parts | parts

    def _answer_loss(
        self, states: Tensor, wanted: Tensor, said: Tensor, soft_bins: SoftBins
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Next-token losses: words by cross entropy, locations by soft bins."""
        logits = (states @ self._embeddings.T).float()
        is_location = self._is_location(wanted)
        # Whether a box is named, and whether another one follows.
        decides = self._is_location(said) | (said == self._start)

        words = ~is_location
        weight = torch.where(decides[words], _DECISION_WEIGHT, 1.0)
        weight[torch.isin(wanted[words], self._letters)] = _LETTER_WEIGHT
        text = F.cross_entropy(logits[words], wanted[words], reduction="none")
        text = (text * weight).sum() / weight.sum()

        bins = wanted[is_location] - self._first
        log_probabilities = logits[is_location].log_softmax(-1)
        locations = log_probabilities[:, self._first : self._first + COORDINATES]
        number = soft_bins.divergence(locations, bins).mean()

        with torch.no_grad():
            right = (logits.argmax(1) == wanted).float()
            off = (locations.argmax(1) - bins).abs().float().mean()
        return text + number, {
            "text": text,
            "number": number,
            "right_decision": right[words & decides].mean(),
            "right_word": right[words & ~decides].mean(),
            "off": off,
        }

    def _is_location(self, tokens: Tensor) -> Tensor:
        return (tokens >= self._first) & (tokens < self._first + COORDINATES)

    def _corner_loss(self, cells: Tensor, targets: CellTargets) -> Tensor:
        corners = self._heads.corners(cells[targets.boxed]).float()
        return 5 * F.smooth_l1_loss(corners, targets.corners[targets.boxed], beta=0.05)

    def _encoder_parts(
        self, cells: Tensor, targets: CellTargets, soft_bins: SoftBins
    ) -> dict[str, Tensor]:
        """Readings of the encoder's image cells (pictures, cells, width)."""
        # Corners are spoken in the model's own location embeddings.
        locations = self._embeddings[self._first : self._first + COORDINATES]
        corners = self._heads.read_corners(cells[targets.boxed]).unflatten(-1, (4, -1))
        log_probabilities = (corners @ locations.T).float().log_softmax(-1).flatten(0, 1)
        bins = targets.corner_bins[targets.boxed].flatten()
        return {
            "read_kind": _cell_loss(self._heads.read_kind(cells), targets.kind, _BACKGROUND),
            "read_letter": _cell_loss(self._heads.read_letter(cells), targets.letter, _LETTERLESS),
            "read_box": soft_bins.divergence(log_probabilities, bins).mean(),
        }


def _answers(states: Tensor, prompts: Prompts) -> tuple[Tensor, Tensor, Tensor]:
    """States (m, width) that predict tokens, those tokens (m,), and the tokens before (m,)."""
    learned = prompts.wanted != -100
    return states[learned], prompts.wanted[learned], prompts.said[learned]


# What most cells show, and what one of them counts.
_BACKGROUND = (BACKGROUND, _BACKGROUND_WEIGHT)
_LETTERLESS = (NO_LETTER, _NO_LETTER_WEIGHT)


def _cell_loss(logits: Tensor, target: Tensor, common: tuple[int, float]) -> Tensor:
    index, weight_of_common = common
    weight = torch.where(target == index, weight_of_common, 1.0).flatten()
    loss = F.cross_entropy(logits.float().flatten(0, 1), target.flatten(), reduction="none")
    return (loss * weight).sum() / weight.sum()
