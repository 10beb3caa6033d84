"""The vectors of a tokenizer's codes, as the file that training starts its embeddings from."""


def is_of(tokenizer: str, tokenizer_id: str) -> bool:
    """Whether the tokenizer at this path ("" is the carried one) is the one of this identity.

    Raises ConfigError where there is none.
    """
    from tokenize_offline import checkpoint

    return checkpoint.identity(tokenizer) == tokenizer_id


def write_codebook(path: str, tokenizer: str) -> None:
    """Write the codebook of a tokenizer ("" is the carried one) to a folder's or a bucket's path.

    A code is what both branches are told: its two halves, each of unit length (paper, 2.2).
    """
    import torch
    from torch.nn import functional

    from tokenize_offline import checkpoint
    from trainer import codebook

    quantizer = checkpoint.load(tokenizer).quantizer
    halves = (quantizer.semantic, quantizer.pixel)
    units = torch.cat([functional.normalize(half, dim=1) for half in halves], dim=1)
    codebook.write(path, units, checkpoint.identity(tokenizer))
