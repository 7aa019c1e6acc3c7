"""GroupViT trained on captions and drawn nouns, and used to segment."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from training.data import Batch, as_images
from training.encoder import EncoderLike
from training.groups import normalised
from training.groupvit import GroupViT, GroupViTConfig, group_masks
from training.groupvit_inference import group_logits, pixel_logits
from training.gumbel import sample_keys
from training.losses import caption_contrast, multi_label_contrast
from training.step import Features


class GroupViTObjective:
    """Image–caption InfoNCE plus the multi-label contrast with prompts made of the drawn nouns."""

    def __init__(
        self, config: GroupViTConfig, encoder: EncoderLike, names: Sequence[str], prompt: str, seed: int
    ) -> None:
        self.model = GroupViT(config).to(encoder.device)
        self.encoder = encoder
        self.seed = seed
        self.context = config.context_length
        self.prompts_CT = self._tokens([prompt.replace("{}", name) for name in names])

    def _tokens(self, texts: list[str]) -> Tensor:
        return self.encoder.tokenizer(texts, context_length=self.context).to(self.encoder.device)

    @property
    def towers(self) -> dict[str, nn.Module]:
        """What `encode` runs."""
        return {"image": self.model.image, "text": self.model.text}

    def encode(self, batch: Batch) -> Features:
        """What the towers say of images, captions and drawn nouns, before the projectors.

        The projectors normalise over the batch, so they belong to the contrast. Every noun is encoded once.
        """
        drawn_NM = torch.from_numpy(batch.drawn_NM).to(self.encoder.device)
        concept_U = torch.unique(drawn_NM.clamp_min(0))
        texts_TL = torch.cat([self._tokens(batch.captions), self.prompts_CT[concept_U]])
        longest = int(texts_TL.argmax(dim=1).max()) + 1  # what follows the last end of text is padding
        keys_N2 = sample_keys(batch.sample_ids, seed=self.seed, epoch=batch.epoch).to(self.encoder.device)
        image_NCHW = normalised(as_images(batch.pixels_NHWC, self.encoder.device), self.encoder)
        tokens_NGW, _ = self.model.image(image_NCHW, keys_N2)
        text_TW = self.model.text(texts_TL[:, :longest])
        count = len(batch.captions)
        return {
            "image_NW": tokens_NGW.mean(dim=1),
            "caption_NW": text_TW[:count],
            "concept_UW": text_TW[count:],
            "concept_U": concept_U,
            "drawn_NM": drawn_NM,
        }

    def contrast(self, features: Features) -> Tensor:
        """The loss of all samples, in nats. A noun of several pieces counts once, as in one."""
        concept_U, row_U = _first_rows(features["concept_U"])
        texts_TW = torch.cat([features["caption_NW"], features["concept_UW"][row_U]])
        image_ND = functional.normalize(self.model.image_projector(features["image_NW"]), dim=-1)
        text_TD = functional.normalize(self.model.text_projector(texts_TW), dim=-1)
        caption_ND, concept_UD = text_TD[: len(image_ND)], text_TD[len(image_ND) :]
        drawn_NM, scale = features["drawn_NM"], self.model.scale()
        nouns_NMD = concept_UD[torch.searchsorted(concept_U, drawn_NM.clamp_min(0))]
        captions = caption_contrast(image_ND, caption_ND, scale)
        return captions + multi_label_contrast(image_ND, nouns_NMD, drawn_NM >= 0, scale)


def _first_rows(concept_R: Tensor) -> tuple[Tensor, Tensor]:
    """The different concepts of some rows, ascending, and for each the first row that has it."""
    concept_U, place_R = torch.unique(concept_R, return_inverse=True)
    rows_R = torch.arange(len(concept_R), device=concept_R.device)
    first_U = torch.full_like(concept_U, len(concept_R)).scatter_reduce(0, place_R, rows_R, "amin")
    return concept_U, first_U


class GroupViTSegmenter:
    """Scores windows with a trained GroupViT, as in the original evaluation."""

    def __init__(
        self,
        model: nn.Module,
        encoder: EncoderLike,
        prompts: Sequence[Sequence[str]],
        background: float | None,
        top_k: int = 5,
    ) -> None:
        assert isinstance(model, GroupViT)
        self.model, self.encoder = model.eval(), encoder
        self.background, self.top_k = background, top_k
        self.text_CD = torch.stack([self._class_vector(texts) for texts in prompts])

    @torch.inference_mode()
    def _class_vector(self, texts: Sequence[str]) -> Tensor:
        tokens = self.encoder.tokenizer(list(texts), context_length=self.model.config.context_length)
        vectors_PD = self.model.encode_text(tokens.to(self.encoder.device))
        return functional.normalize(vectors_PD, dim=-1).mean(0)

    def __call__(self, window_NCHW: Tensor, _: Tensor) -> Tensor:
        """Class scores [N, C, H, W] (background first where there is one) of windows in [0, 1]."""
        grouped = self.model.encode_image(normalised(_whole_patches(window_NCHW, self.model), self.encoder))
        masks_NGHW = group_masks(grouped.assignments, *window_NCHW.shape[2:])
        scores = [
            pixel_logits(
                group_logits(groups_GD, pooled_D, self.text_CD, self.model.scale(), self.top_k),
                masks_GHW,
                self.background,
            )
            for groups_GD, pooled_D, masks_GHW in zip(
                grouped.groups_NGD, grouped.pooled_ND, masks_NGHW, strict=True
            )
        ]
        return torch.stack(scores)


def _whole_patches(image_NCHW: Tensor, model: GroupViT) -> Tensor:
    """Stretches an image to whole patches (a window smaller than the protocol's may not have them)."""
    patch = model.config.patch_size
    height, width = (max(patch, round(side / patch) * patch) for side in image_NCHW.shape[2:])
    if (height, width) == tuple(image_NCHW.shape[2:]):
        return image_NCHW
    return functional.interpolate(image_NCHW, (height, width), mode="bilinear", align_corners=False)


def load_groupvit(config: GroupViTConfig, tensors: dict[str, Tensor]) -> GroupViT:
    """A GroupViT with trained weights."""
    model = GroupViT(config)
    model.load_state_dict(tensors)
    return model.eval()
