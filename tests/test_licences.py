"""What a user installs with the package may be used by anybody for anything."""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib.metadata import Distribution, distribution

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

PERMISSIVE = re.compile(r"\b(Apache|BSD|MIT|PSF)\b")
# The certificate authorities as a file, without code, in every environment that has `requests`.
EXCEPTIONS = {"certifi": "MPL-2.0"}


def installed_with(name: str, known: dict[str, Distribution]) -> dict[str, Distribution]:
    """By name, the package and all that it needs, and that those need, without extras."""
    if (name := canonicalize_name(name)) not in known:
        known[name] = distribution(name)
        for needed in needs(known[name]):
            installed_with(needed, known)
    return known


def needs(package: Distribution) -> Iterator[str]:
    for line in package.requires or ():
        requirement = Requirement(line)
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            yield requirement.name


def licence_of(package: Distribution) -> str:
    said = [*package.metadata.get_all("License-Expression", []), *package.metadata.get_all("License", [])]
    classifiers = [line for line in package.metadata.get_all("Classifier", []) if line.startswith("License ::")]
    return " ".join([*said, *classifiers])


def test_every_package_that_comes_with_ours_has_a_permissive_licence() -> None:
    licences = {name: licence_of(package) for name, package in installed_with("otel-audit", {}).items()}

    assert len(licences) > 10
    odd = {name: licence for name, licence in licences.items() if not PERMISSIVE.search(licence)}
    assert odd.keys() == EXCEPTIONS.keys(), odd
    assert all(EXCEPTIONS[name] in licence for name, licence in odd.items())
