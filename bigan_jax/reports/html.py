"""HTML files that stand alone: nothing is fetched, and whatever comes from outside is text.

A page's own policy forbids the rest: any script but the one it names, any address but data: ones.
"""

import base64
import hashlib
from collections.abc import Callable, Mapping

import jinja2
from markupsafe import Markup

from bigan_jax.errors import printable


def render(
    template: str,
    filters: Mapping[str, Callable],
    tests: Mapping[str, Callable] | None = None,
    **content: object,
) -> str:
    """The page that a template of this package makes of its content.

    All text is escaped, its control characters too, but for what is `Markup`.
    filters, tests: what the template calls by these names, beside `script_hash`.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("bigan_jax.reports", "templates"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
        finalize=_harmless,
    )
    environment.filters.update(filters, script_hash=_script_hash)
    environment.tests.update(tests or {})
    return environment.get_template(template).render(content)


def _harmless(value):
    return printable(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _script_hash(script: str) -> Markup:
    """The name by which the content security policy allows one script and no other."""
    digest = hashlib.sha256(script.encode("utf-8")).digest()
    return Markup(f"sha256-{base64.b64encode(digest).decode('ascii')}")
