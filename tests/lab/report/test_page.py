"""The page stands alone, tells nothing of the machine's folders, and escapes what it is given."""

import json
import re
from html.parser import HTMLParser

import pytest

from natgrad.lab.report import write_report
from natgrad.lab.report.beside import beside
from natgrad.lab.report.page import facts, linked, page
from natgrad.lab.report.read import read_results
from natgrad.lab.report.summary import summary_of

from .conftest import learning, write_comparison, write_manifest, write_run

VOID = {"meta", "link", "br", "img", "hr", "input", "path", "use", "rect"}


class Outline(HTMLParser):
    """Checks that tags nest, and collects ids and references."""

    def __init__(self):
        super().__init__()
        self.open, self.ids, self.references, self.external = [], [], [], []

    def handle_starttag(self, tag, attrs):
        self.handle_startendtag(tag, attrs)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        for key, value in attrs:
            self.ids += [value] if key == "id" else []
            self.references += re.findall(r"url\(#([^)]+)\)", value or "")
            if key in ("href", "src", "xlink:href") and value.startswith("#"):
                self.references.append(value[1:])
            elif key in ("href", "src", "xlink:href"):
                self.external.append((tag, value))

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag


@pytest.fixture(scope="module")
def html(tmp_path_factory):
    folder = write_comparison(tmp_path_factory.mktemp("page") / "results")
    return write_report(folder).read_text(encoding="utf-8")


def page_of(folder):
    results = read_results(folder)
    summary = summary_of(results)
    return page(results, summary, beside(results, summary), folder)


def outline(html):
    parser = Outline()
    parser.feed(html)
    parser.close()
    assert parser.open == []
    return parser


def test_needs_nothing_beside_it(html):
    parsed = outline(html)
    assert "<script" not in html
    assert "@import" not in html
    assert {tag for tag, _ in parsed.external} == {"a"}
    outside = re.sub(r'<a href="[^"]*">[^<]*</a>', "", html)
    assert not re.search(r"https?://", outside)


def test_ids_are_unique_and_references_meet_them(html):
    parsed = outline(html)
    assert len(parsed.ids) == len(set(parsed.ids))
    assert set(parsed.references) <= set(parsed.ids)
    assert parsed.references


def test_names_no_local_path_nor_host(html, tmp_path_factory):
    for private in (
        "/home/",
        "/tmp/",
        "/root/",
        "secret-host",
        str(tmp_path_factory.getbasetemp()),
    ):
        assert private not in html
    assert "--data …/data" in html


def test_says_what_was_done(html):
    for text in (
        "KFAC reached SGD&#39;s final validation loss",
        "natgrad compare mnist-mlp",
        "0123abc with uncommitted changes",
        "lr 0.1 is the upper end of the grid",
        "50000",
        "97.62",
        "Muon: of 3 runs 1 diverged.",
        "training steps and what the optimizer prepares",
    ):
        assert text in html
    assert html.count('aria-label="chosen"') == 4
    assert html.count('role="img" aria-label="Training loss against') == 2
    assert html.count('role="img" aria-label="Test loss against') == 2


def test_escapes_names(tmp_path):
    evil = "<script>alert(1)</script>"
    write_manifest(
        tmp_path,
        optimizers=["<b>x"],
        seeds=[0],
        recipe={"name": evil, "title": evil, "source": f"https://example.org/{evil}"},
        metric={"name": "<i>$acc$", "unit": "$"},
        command=evil,
        status="interrupted",
    )
    write_run(tmp_path / "runs" / "<b>x" / "seed0", learning(0, 1.0, 1.0))
    html = page_of(tmp_path)
    assert "<script" not in html
    assert "<b>x" not in html
    assert "<i>" not in html
    assert "was interrupted" in html
    outline(html)


def test_a_bare_manifest_makes_a_page(tmp_path):
    (tmp_path / "manifest.json").write_text('{"schema": 1}')
    write_run(tmp_path / "runs" / "kfac" / "seed0", learning(0, 1.0, 1.0)[:1], "running")
    html = page_of(tmp_path)
    assert "No run has finished yet." in html
    outline(html)


def test_links():
    text = linked("see https://example.org/a?b=1. and arXiv:1503.05671, <b>")
    assert text == (
        'see <a href="https://example.org/a?b=1">https://example.org/a?b=1</a>. and '
        '<a href="https://arxiv.org/abs/1503.05671">arXiv:1503.05671</a>, &lt;b&gt;'
    )


def test_device_and_the_share_of_fetching_stand_among_the_facts(folder):
    path = folder({"compute": {"device": "cpu", "precision": "bf16"}}, sgd=[[2, 1], [2, 1]])
    for seed, (fetched, seconds) in enumerate(((0.01, 2.0), (0.03, 2.0))):
        status = {"status": "finished", "fetch_seconds": fetched, "seconds": seconds}
        (path / "runs" / "sgd" / f"seed{seed}" / "run.json").write_text(json.dumps(status))
    found = dict(facts(read_results(path)))
    assert found["Device"] == "cpu, bf16 by autocast"
    assert found["Fetching batches"] == "1.5 % of the time of training steps at most"


def test_folders_from_before_say_nothing_of_fetching(folder):
    found = dict(facts(read_results(folder(sgd=[[2, 1]]))))
    assert "Fetching batches" not in found
    assert "Device" not in found
