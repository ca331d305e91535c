"""Plans as a checkpoint holds them: as JSON, in the order of their changes.

The text is {"format": 2, "plans": [...]}, each plan as `Plan.to_json` writes it.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bnkit.surgery.operations import OPERATIONS, functions_in
from bnkit.surgery.plan import Plan

FORMAT = 2  # 0.1.0 wrote format 1: a bare list, which names no format

Document = Mapping[str, Any]  # a plan as `Plan.to_json` writes it


def written(plan: Plan | Document | Sequence[Plan | Document] | None) -> str:
    """Return the text for the file of one plan, of several, or of none.

    Raises ValueError, with the layer, for a change that `load` could not make again.

    >>> written(None)
    '{"format": 2, "plans": []}'
    """
    plans = [plan] if isinstance(plan, Plan | Mapping) else plan or ()
    return json.dumps({"format": FORMAT, "plans": [_document(each) for each in plans]})


def parsed(path: Path, text: str) -> tuple[Document, ...]:
    """Return the plans of the text in the file at `path`.

    Raises ValueError where it is damaged, and for a format of a later version of bnkit.

    >>> parsed(Path("a.pt"), "[]"), parsed(Path("a.pt"), written(None))
    ((), ())
    """
    try:
        content = json.loads(text)
        named = content if isinstance(content, Mapping) else {"format": 1, "plans": content}
        is_later = int(named["format"]) > FORMAT
        plans = () if is_later else tuple(named["plans"])
        for plan in plans:
            [dict(edit["structure"]) for edit in plan["edits"]]
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ValueError(
            f"the plan in {path} is damaged ({type(error).__name__}: {error!s:.200}): write "
            f"the file again"
        ) from error
    if is_later:
        raise ValueError(
            f"the plan in {path} is of format {named['format']}, and this version of bnkit reads "
            f"up to format {FORMAT}: a later version wrote the file, so update bnkit to load it"
        )
    return plans


def _document(plan: Plan | Document) -> Document:
    document = plan.to_json() if isinstance(plan, Plan) else plan
    for edit in document["edits"]:
        _refuse_what_cannot_be_made_again(edit)
    # The file brings its values by itself.
    edits = [{k: v for k, v in edit.items() if k != "values"} for edit in document["edits"]]
    return {**document, "edits": edits}


def _refuse_what_cannot_be_made_again(edit: Mapping[str, Any]) -> None:
    structure = edit["structure"]
    if structure.get("operation") not in OPERATIONS:
        raise ValueError(
            f"`plan` does not say by which operation layer '{edit['layer']}' was changed "
            f"({edit['change']}), so the file could not be loaded: save the state_dict and "
            f"make the change again in code"
        )
    for name in functions_in(structure):
        raise ValueError(
            f"`plan` changes layer '{edit['layer']}' by {name!r}, a function, which cannot be "
            f"saved, so the file could not be loaded: save the state_dict, and make the change "
            f"again in code before you load it"
        )
