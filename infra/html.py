"""The one writer of HTML pages: Jinja2 templates into single files that load nothing.

    check_page("workspace/report.html")  # before the work
    page = render(Path("pipelines/templates"), "report.html", title="photos", ...)
    write_page("workspace/report.html", page)

Data are not trusted: every value is escaped, with no way to opt out, the filter ``text`` bounds and
cleans what people wrote, and the page's policy (`POLICY`) lets nothing load and no script run, but
the one of ours that a page may have: the policy names it by its hash.
"""

import base64
import hashlib
import json
import os
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from infra.config import ConfigError
from infra.storage import Storage

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
"""Content-Security-Policy for the ``<meta>`` of every template: own styles and data URIs only."""

_JOINERS = "\u200c\u200d"  # parts of words and emoji, though not printable


def render(folder: Path, name: str, script: str | None = None, **values: Any) -> str:
    """The template ``name`` of ``folder`` as a page; a value that it misses is an error.

    Filters: ``text(limit)``, see `clean`; ``count``: 1,234,567; ``share``: 12.3%; ``json``, see
    `inert_json`. ``script`` is a file of ``folder``, for a template that says
    ``<script>{{ script }}</script>``.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(folder),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "text": clean,
        "count": "{:,}".format,
        "share": "{:.1%}".format,
        "json": inert_json,
    }
    policy = POLICY
    if script is not None:
        code = (folder / script).read_text(encoding="utf-8")
        digest = base64.b64encode(hashlib.sha256(code.encode()).digest()).decode("ascii")
        policy += f"; script-src 'sha256-{digest}'"
        values["script"] = Markup(code)
    return environment.get_template(name).render(policy=policy, **values)


def inert_json(value: Any) -> Markup:
    """JSON for ``<script type="application/json">``: ASCII, and no character that HTML knows.

    Whatever a string holds, ``</script>``, ``<!--`` or a line separator, ``JSON.parse`` gives it
    back. Raises ValueError for NaN and infinities, which JSON does not have.
    """
    text = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    for character in "<>&'":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)


def check_page(path: str) -> None:
    """Raises ConfigError, in one line, unless a file can be written there; writes nothing.

    For pages and pictures that end long work: told before it. An ``s3://`` URI passes.
    """
    if not path:
        raise ConfigError("the file to write has an empty name: name one")
    if "://" in path:
        return
    if os.path.isdir(path) or path.endswith(os.sep):
        raise ConfigError(f"`{path}` is a folder: name a file in it")
    folder = os.path.dirname(os.path.abspath(path))
    while not os.path.lexists(folder):  # what is missing is made with the page
        folder = os.path.dirname(folder)
    if not os.path.isdir(folder):
        raise ConfigError(f"`{path}` cannot be written: `{folder}` is no folder")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise ConfigError(f"`{path}` cannot be written: no permission to write into `{folder}`")


def write_page(path: str, page: str) -> str:
    """Write a page to a local path or an ``s3://`` URI, whole or not at all; returns the path."""
    folder, name = os.path.split(path)
    # Lone surrogates, as in names of files that are not UTF-8, have no encoding.
    Storage(folder or ".").write(name, page.encode("utf-8", "replace"))
    return path


def clean(value: object, limit: int = 200) -> str:
    """Any value as one line of at most ``limit`` characters that cannot disturb its surroundings.

    White space becomes single blanks; control characters, among them those that turn the writing
    direction, become U+FFFD.
    """
    text = str(value)
    words = " ".join(text[: 4 * limit].split())
    shown = "".join(c if c.isprintable() or c in _JOINERS else "\ufffd" for c in words)
    whole = len(shown) <= limit and len(text) <= 4 * limit
    return shown if whole else shown[: limit - 1].rstrip() + "…"


def jpeg_uri(data: bytes) -> str:
    """A JPEG file as a data URI, for an ``<img>`` that loads nothing."""
    return "data:image/jpeg;base64," + base64.b64encode(data).decode("ascii")
