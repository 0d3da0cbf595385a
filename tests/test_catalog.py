"""A row of the catalog is a promise: test, page, reproduction and a result of this code."""

import json
import re
from importlib import import_module
from pathlib import Path

import pytest

from spanwise import catalog

ROOT = Path(__file__).parents[1]
each_method = pytest.mark.parametrize("card", catalog.METHODS, ids=lambda card: card.slug)


def test_slugs_are_unique_and_fit_a_command_line():
    slugs = [card.slug for card in catalog.METHODS]
    assert len(set(slugs)) == len(slugs)
    assert all(re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", slug) for slug in slugs)


@each_method
def test_entry_points_are_public(card):
    for entry in card.entries:
        module, _, name = entry.partition(":")
        assert module.startswith(f"spanwise.{card.family}")
        room = import_module(module)
        assert callable(getattr(room, name))
        assert name in room.__all__


@each_method
def test_the_method_has_a_test_file_that_mirrors_its_module(card):
    module, _, name = card.entries[0].partition(":")
    home = getattr(import_module(module), name).__module__
    *folders, file = home.removeprefix("spanwise.").split(".")
    test = ROOT.joinpath("tests", *folders, f"test_{file.lstrip('_')}.py")
    assert test.is_file()
    assert "def test_" in test.read_text()


@each_method
def test_the_method_has_a_page_that_the_site_links(card):
    page = ROOT / card.docs
    assert page.is_file()
    assert len(page.read_text()) > 1000
    assert card.docs.removeprefix("docs/") in (ROOT / "mkdocs.yml").read_text()


@each_method
def test_the_method_has_a_reproduction(card):
    module = import_module(card.reproduction)
    for name in ("CLAIM", "CRITERION", "Settings", "run", "figure"):
        assert hasattr(module, name), name


@each_method
def test_the_committed_result_matches_the_settings_of_the_code(card):
    from spanwise.report import Result

    result = Result.load(ROOT / card.result)
    settings = import_module(card.reproduction).Settings()
    assert result.matches(settings), (
        f"{card.result} was made with other settings; run: spanwise reproduce {card.slug}"
    )


@each_method
def test_the_catalog_repeats_the_verdict_of_the_result(card):
    verdict = json.loads((ROOT / card.result).read_text())["verdict"]
    found = verdict if isinstance(verdict, str) else verdict["outcome"]
    assert card.verdict == found


def test_an_unknown_method_names_the_nearest():
    with pytest.raises(ValueError, match="did you mean 'galore2'"):
        catalog.get("galor")


def test_bibtex_joins_authors_with_and():
    assert "author        = {Su and Gu and Xu and Tian and Zhao}" in catalog.get("galore2").bibtex


def test_a_table_is_renewed_between_its_markers_only():
    text = "before\n<!-- methods -->\nold\n<!-- /methods -->\nafter\n"
    renewed = catalog.write_table(text)
    assert renewed.startswith("before\n<!-- methods -->\n| method")
    assert renewed.endswith("|\n<!-- /methods -->\nafter\n")
    assert catalog.write_table(renewed) == renewed
    with pytest.raises(ValueError, match="<!-- methods -->"):
        catalog.write_table("no markers")
