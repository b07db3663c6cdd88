"""How numbers, names and settings are written in tables and sentences."""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Collection, Iterable, Mapping
from typing import Any

_NAMES = {
    "sgd": "SGD",
    "sgdm": "SGDM",
    "sgd_nesterov": "SGD, Nesterov",
    "sgd_bn": "SGD + BatchNorm",
    "adam": "Adam",
    "adamw": "AdamW",
    "rmsprop": "RMSprop",
    "lbfgs": "L-BFGS",
    "muon": "Muon",
    "soap": "SOAP",
    "kfac": "KFAC",
    "kfac_pytorch": "kfac-pytorch",
    "kfac_jax": "kfac-jax",
    "ekfac": "EKFAC",
    "tkfac": "TKFAC",
    "tekfac": "TEKFAC",
    "exactngd": "ExactNGD",
    "prong": "PRONG",
    "prong_diagonal": "PRONG, diagonal",
    "prongplus": "PRONG+",
    "prong+": "PRONG+",
    "sngd": "SNGD",
}
NATURAL = frozenset(
    {"kfac", "ekfac", "tkfac", "tekfac", "exactngd", "prong", "prongplus", "prong+", "sngd"}
)
SUFFIXES = {
    "_restricted": "damping (3.5)",
    "_bf16": "bfloat16",
    "_auto": "auto",
    "_defaults": "defaults",
}
NOTHING = "\N{EN DASH}"
LARGE = 1e6  #: from here on decimals make a column too wide to be read

_LOCAL_PATH = re.compile(
    r"(?<![\w.:/~])(?:[A-Za-z]:)?"
    r"(?:[\\/](?:home|root|tmp|mnt|data|work|Users|var|opt|srv)\b|[\\/][^\s\\/'\"<>]+(?=[\\/]))"
    r"(?:[\\/][^\s\\/'\",;)]*)*"
)


def display_name(optimizer: str) -> str:
    """Return an optimizer's name as the field writes it.

    >>> display_name("kfac_auto")
    'KFAC, auto'
    >>> display_name("prong[eps=0.1,every=100]")
    'PRONG, eps 0.1, every 100'
    """
    stem, bracket, inside = optimizer.partition("[")
    if bracket:
        fixed = inside.rstrip("]").replace("=", " ").replace(",", ", ")
        return f"{display_name(stem)}, {fixed}"
    for suffix, words in SUFFIXES.items():
        if optimizer.lower().endswith(suffix):
            return f"{display_name(optimizer[: -len(suffix)])}, {words}"
    return _NAMES.get(optimizer.lower(), optimizer)


def is_natural(optimizer: str) -> bool:
    """Return whether an optimizer of this name takes natural-gradient steps."""
    name = optimizer.lower().partition("[")[0]
    for suffix in SUFFIXES:
        name = name.removesuffix(suffix)
    return name in NATURAL


def significant(value: float | None, digits: int = 3) -> str:
    """Write a number with so many significant digits, without an exponent where it is readable.

    >>> significant(0.012345), significant(12.345), significant(12345.0), significant(2e-7)
    ('0.0123', '12.3', '12345', '2.00e-07')
    """
    if value is None or not math.isfinite(value):
        return NOTHING
    if value == 0:
        return "0"
    exponent = math.floor(math.log10(abs(value)))
    if exponent < -4 or exponent > 6:
        return f"{value:.{digits - 1}e}"
    return f"{value:.{max(0, digits - 1 - exponent)}f}"


def decimals(values: Iterable[float | None], digits: int = 3) -> int:
    """Return how many decimals give the smallest of the values so many significant digits.

    Between 2 and 4, so that a column stays readable; a value too small for that is written
    with an exponent by `fixed`.
    """
    sizes = [abs(v) for v in values if v is not None and math.isfinite(v) and v != 0]
    if not sizes:
        return 2
    return min(4, max(2, digits - 1 - math.floor(math.log10(min(sizes)))))


