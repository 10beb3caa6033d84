"""The alignment stage: only what the decoder did not have before learns.

Paper section 3.2.2, joint strategy: the connector and what the vocabulary was widened by, the rows
of ``<boi>``, ``<eoi>`` and the codes in the tables of inputs and outputs. With them the visual
embeddings and the embeddings of scale and number of scales, which are as new.
"""

from torch import Tensor

from trainer.model import Decoder


def train_new_parts(model: Decoder) -> None:
    """Freeze all that a language model brings along; call it before the optimiser is built."""
    tables = widened_tables(model)
    for name, parameter in model.named_parameters():
        new = name.startswith("vision.") or parameter is model.length_gain
        parameter.requires_grad_(new or any(parameter is table for table in tables))
    first_new = model.vocabulary.text_size

    def forget_text(gradient: Tensor) -> Tensor:
        gradient[:first_new] = 0
        return gradient

    for table in tables:
        table.register_hook(forget_text)  # type: ignore[no-untyped-call]


def widened_tables(model: Decoder) -> tuple[Tensor, Tensor]:
    """Tables with rows for text, then new ones. Weight decay would move the frozen rows, too."""
    return model.embed_tokens.weight, model.lm_head.weight
