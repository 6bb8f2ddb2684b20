"""A tiny CLIP as the hub has it: both towers with random weights, a real tokenizer file, its input."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

START, END = "<|startoftext|>", "<|endoftext|>"
SIDE, WIDTH, LONGEST = 32, 24, 16
WORDS = ("a", "photo", "of", "the", "flat", "rows", "columns", "close", "-", "up", ".", "bad", "small", "large", "itap")
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


def tokenizer() -> Any:
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    words = {word: number for number, word in enumerate(("[UNK]", *WORDS, START, END))}
    made = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    made.normalizer = normalizers.Lowercase()
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.add_special_tokens([START, END])
    made.post_processor = processors.TemplateProcessing(
        single=f"{START} $A {END}", special_tokens=[(START, words[START]), (END, words[END])]
    )
    return made


def made_clip(folder: Path, *, seed: int = 0, old_end: bool = False) -> Any:
    """Writes the directory; returns transformers' own model. ``old_end``: as OpenAI's configurations have it."""
    from transformers import CLIPConfig, CLIPModel

    folder.mkdir(parents=True, exist_ok=True)
    words = tokenizer()
    end = words.token_to_id(END)
    shared = {"hidden_size": WIDTH, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    text = {"vocab_size": end + 1, "max_position_embeddings": LONGEST, "eos_token_id": 2 if old_end else end}
    special = {"bos_token_id": words.token_to_id(START), "pad_token_id": end}
    config = CLIPConfig(
        text_config={**shared, **text, **special},
        vision_config={**shared, "image_size": SIDE, "patch_size": 8},
        projection_dim=16,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = CLIPModel(config)
        for parameter in model.parameters():  # far from the small numbers of an initialisation, which answer alike
            parameter.data += 0.05 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    words.save(str(folder / "tokenizer.json"))
    fields = {"image_mean": list(MEAN), "image_std": list(STD), "size": {"shortest_edge": SIDE}}
    (folder / "preprocessor_config.json").write_text(json.dumps(fields))
    return CLIPModel.from_pretrained(folder).eval()
