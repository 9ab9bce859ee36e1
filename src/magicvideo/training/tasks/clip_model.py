"""Stage `clip`: CLIP's text and image encoders, and their tokenizer."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPTextModel,
    CLIPTokenizer,
    CLIPVisionModelWithProjection,
)

from magicvideo.atomic_io import atomic_file
from magicvideo.data.backgrounds import random_background
from magicvideo.data.captions import random_caption
from magicvideo.data.dataset import Batch, ClipDataset
from magicvideo.data.manifest import FrameSize
from magicvideo.errors import UserError
from magicvideo.models.conditioning import clip_pixels
from magicvideo.rng import StackedGenerator
from magicvideo.training.loader import BatchSource
from magicvideo.training.recipe import CLIPStageConfig

WORDS = "words.txt"


class CLIPTask:
    """Train CLIP's encoders with the contrastive loss between frames and captions.

    Source of the loss: Radford et al., 2103.00020, Figure 3.

    Args:
        tokenizer: The tokenizer.
        words: The words of the training captions, stored in the output.
        config: The stage's settings.
        batches: Single frames of the training split, with captions.
        vocabulary_size: Rows of the token embedding; by default the tokenizer's size.
    """

    def __init__(
        self,
        tokenizer: CLIPTokenizer,
        words: list[str],
        config: CLIPStageConfig,
        batches: BatchSource,
        vocabulary_size: int | None = None,
    ) -> None:
        self.tokenizer, self.words = tokenizer, words
        self.config, self.batches = config, batches
        special = (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id)
        rows = vocabulary_size or len(tokenizer)
        self.image_size = clip_image_size(batches.size)
        self.network = CLIPModel(build_clip_config(config, special, rows, self.image_size))

    def lr_scale(self, name: str) -> float:  # noqa: ARG002 - all parameters learn alike
        """Return the factor on the learning rate of a parameter."""
        return 1.0

    def losses(
        self,
        network: nn.Module,
        batch: Batch,
        generator: StackedGenerator,  # noqa: ARG002 - this stage generator nothing
    ) -> dict[str, Tensor]:
        """Return the contrastive loss and the top-1 accuracy of frames to captions."""
        device = next(network.parameters()).device
        tokens = self.tokenizer(
            batch.captions,
            padding="max_length",
            truncation=True,
            max_length=self.config.max_tokens,
            return_tensors="pt",
        )
        output = network(
            input_ids=tokens.input_ids.to(device),
            pixel_values=clip_pixels(batch.frames[:, 0].to(device), self.image_size),
        )
        logits = output.logits_per_image
        # row i is frame i, column j caption j: cross-entropy with the diagonal as target, in both
        # directions
        own = torch.arange(len(logits), device=device)
        loss = (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2
        return {"loss": loss, "found": (logits.argmax(dim=1) == own).float().mean()}

    def init_from(
        self, text_encoder: CLIPTextModel, image_encoder: CLIPVisionModelWithProjection
    ) -> None:
        """Load both encoders; the text projection, which models do not store, is random.

        Raises:
            UserError: If their sizes differ from the settings.
        """
        try:
            self.network.text_model.load_state_dict(text_encoder.state_dict())
            self.network.vision_model.load_state_dict(image_encoder.vision_model.state_dict())
            self.network.visual_projection.load_state_dict(
                image_encoder.visual_projection.state_dict()
            )
        except RuntimeError as error:
            reason = str(error).splitlines()[-1].strip()
            raise UserError(
                f"The initial encoders do not have the sizes of the recipe's clip: {reason}"
            ) from None

    def preview(self) -> Image.Image | None:
        """Return None: embeddings cannot be shown."""
        return None

    def save(self, folder: Path) -> None:
        """Write the components `text_encoder`, `image_encoder` and `tokenizer`, and the words.

        `words.txt` lists the words of the training captions, for hints about unseen ones.
        """
        text_encoder = CLIPTextModel(self.network.config.text_config)
        text_encoder.load_state_dict(self.network.text_model.state_dict())
        text_encoder.save_pretrained(folder / "text_encoder")
        image_encoder = CLIPVisionModelWithProjection(self.network.config.vision_config)
        weights = self.network.state_dict()
        image_encoder.load_state_dict({key: weights[key] for key in image_encoder.state_dict()})
        image_encoder.save_pretrained(folder / "image_encoder")
        self.tokenizer.save_pretrained(folder / "tokenizer")
        with atomic_file(folder / WORDS) as partial:
            partial.write_text("\n".join(self.words) + "\n", encoding="utf-8")


def build_clip_config(
    settings: CLIPStageConfig, marks: tuple[int, int, int], vocabulary_size: int, image_size: int
) -> CLIPConfig:
    """Return the configuration of both encoders.

    Args:
        settings: The stage's settings.
        marks: Ids of the start, end and padding tokens.
        vocabulary_size: Size of the tokenizer.
        image_size: Side of the image encoder's input in pixels.
    """
    shared = {
        "hidden_size": settings.width,
        "intermediate_size": 4 * settings.width,
        "projection_dim": settings.width,
        "num_attention_heads": settings.heads,
    }
    start, end, padding = marks
    return CLIPConfig(
        text_config={
            **shared,
            "bos_token_id": start,
            "eos_token_id": end,
            "pad_token_id": padding,
            "vocab_size": vocabulary_size,
            "num_hidden_layers": settings.text_layers,
            "max_position_embeddings": settings.max_tokens,
        },
        vision_config={
            **shared,
            "num_hidden_layers": settings.image_layers,
            "image_size": image_size,
            "patch_size": settings.patch_size,
        },
        projection_dim=settings.width,
    )


def clip_image_size(size: FrameSize) -> int:
    """Return the side of the square to which CLIP resizes frames: their shorter side."""
    return min(size)


_WORDINGS = 24
_START, _END = "<|startoftext|>", "<|endoftext|>"
_WORD_END = "</w>"


def iter_captions(dataset: ClipDataset, seed: int) -> Iterator[str]:
    """Yield several captions of every clip."""
    rng = np.random.default_rng(seed)
    for clip in dataset.clips:
        for _ in range(_WORDINGS):
            background = random_background(rng) if clip.channels == 4 else None
            yield random_caption(clip, background, rng)


def vocabulary(captions: list[str]) -> list[str]:
    """Return the sorted unique words of captions, in lower case."""
    return sorted({word for text in captions for word in re.findall(r"[^\W\d_]+", text.lower())})


def read_words(model: Path) -> set[str]:
    """Read the words that a model's text encoder was trained on; none if not stored."""
    file = model / WORDS
    return set(file.read_text(encoding="utf-8").split()) if file.is_file() else set()


