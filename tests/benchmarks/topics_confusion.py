"""Topics of real photographs against what a person sees in them: a confusion table.

    python tests/benchmarks/topics_confusion.py FOLDER [MODEL PRETRAINED [FLOOR]]

FOLDER holds the photographs that tests/operators/photograph_topics.json names, one topic each.
Without a model the carried classifier is judged; MODEL and PRETRAINED name one of open_clip's.
"""

import json
import sys
from collections import Counter
from pathlib import Path

import pyarrow as pa

from infra.pixels import decode, to_struct
from infra.schema import ERROR_TYPE
from operators.topics import Topics

LABELS = Path(__file__).parents[1] / "operators/photograph_topics.json"


def found_topics(operator: Topics, files: list[Path]) -> list[str]:
    """The topic of each picture."""
    pictures = [decode(path.read_bytes(), 512).rgb for path in files]
    batch = pa.table({"image": to_struct(pictures), "error": pa.nulls(len(files), ERROR_TYPE)})
    if operator.tower is not None:
        batch = operator.tower(batch)
    topics: list[str] = operator(batch)["topic"].to_pylist()
    return topics


def confusion(labels: dict[str, list[str]], found: dict[str, str]) -> str:
    """A Markdown table: a row per true topic, a column per topic found."""
    topics = list(labels)
    lines = [f"| true \\ found | {' | '.join(topics)} | right |", "|---" * (len(topics) + 2) + "|"]
    for topic, names in labels.items():
        counts = Counter(found[name] for name in names)
        cells = [str(counts[other] or "") for other in topics]
        lines.append(f"| {topic} | {' | '.join(cells)} | {counts[topic]}/{len(names)} |")
    return "\n".join(lines)


def main(folder: str, model: str = "", pretrained: str = "", floor: str = "") -> None:
    labels: dict[str, list[str]] = json.loads(LABELS.read_text(encoding="utf-8"))
    files = {path.stem: path for path in Path(folder).iterdir()}
    true = {name: topic for topic, names in labels.items() for name in names}
    operator = Topics(
        backend="open_clip" if model else "conse",
        model=model,
        pretrained=pretrained,
        floor=float(floor) if floor else None,
    )
    topics = found_topics(operator, [files[name] for name in true])
    found = dict(zip(true, topics, strict=True))
    print(confusion(labels, found))
    right = sum(found[name] == topic for name, topic in true.items())
    print(f"\n{right} of {len(true)} right ({right / len(true):.0%})")
    for name, topic in true.items():
        if found[name] != topic:
            print(f"  {name}: {topic}, taken for {found[name]}")


if __name__ == "__main__":
    main(*sys.argv[1:5])