def fixed(value: float | None, places: int) -> str:
    """Write a number with so many decimals, with an exponent where it is too small or large.

    >>> fixed(12345.678, 2), fixed(0.0004, 2), fixed(250026864.1, 2)
    ('12345.68', '4.0e-04', '2.5e+08')
    """
    if value is None or not math.isfinite(value):
        return NOTHING
    if value != 0 and not 10.0**-places <= abs(value) < LARGE:
        return f"{value:.1e}"
    return f"{value:.{places}f}"


def deviation(values: Collection[float]) -> float | None:
    """The sample standard deviation; None of fewer than two."""
    return statistics.stdev(values) if len(values) > 1 else None


def markdown_row(cells: Iterable[object]) -> str:
    """A row of a table in Markdown."""
    return "| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |"


def markdown_table(head: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    """A table in Markdown."""
    head = list(head)
    return "\n".join(map(markdown_row, (head, ["---"] * len(head), *rows)))


def with_spread(mean: float | None, sd: float | None, places: int) -> str:
    """Write a mean and its spread, both with an exponent where decimals would not do for them.

    That is a mean too small for them, or a mean or a spread too large.

    >>> with_spread(0.123, 0.004, 2), with_spread(4.6e-7, 2.5e-7, 2), with_spread(0.5, None, 1)
    ('0.12 ± 0.00', '4.6e-07 ± 2.5e-07', '0.5')
    >>> with_spread(250026864.1, 252515355.35, 2)
    '2.5e+08 ± 2.5e+08'
    """
    written = fixed(mean, places)
    if sd is None or mean is None:
        return written
    if "e" in written or sd >= LARGE:
        return f"{mean:.1e} ± {sd:.1e}"
    return f"{written} ± {sd:.{places}f}"


def plain_value(value: Any) -> str:
    """Write a setting: short floats, words for booleans, nothing for None."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if value is None:
        return "none"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, Mapping):
        return settings_text(value)
    if isinstance(value, (list, tuple)):
        return ", ".join(plain_value(entry) for entry in value)
    return without_paths(str(value))


def settings_text(settings: Mapping[str, Any]) -> str:
    """Write settings in one line.

    >>> settings_text({"lr": 0.1, "nesterov": True})
    'lr 0.1, nesterov yes'
    """
    return ", ".join(f"{key} {plain_value(value)}" for key, value in settings.items())


def profile_text(profile: Mapping[str, Any]) -> str:
    """Write the size of the experiment, and all that it changes of the full one."""
    return ": ".join(str(profile[key]) for key in ("name", "differs") if profile.get(key))


def true_title(title: str, data: str) -> str:
    """Write a title with the name of the data that was loaded, where that is another copy.

    >>> true_title("ResNet-20 on CIFAR-10", "CIFAR-10 (JPEG)")
    'ResNet-20 on CIFAR-10 (JPEG)'
    >>> true_title("ResNet-20 on CIFAR-100", "CIFAR-10 (JPEG)")
    'ResNet-20 on CIFAR-100'
    """
    stem, bracket, _ = data.partition(" (")
    if not bracket or data in title:
        return title
    return re.sub(rf"(?<!\w){re.escape(stem)}(?![\w-])", lambda _: data, title)


def without_paths(text: str) -> str:
    """Shorten absolute paths to their last part: a report is shown to others.

    >>> without_paths("natgrad compare mnist-mlp --data /home/someone/data --out runs/a")
    'natgrad compare mnist-mlp --data …/data --out runs/a'
    """
    return _LOCAL_PATH.sub(lambda m: "…/" + re.split(r"[\\/]", m[0].rstrip("\\/"))[-1], text)


def listed(words: list[str]) -> str:
    """Join words as a sentence does: a, b and c."""
    return words[0] if len(words) == 1 else ", ".join(words[:-1]) + " and " + words[-1]