def caption_words(dataset: ClipDataset) -> set[str]:
    """Return the words of the captions of all clips, in lower case."""
    texts = [text for clip in dataset.clips for text in (clip.text, *clip.alt_captions) if text]
    if any(clip.attributes for clip in dataset.clips):  # captions are generated from attributes
        texts += iter_captions(dataset, 0)
    return set(vocabulary(texts))


def train_tokenizer(captions: list[str], vocabulary_size: int, max_tokens: int) -> CLIPTokenizer:
    """Train byte-level BPE with CLIP's pre-tokenization and end-of-word suffix.

    The vocabulary includes all bytes, with and without suffix, so every text can be encoded.

    Args:
        captions: Training texts; without any, the vocabulary has only bytes.
        vocabulary_size: Number of tokens, at least 514.
        max_tokens: Maximal length of a prompt, including start and end tokens.
    """
    empty = CLIPTokenizer().backend_tokenizer
    learner = Tokenizer(models.BPE(end_of_word_suffix=_WORD_END))
    learner.normalizer, learner.pre_tokenizer = empty.normalizer, empty.pre_tokenizer
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary_size,
        initial_alphabet=alphabet,
        end_of_word_suffix=_WORD_END,
        show_progress=False,
    )
    learner.train_from_iterator(captions, trainer)
    learned = json.loads(learner.to_str())["model"]["merges"]
    tokens = [*alphabet, *(letter + _WORD_END for letter in alphabet)]
    merges = [tuple(pair) for pair in learned][: max(0, vocabulary_size - len(tokens) - 2)]
    tokens += ["".join(pair) for pair in merges]
    token_ids = {token: i for i, token in enumerate(dict.fromkeys([*tokens, _START, _END]))}
    return CLIPTokenizer(vocab=token_ids, merges=merges, model_max_length=max_tokens)
