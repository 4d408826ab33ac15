"""Write docs/reference/methods: a page for each attribution method, from the registry.

    python -m benchmarks.docs_pages.methods

What a score is, its equation, cost, removals, paper and failure cases stand in the registry
(`attribution/registry.py`); the text and the meaning of options in the method's docstring. A test
holds the pages in step.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from pathlib import Path

from llm_influence.attribution.methods import METHODS
from llm_influence.attribution.registry import Method

FOLDER = Path("docs/reference/methods")
UNITS = {
    "target": "the target's own units (log-odds)",
    "share": "shares: where the weight lies, without a sign",
}
MADE = (
    "<!-- written by benchmarks/docs_pages/methods.py: change the method's registration instead -->"
)
SECTION = re.compile(r"^(Args|Returns|Raises|Yields):$")
OPTION = re.compile(r"^    (\w+)(?: \(.*?\))?: (.*)$")
ARXIV = re.compile(r"arXiv:(\d{4}\.\d{4,5})")
DOI = re.compile(r"doi:(10\.\S+?)(?=[;,)]|\s|$)")


def pages() -> dict[str, str]:
    """Every page by file name, the index included."""
    made = {f"{spec.name}.md": page(spec) for spec in METHODS.values()}
    return {"index.md": index(), **made}


def index() -> str:
    """The table of all methods."""
    rows = [
        f"| [`{spec.name}`]({spec.name}.md) | {spec.family} | {_cell(spec.estimates)} "
        f"| {spec.units} | {', '.join(spec.removals) or 'none'} | {_cell(spec.cost)} |"
        for spec in METHODS.values()
    ]
    head = [
        "| method | family | a score is | units | removal | cost |",
        "|---|---|---|---|---|---|",
    ]
    about = (
        "f is the target, E the events of a history, S a set of them. `llm-influence methods` "
        "prints the same on the command line; [Influence](../../concepts/influence.md) explains "
        "targets, removals and the quality card."
    )
    return "\n".join([MADE, "# Methods", "", about, "", *head, *rows]) + "\n"


def page(spec: type[Method]) -> str:
    """The page of one method."""
    return "\n".join([MADE, *_page(spec)]).rstrip() + "\n"


def _page(spec: type[Method]) -> Iterator[str]:
    text, meanings = read_docstring(inspect.getdoc(spec) or "")
    yield from (f"# `{spec.name}`", "", f"A score is {spec.estimates}.", "")
    yield from ("```", spec.equation, "```", "", text, "")
    yield from ("| | |", "|---|---|")
    yield f"| family | {spec.family} |"
    yield f"| units | {UNITS[spec.units]} |"
    yield f"| cost | {_cell(spec.cost)} |"
    yield f"| removal | {_removals(spec)} |"
    yield f"| players | {', '.join(f'`{players}`' for players in spec.players)} |"
    yield f"| paper | {_linked(spec.paper) or 'none'} |"
    yield ""
    if spec.defaults():
        yield from ("## Options", "", "| option | default | meaning |", "|---|---|---|")
        for name, default in spec.defaults().items():
            yield f"| `{name}` | `{default!r}` | {_cell(meanings.get(name, ''))} |"
        yield ""
    yield from ("## When not to trust it", "", f"{spec.caution}{_refused(spec)}", "")
    call = f'Explainer(model, method="{spec.name}").explain(history)'
    yield from ("```python", call, "```")


def read_docstring(text: str) -> tuple[str, dict[str, str]]:
    """A Google docstring's text before its sections, and the meaning of each argument."""
    parts: dict[str, list[str]] = {"": []}
    section = ""
    for line in text.splitlines():
        found = SECTION.match(line)
        section = found[1] if found else section
        if not found:
            parts.setdefault(section, []).append(line)
    meanings: dict[str, str] = {}
    name = ""
    for line in parts.get("Args", []):
        if found := OPTION.match(line):
            name, meanings[found[1]] = found[1], found[2]
        elif name and line.strip():
            meanings[name] += f" {line.strip()}"
    return "\n".join(parts[""]).strip().replace("``", "`"), meanings


def _removals(spec: type[Method]) -> str:
    if not spec.removals:
        return "none: it removes nothing"
    return ", ".join(f"`{removal}`" for removal in spec.removals) + "; the first by default"


def _refused(spec: type[Method]) -> str:
    """A sentence on the backbones that it does not serve."""
    if spec.to_zero is None:
        return ""
    how = ", ".join(f"`{name}={value!r}`" for name, value in spec.to_zero.items())
    refused = " Backbones that normalise their input vectors first (ModernBERT) are refused"
    return f"{refused} with {how}." if how else f"{refused}."


def _linked(paper: str) -> str:
    paper = ARXIV.sub(r"[arXiv:\1](https://arxiv.org/abs/\1)", paper)
    return _cell(DOI.sub(r"[doi:\1](https://doi.org/\1)", paper))


def _cell(text: str) -> str:
    """Text that may stand in a cell of a table."""
    return text.replace("``", "`").replace("|", r"\|")


def main(folder: Path = FOLDER) -> None:
    """Write all pages; remove those of methods that are gone."""
    made = pages()
    folder.mkdir(parents=True, exist_ok=True)
    for old in set(folder.glob("*.md")) - {folder / name for name in made}:
        old.unlink()
    for name, text in made.items():
        (folder / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
