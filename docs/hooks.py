"""What MkDocs calls while it builds the site (``hooks`` in mkdocs.yml)."""

import re
from typing import Any

_ROLE = re.compile(r":(?:class|func|meth|mod):(?=<code>)")


def on_page_content(html: str, **_: Any) -> str:
    """Take the reStructuredText roles of docstrings out of a page; what they point at stays, as code."""
    return _ROLE.sub("", html)
