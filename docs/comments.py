"""A griffe extension: the comment behind a field is its documentation.

Containers are NamedTuples whose fields say shape and unit in a trailing comment, and module
constants may have one too; without this they would appear in the API pages without a word.
"""

from __future__ import annotations

import io
import tokenize
from typing import Any

import griffe


class TrailingComments(griffe.Extension):
    """Give attributes without docstring the comment at the end of their line."""

    def on_attribute(self, *, attr: griffe.Attribute, **kwargs: Any) -> None:
        """Read the comment from the source, which griffe has loaded already."""
        if attr.docstring is None and attr.lineno is not None:
            text = comment_of("\n".join(attr.lines))
            if text:
                attr.docstring = griffe.Docstring(text, lineno=attr.lineno, parent=attr)


def comment_of(source: str) -> str:
    """Return the text of the last comment in a piece of source, as a sentence.

    Example:
        >>> comment_of("rwp: float  # residual, 0 is perfect")
        'Residual, 0 is perfect.'
    """
    tokens = tokenize.generate_tokens(io.StringIO(source + "\n").readline)
    comments = [t.string.lstrip("# ") for t in tokens if t.type == tokenize.COMMENT]
    text = comments[-1].strip() if comments else ""
    if not text or text.startswith("noqa"):
        return ""
    sentence = text[0].upper() + text[1:]
    return sentence if sentence.endswith((".", ")")) else sentence + "."
