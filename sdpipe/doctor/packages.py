"""Which packages are here, in which versions, and whether they go together.

Read from what is recorded of each installed package; none is imported.
"""

import platform
import sys
import tomllib
from collections.abc import Iterable, Iterator
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

import sdpipe
from sdpipe.doctor.finding import Finding

if TYPE_CHECKING:
    from packaging.requirements import Requirement

USED_FOR = {"show": "the drawings of `sdpipe show`", "train": "`sdpipe train emoji`"}
"""What each extra is for; extras that are not named here are for developers."""

# sdpipe needs none of them, but diffusers and transformers import them where they are.
STRANGERS = (
    *("torchvision", "torchaudio", "xformers", "peft", "bitsandbytes", "flash-attn", "torchao"),
    *("triton", "kernels", "optimum-quanto", "onnxruntime", "sentencepiece", "opencv-python"),
)


def packages() -> Iterator[Finding]:
    """Python, sdpipe, all that sdpipe asks for, and whatever disagrees with something else."""
    version = platform.python_version()
    system = f"{platform.system()} {platform.machine()}"
    python = f"{version} on {system}, {sys.executable}"
    yield Finding("python", "ok", python, facts={"version": version, "system": system})
    folder = str(Path(sdpipe.__file__).parent)
    facts = {"version": sdpipe.__version__, "folder": folder}
    yield Finding("sdpipe", "ok", f"{sdpipe.__version__} in {folder}", facts=facts)
    try:
        import packaging.requirements  # noqa: F401
    except Exception as error:
        text = f"cannot be imported ({error}), and diffusers and transformers need it"
        yield Finding("packaging", "problem", text, "pip install --force-reinstall packaging")
        return
    needed = list(_needed())
    if not needed:
        text = "sdpipe's own record of what it needs is not here"
        yield Finding("packages", "note", text, "install sdpipe with pip")
    findings = {need.name: _one(need) for need in needed}
    yield from findings.values()
    own = [need.name for need in needed if not _extra(need)]
    known = _closure([*own, *STRANGERS])
    told = {name for name, finding in findings.items() if finding.state != "ok"}
    yield from _disagreements({name: needs for name, needs in known.items() if name not in told})


def closure_of_sdpipe() -> set[str]:
    """The names, as pip writes them, of all packages that sdpipe cannot do without."""
    return set(_closure(need.name for need in _needed() if not _extra(need)))


def _needed() -> "Iterator[Requirement]":
    """What sdpipe asks for: as recorded when it was installed, or in pyproject.toml."""
    from packaging.requirements import Requirement

    try:
        lines = metadata.requires("sdpipe") or []
    except metadata.PackageNotFoundError:
        lines = _of_checkout(Path(sdpipe.__file__).parents[1] / "pyproject.toml")
    for need in map(Requirement, lines):
        if not (extra := _extra(need)) or extra in USED_FOR:
            yield need


def _of_checkout(path: Path) -> list[str]:
    if not path.is_file():
        return []
    project = tomllib.loads(path.read_text(encoding="utf-8"))["project"]
    extras = project.get("optional-dependencies", {}).items()
    optional = [f'{need}; extra == "{extra}"' for extra, needs in extras for need in needs]
    return [*project["dependencies"], *optional]


def _extra(need: "Requirement") -> str:
    """The extra that a requirement belongs to, or ""."""
    _, _, extra = str(need.marker or "").partition('extra == "')
    return extra.partition('"')[0]


def _one(need: "Requirement") -> Finding:
    found, extra = _version(need.name), _extra(need)
    facts = {"version": found, "asked": str(need.specifier)}
    wanted = f'"{need.name}{need.specifier}"'
    if found is None and extra:
        text = f"is not here; {USED_FOR[extra]} needs it, nothing else does"
        return Finding(need.name, "note", text, f"pip install {wanted}", facts)
    if found is None:
        return Finding(need.name, "problem", "is not installed", f"pip install {wanted}", facts)
    if not need.specifier.contains(found, prereleases=True):
        text = f"{found} is none of those that sdpipe is made for, {need.specifier}"
        return Finding(need.name, "note", text, f"pip install {wanted}", facts)
    return Finding(need.name, "ok", found, facts=facts)


def _version(name: str) -> str | None:
    """The version of an installed package; None where it is not here, or its record is damaged."""
    try:
        return metadata.version(name) or None
    except (metadata.PackageNotFoundError, KeyError):
        return None


def _closure(names: Iterable[str]) -> "dict[str, list[Requirement]]":
    """The installed ones of these packages and of all that they ask for: name, requirements."""
    from packaging.requirements import InvalidRequirement, Requirement
    from packaging.utils import canonicalize_name

    known: dict[str, list[Requirement]] = {}
    todo = [canonicalize_name(name) for name in names]
    while todo:
        name = todo.pop()
        if name in known or _version(name) is None:
            continue
        known[name] = []
        for line in metadata.requires(name) or []:
            try:
                need = Requirement(line)
            except InvalidRequirement:
                continue
            if need.marker is None or need.marker.evaluate({"extra": ""}):
                known[name].append(need)
                todo.append(canonicalize_name(need.name))
    return known


def _disagreements(known: "dict[str, list[Requirement]]") -> Iterator[Finding]:
    """Where a package asks for another version than is here; whether it breaks, the trial tells."""
    for name, needs in sorted(known.items()):
        for need in needs:
            found = _version(need.name)
            if found is not None and need.specifier.contains(found, prereleases=True):
                continue
            here = "none is here" if found is None else f"{found} is here"
            text = f"{_version(name)} asks for {need.name}{need.specifier}, and {here}"
            remedy = f"pip install --upgrade {name}"
            if name in STRANGERS:
                remedy = f"pip uninstall {name}, which sdpipe does not need, or take one that fits"
            yield Finding(name, "note", text, remedy)
