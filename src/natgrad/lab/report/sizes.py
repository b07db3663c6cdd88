"""What differs from the paper: at full size, and in the profile that was run."""

from __future__ import annotations

from natgrad.lab.errors import UsageError
from natgrad.lab.profile import held, whose
from natgrad.lab.recipe import load
from natgrad.lab.report.read import Results
from natgrad.lab.report.text import display_name

__all__ = ["differences", "profile_changes"]

NO_PAPER = "no paper"  #: the source of a recipe that follows none


def differences(results: Results) -> list[tuple[str, str]]:
    """Return what differs from the paper at full size, and what the profile changes of that.

    Returns:
        Pairs of what is spoken of and the words for it; nothing of what does not differ.
    """
    differs = str(results.part("recipe").get("differs") or "")
    changes = profile_changes(results)
    profile = results.part("profile").get("name")
    size = ", at full size" if changes else ""
    cited = NO_PAPER not in str(results.part("recipe").get("source"))
    found = (
        (f"What differs from the paper{size}" if cited else "About", differs),
        (f"What the {profile} profile changes", changes),
    )
    return [(label, words) for label, words in found if words]


def profile_changes(results: Results) -> str:
    """Return what the profile changes of the full one, the values that grids hold included.

    The manifest says it; of one that leaves out what its grids hold, these are set beside those of
    the recipe.
    """
    words = str(results.part("profile").get("differs") or "")
    if not words:
        return ""
    try:
        full = load(str(results.part("recipe").get("name")), "full").grids
    except UsageError:  # a recipe that is no longer there
        return words
    found = held(results.part("grids"), full)
    unsaid = {value: names for value, names in found.items() if value not in words}
    if not unsaid:
        return words
    return f"{words}; in the grids: {', '.join(whose(unsaid, write=display_name))}"
