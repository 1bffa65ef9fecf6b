"""Generated pages are up to date, complete and right."""

import json

import msgspec
import pytest

from bigan_jax.configs import common
from bigan_jax.evaluation.result import EvaluationResult
from scripts import config_page, evaluation_page, generate_docs
from scripts.architecture_page import imports, layers, reduced_imports
from scripts.source_comments import assignment_comments, markdown_cell
from tests.helpers.datasets import evaluation_content


@pytest.mark.parametrize("name", generate_docs.PAGES)
def test_page_is_up_to_date(name):
    content = (generate_docs.DOCS / name).read_text(encoding="utf-8")
    assert content == generate_docs.PAGES[name](), "Run python -m scripts.generate_docs"


def test_every_config_field_is_explained():
    comments = config_page.field_comments()
    unexplained = [name for name in config_page.common_fields() if not comments.get(name)]
    assert not unexplained, f"Add a comment to these fields in configs/common.py: {unexplained}"
    text = config_page.text()
    for name in config_page.model_names():
        assert f"\n### {name}\n" in text
    assert all(f"| `{dataset}` |" in text for dataset in common.DATASETS)


def test_every_field_of_an_evaluation_is_explained():
    rows = [line for line in evaluation_page.text().splitlines() if line.startswith("| `")]
    assert len(rows) > 80
    unexplained = [row for row in rows if row.endswith("|  |")]
    assert not unexplained, f"Add a comment in the class, or a meaning in scripts/evaluation_page.py: {unexplained}"


def test_schema_has_the_fields_and_bounds_of_the_class():
    schema = json.loads(evaluation_page.schema())
    result = schema["$defs"]["EvaluationResult"]
    assert (
        set(result["required"])
        == set(evaluation_content())
        == {f.name for f in msgspec.structs.fields(EvaluationResult)}
    )
    assert result["additionalProperties"] is False
    threshold, auroc = (schema["$defs"]["ScoreResult"]["properties"][name] for name in ("threshold", "auroc"))
    assert threshold["type"] == "number"
    assert {"type": "number", "minimum": 0, "maximum": 1} in auroc["anyOf"]


def test_diagram_keeps_what_can_be_reached():
    direct, reduced = imports(), reduced_imports()

    def reachable(name, edges):
        found = set(edges[name])
        while more := {b for a in found for b in edges[a]} - found:
            found |= more
        return found

    for name in direct:
        assert set(reduced[name]) <= set(direct[name])
        assert reachable(name, reduced) == reachable(name, direct)
    row = {name: i for i, names in enumerate(layers()) for name in names}
    assert all(row[other] > row[name] for name, others in direct.items() for other in others)


def test_comments_of_assignments():
    source = (
        "# not this one\n\nx = 1  # of x\n# above\n# y\ny = '# no comment'\nz = f(\n    1,  # inner\n)  # of z\n"
        "x = 2  # later\nw: int = 0\n"
    )
    assert assignment_comments(source) == {"x": "of x", "y": "above y", "z": "of z", "w": ""}
    assert markdown_cell("a <b> | *c*") == "A &lt;b&gt; \\| \\*c\\*"
