"""What is here, what is missing, and what helps: everything that `sdpipe generate` stands on.

Nothing is fetched, and a package that is broken or missing is a finding and not the end: this
imports neither torch nor any other library at the top, and what may crash runs in another process.
"""

import json
from collections.abc import Iterable, Iterator
from typing import Any

from sdpipe.doctor.finding import Finding as Finding
from sdpipe.doctor.machine import memory, outputs
from sdpipe.doctor.models import built_in, cached_models, default_model
from sdpipe.doctor.packages import packages
from sdpipe.doctor.trial import trial


def examine(*, offline: bool = False) -> Iterator[Finding]:
    """Looks at one thing after the other. Importing torch and drawing take nearly all the time.

    offline: do not ask the hub, not even for what a model that is not cached would weigh.
    """
    yield from packages()
    own = built_in()
    yield from trial(draw=own.state == "ok")
    yield own
    yield from default_model(offline=offline)
    yield from cached_models()
    yield memory()
    yield outputs()


def works(findings: Iterable[Finding]) -> bool:
    """Whether nothing was found that keeps pictures from being drawn."""
    return all(finding.state != "problem" for finding in findings)


def as_json(findings: Iterable[Finding]) -> str:
    """All findings, and what they come to, as one JSON object."""
    told = list(findings)
    values: dict[str, Any] = {"works": works(told), "findings": [f.to_dict() for f in told]}
    return json.dumps(values, ensure_ascii=False, indent=2)
