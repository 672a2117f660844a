"""What is minimized: the answers, and auxiliary readings that are thrown away after training.

Answers alone teach a vision part of this size slowly: a None that could have been a box says
little about where to look. So image cells are also asked directly what they show, after the vision
part and again inside the text part.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from labeling_pipeline.sample.scenes import PERSON_KEYPOINTS, POSTURE_LABELS, POSTURES
from training.coordinates import SoftBins
from training.rex_omni.architecture import TinyRexOmni, TrainingForward
from training.rex_omni.data import BACKGROUND, KINDS, Batch, CellTargets, Prompts
from training.rex_omni.tokenizer import LABELS

_MIDDLE_LAYER = 1
_MOST_ROWS = 12

_DECISION_WEIGHT = 4.0
_FIRST_NUMBER_WEIGHT = 2.0
# A keypoint answer is mostly punctuation that is always the same; at full weight it would drown
# the few tokens that decide something.
_KEYPOINT_TEXT_WEIGHT = 0.25
_BACKGROUND_WEIGHT = 0.3


class AuxiliaryHeads(nn.Module):
    """Linear readings of image cells; not part of the exported model."""

    def __init__(self, width: int):
        super().__init__()
        points = len(PERSON_KEYPOINTS)
        # After the vision part.
        self.kind = nn.Linear(width, len(KINDS) + 1)
        self.corners = nn.Linear(width, 4)
        self.keypoints = nn.Linear(width, points * 3)
        self.center = nn.Linear(width, 2)
        # Inside the text part.
        self.norm = nn.LayerNorm(width)
        self.text_kind = nn.Linear(width, len(KINDS) + 1)
        self.text_corners = nn.Linear(width, 4 * width)
        self.text_labels = nn.Linear(width, width)
        self.text_label_bias = nn.Parameter(torch.full((len(LABELS),), -2.0))
        self.text_grid = nn.Linear(width, 2 * _MOST_ROWS)
        nn.init.normal_(self.text_corners.weight, 0, 0.05)


class Objective:
    """The weighted sum of all losses for one batch."""

    def __init__(
        self,
        model: TinyRexOmni,
        heads: AuxiliaryHeads,
        tokenizer: PreTrainedTokenizerBase,
        prefix_length: int,
    ):
        self._forward = TrainingForward(model, prefix_length)
        self._head = model.lm_head
        self._heads = heads
        self._first_coordinate = tokenizer.convert_tokens_to_ids("<0>")
        self._label_tokens = torch.tensor(tokenizer.convert_tokens_to_ids(list(LABELS)))
        # Which labels apply to a cell of each kind; background has none.
        self._labels_of_kind = torch.zeros(len(KINDS) + 1, len(LABELS))
        for index, kind in enumerate(KINDS):
            names = ("person", POSTURE_LABELS[kind]) if kind in POSTURES else (kind,)
            for name in names:
                self._labels_of_kind[index, LABELS.index(name)] = 1

    def __call__(self, batch: Batch, soft_bins: SoftBins) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss to minimize, and its parts and some accuracies by name."""
        vision = self._forward.vision(batch.patches, batch.grid)
        parts = self._vision_parts(vision, batch.cells)
        loss = 0.5 * sum(parts.values())
        middles = []
        for task, groups, text_weight in (
            ("det", batch.detection, 1.0),
            ("kp", batch.keypoint, _KEYPOINT_TEXT_WEIGHT),
        ):
            answers = []
            for prompts in groups:
                hidden, middle = self._forward.language(
                    vision[prompts.picture], prompts.tokens, batch.grid, _MIDDLE_LAYER
                )
                answers.append(_answers(hidden, prompts))
                middles.append((prompts.picture[prompts.first], middle[prompts.first]))
            answer_loss, answer_parts = self._answer_parts(
                *(torch.cat(column) for column in zip(*answers, strict=True)),
                soft_bins,
                text_weight,
            )
            loss = loss + answer_loss
            parts |= {f"{task}_{name}": value for name, value in answer_parts.items()}
        order = torch.cat([picture for picture, _ in middles]).argsort()
        middle = torch.cat([middle for _, middle in middles])[order]
        cell_loss, cell_parts = self._text_parts(middle, batch, soft_bins)
        return loss + cell_loss, parts | cell_parts

    def _answer_parts(
        self,
        hidden: Tensor,
        wanted: Tensor,
        decides: Tensor,
        soft_bins: SoftBins,
        text_weight: float,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Next-token losses over answers: words by cross entropy, numbers by soft bins."""
        is_number = wanted >= self._first_coordinate

        words, decides_word = wanted[~is_number], decides[~is_number]
        logits = self._head(hidden[~is_number]).float()
        weight = torch.where(decides_word, _DECISION_WEIGHT, text_weight)
        text = (F.cross_entropy(logits, words, reduction="none") * weight).sum() / weight.sum()

        bins = wanted[is_number] - self._first_coordinate
        weight = torch.where(decides[is_number], _FIRST_NUMBER_WEIGHT, 1.0)
        numbers = self._head(hidden[is_number]).float().log_softmax(-1)[:, self._first_coordinate :]
        number = (soft_bins.divergence(numbers, bins) * weight).sum() / weight.sum().clamp(min=1)

        with torch.no_grad():
            right = (logits.argmax(1) == words)[decides_word].float().mean()
            off = (numbers.argmax(1) - bins).abs().float().mean()
        return text + number, {"text": text, "number": number, "right": right, "off": off}

    def _vision_parts(self, vision: Tensor, cells: CellTargets) -> dict[str, Tensor]:
        heads = self._heads
        shown = cells.kind != BACKGROUND
        keypoints = heads.keypoints(vision).float().unflatten(-1, (-1, 3))
        present = F.binary_cross_entropy_with_logits(keypoints[..., 0], cells.has_keypoint)
        offset = F.smooth_l1_loss(
            keypoints[..., 1:], cells.keypoint_offset, beta=0.1, reduction="none"
        )
        offset = (offset.sum(-1) * cells.has_keypoint).sum() / (cells.has_keypoint.sum() + 1)
        corners = heads.corners(vision[shown]).float()
        center = heads.center(vision).float()
        expected_center = cells.center.expand_as(center)
        return {
            "v_kind": _kind_loss(heads.kind(vision), cells.kind),
            "v_box": 5 * F.smooth_l1_loss(corners, cells.corners[shown], beta=0.05),
            "v_kp": 4 * present + offset,
            "v_pos": 4 * F.smooth_l1_loss(center, expected_center, beta=0.02),
        }

    def _text_parts(
        self, middle: Tensor, batch: Batch, soft_bins: SoftBins
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Readings inside the text part, of (pictures, cells + 1, width) hidden states."""
        heads, cells = self._heads, batch.cells
        image, after_image = heads.norm(middle).split([middle.shape[1] - 1, 1], dim=1)
        shown = cells.kind != BACKGROUND

        # Corners and labels are spoken in the model's own token embeddings.
        coordinates = self._head.weight[self._first_coordinate :]
        corner = heads.text_corners(image[shown]).unflatten(-1, (4, -1)) @ coordinates.T
        corner_loss = soft_bins.divergence(
            corner.float().log_softmax(-1).flatten(0, 1), cells.corner_bins[shown].flatten()
        ).mean()
        names = self._head.weight[self._label_tokens]
        label_logits = (heads.text_labels(image) @ names.T).float() + heads.text_label_bias.float()
        applies = self._labels_of_kind[cells.kind]
        label_loss = F.binary_cross_entropy_with_logits(label_logits, applies, reduction="none")
        label_loss = (label_loss * torch.where(applies > 0, 3.0, 1.0)).sum(-1).mean()
        row_logits, column_logits = heads.text_grid(after_image[:, 0]).float().chunk(2, dim=-1)
        rows, columns = (torch.full((len(image),), side) for side in batch.grid)
        grid_loss = F.cross_entropy(row_logits, rows) + F.cross_entropy(column_logits, columns)
        kind_loss = _kind_loss(heads.text_kind(image), cells.kind)

        total = 0.5 * kind_loss + 0.5 * 4 * corner_loss + 0.7 * label_loss + 0.3 * grid_loss
        return total, {
            "t_kind": kind_loss,
            "t_box": corner_loss,
            "t_label": label_loss,
            "t_grid": grid_loss,
        }


def _answers(hidden: Tensor, prompts: Prompts) -> tuple[Tensor, Tensor, Tensor]:
    """The hidden states (m, width) that predict answer tokens, the tokens, and which decide."""
    learned = prompts.answer[:, 1:]
    wanted, decides = prompts.tokens[:, 1:][learned], prompts.decision[:, 1:][learned]
    return hidden[:, :-1][learned], wanted, decides


def _kind_loss(logits: Tensor, kind: Tensor) -> Tensor:
    weight = torch.where(kind == BACKGROUND, _BACKGROUND_WEIGHT, 1.0)
    loss = F.cross_entropy(logits.float().flatten(0, 1), kind.flatten(), reduction="none")
    return (loss * weight.flatten()).mean()
