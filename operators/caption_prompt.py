"""The text that a caption endpoint is asked with: a recipe's own, or a file of ``prompts/``."""

import re
from pathlib import Path

from infra.config import ConfigError

PROMPTS = Path(__file__).parent / "prompts"


def read_prompt(prompt: str) -> str:
    """``prompt`` itself, or the contents of the ``.txt`` file that it names.

    The name is a path, or that of one of ours. Raises ConfigError for a missing file, an empty text
    or a variable other than ``{caption}``.
    """
    if prompt.endswith(".txt") and "\n" not in prompt:
        path = next((p for p in (Path(prompt), PROMPTS / prompt) if p.is_file()), None)
        if path is None:
            ours = ", ".join(sorted(p.name for p in PROMPTS.glob("*.txt")))
            raise ConfigError(f"caption: prompt file {prompt} does not exist; ours are {ours}")
        prompt = path.read_text(encoding="utf-8")
    prompt = prompt.strip()
    if not prompt:
        raise ConfigError("caption: the prompt is empty: give a text or the name of a .txt file")
    unknown = sorted(set(re.findall(r"\{(\w+)\}", prompt)) - {"caption"})
    if unknown:
        raise ConfigError(
            f"caption: the prompt holds {{{unknown[0]}}}: the only variable is {{caption}}"
        )
    return prompt
