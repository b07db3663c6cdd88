"""The page on top of several experiments, as HTML and as Markdown."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from natgrad.lab.report.beside import as_table, notes
from natgrad.lab.report.page import environment
from natgrad.lab.report.published import paper_sections, publish_single
from natgrad.lab.report.read import Results
from natgrad.lab.report.single import draw_paper
from natgrad.lab.report.sizes import profile_changes
from natgrad.lab.report.studies import markdown
from natgrad.lab.report.suite import WrittenSuite, write
from natgrad.lab.report.text import markdown_table, without_paths


def suite_page(written: WrittenSuite) -> str:
    """Return the page on top as HTML; the variants' pages lie beside it in their folders."""
    headings, blocks = as_table(written.rows)
    return (
        environment()
        .get_template("suite.html.j2")
        .render(
            suite=written.manifest["suite"],
            status=written.manifest.get("status"),
            command=without_paths(str(written.manifest.get("command") or "")),
            variants=_variants(written),
            table=written.table,
            headings=headings,
            paper=blocks,
            rules=notes(written.rows),
        )
    )


def publish_suite(folder: Path, out: Path) -> Path:
    """Write `README.md` on top and a page for every variant in a folder of its name."""
    written = write(folder)
    for name in written.variants:
        publish_single(folder / name, out / name)
    draw_paper(written.rows, [each.results for each in written.variants.values()], out)
    suite = written.manifest["suite"]
    sections = [
        f"# {suite['name']}: {suite['title']}",
        f"    {without_paths(str(written.manifest.get('command') or ''))}",
        markdown_table(
            ("variant", "what", "data", "profile"),
            [(f"[{v['name']}]({v['name']}/README.md)", v["title"], v["data"], v["profile"])
             for v in _variants(written)],
        ),
        *([markdown(written.table)] if written.table.rows else []),
        *paper_sections(written.rows, str(suite["source"])),
    ]  # fmt: skip
    path = out / "README.md"
    path.write_text("\n\n".join(sections) + "\n", encoding="utf-8")
    return path


def _variants(written: WrittenSuite) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    first: dict[str, str] = {}  # variant that has a profile, in words
    for name, each in written.variants.items():
        profile = _profile(each.results)
        known = first.setdefault(profile, name)
        rows.append(
            {
                "name": name,
                "title": each.summary.title,
                "data": str(each.results.part("data").get("name")),
                "profile": profile if known == name else f"as {known}",
            }
        )
    return rows


def _profile(results: Results) -> str:
    found = (str(results.part("profile").get("name") or ""), profile_changes(results))
    return ": ".join(filter(None, found))
