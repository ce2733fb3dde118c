"""``python -m docs.build_site --out FOLDER``: the documentation as a website, from the pages in ``docs``, the code and the tables of results.

The pages are assembled in ``build/pages``: those of ``docs``, the results with their tables, the reference, and the README files outside ``docs``
that a page links to. MkDocs then builds strictly: a broken link ends it. Nothing is fetched, here or by a browser that reads the result.
"""

import argparse
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.accuracy.render import rendered
from benchmarks.accuracy.tables import RESULTS
from docs import reference
from snl_runtime.cli.command import EXIT_OK, CommandParser, run_command
from snl_runtime.errors import BackendUnavailableError, DataError

PROGRAM = "docs.build_site"
ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PAGES = ROOT / "build" / "pages"
_LINK = re.compile(r"\[([^\]\n]*)\]\((?!https?://|#|mailto:)([^)#\s]+)(#[^)\s]*)?\)")
_COPIED = ("*.md", "*.png", "*.svg", "*.css")
_LOADED = re.compile(r"""<(?:script|img|iframe|source)\b[^>]*\bsrc=["']?(?:https?:)?//|<link\b[^>]*\bhref=["']?(?:https?:)?//""")
"""Tags that make a browser fetch something from elsewhere; links that a reader follows are none."""
_LOADED_BY_CSS = re.compile(r"""(?:url\(|@import\s+)["']?(?:https?:)?//""")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    parser = CommandParser(PROGRAM, "Build the documentation site.", example="\npython -m docs.build_site --out build/site\n")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "site", metavar="DIR", help="folder of the site (default: build/site)")
    options = parser.parse_args(argv)
    return run_command(lambda: _run(options), program=PROGRAM, prints_results=False)


def assemble(target: Path) -> None:
    """Write every page of the site, as Markdown, into a new folder."""
    shutil.rmtree(target, ignore_errors=True)
    for pattern in _COPIED:
        for source in DOCS.rglob(pattern):
            _copy(source, target / source.relative_to(DOCS))
    for folder, texts in (("results", rendered(DOCS / "results", RESULTS)), ("reference", reference.pages())):
        (target / folder).mkdir(exist_ok=True)
        for name, text in texts.items():
            (target / folder / name).write_text(text, encoding="utf-8")
    pages = [(page, DOCS / page.relative_to(target)) for page in sorted(target.rglob("*.md"))]
    while pages:
        page, source = pages.pop()
        text, linked = _with_links_inside(page.read_text(encoding="utf-8"), page, source, target)
        page.write_text(text, encoding="utf-8")
        for original in linked:
            copied = target / _place_of(original)
            if not copied.exists():
                _copy(original, copied)
                pages.append((copied, original))


def loaded_from_elsewhere(site: Path) -> Iterator[str]:
    """Yield what a browser would fetch from another address, as ``file: tag``."""
    for pattern, loaded in (("*.html", _LOADED), ("*.css", _LOADED_BY_CSS)):
        for path in sorted(site.rglob(pattern)):
            for found in loaded.finditer(path.read_text(encoding="utf-8")):
                yield f"{path.relative_to(site)}: {found[0]}"


def _run(options: argparse.Namespace) -> int:
    if importlib.util.find_spec("mkdocs") is None:
        raise BackendUnavailableError("the site needs the package mkdocs-material: pip install 'snl-edge[docs]'")
    assemble(PAGES)
    # No --quiet: MkDocs counts for --strict only those warnings that it prints.
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--clean", "--site-dir", str(options.out.resolve())]
    status = subprocess.run(command, cwd=ROOT, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"}, check=False).returncode
    if status != 0:
        raise DataError(f"MkDocs ended with exit status {status}; correct what it names above in docs/ or mkdocs.yml")
    fetched = list(loaded_from_elsewhere(options.out))
    if fetched:
        raise DataError(
            f"the site must load nothing from elsewhere, but has {len(fetched)} such tags, the first in {fetched[0]}; bundle the file instead"
        )
    return EXIT_OK


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)


def _with_links_inside(text: str, page: Path, source: Path, target: Path) -> tuple[str, list[Path]]:
    """Return a page whose links stay in the site, and the pages outside ``docs`` that it links to; a link to a file of code becomes its path."""
    linked: list[Path] = []

    def moved(found: re.Match[str]) -> str:
        original = (source.parent / found[2]).resolve()
        if (DOCS in original.parents and DOCS in source.parents) or not original.exists():
            return found[0]
        if original.suffix != ".md":
            return f"{found[1]} (`{original.relative_to(ROOT)}`)" if f"`{original.name}`" not in found[1] else f"`{original.relative_to(ROOT)}`"
        linked.extend([] if DOCS in original.parents else [original])
        return f"[{found[1]}]({os.path.relpath(target / _place_of(original), page.parent)}{found[3] or ''})"

    return _LINK.sub(moved, text), linked


def _place_of(original: Path) -> Path:
    """Return where a Markdown file of the checkout lies in the site."""
    return original.relative_to(DOCS) if DOCS in original.parents else Path("checkout", original.relative_to(ROOT))


if __name__ == "__main__":
    sys.exit(main())
