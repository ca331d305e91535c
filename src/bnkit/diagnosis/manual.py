"""`manual`: the page of the docs that explains all rules."""

from bnkit.diagnosis.explanation import Explanation, explanation_of
from bnkit.diagnosis.rules.table import KINDS

_HEAD = """# The rules of the doctor

`bnkit doctor` and `bnkit.diagnose` look for these troubles. Each is named by a slug, by which
`bnkit explain` shows its page in the terminal and `skip=` switches it off. An error breaks training
or makes its results wrong, a warning harms them, information is worth knowing. Figures in
`typewriter` are those of a finding's `measured`. "The mend" is the finding's `automatic_fix`, what
`diagnosis.fixed(model)` and `--fix` apply.

<!-- Made from src/bnkit/diagnosis/explanations by bnkit.diagnosis.manual: change it there. -->"""


def manual() -> str:
    """Return the page, in Markdown: a list of the rules by kind, then each one's explanation.

    >>> manual().splitlines()[0]
    '# The rules of the doctor'
    """
    explained = {k: [explanation_of(rule) for rule in rules] for k, rules in KINDS.items()}
    lists = [
        f"**{kind.capitalize()}**\n\n" + "\n".join(map(_entry, found))
        for kind, found in explained.items()
    ]
    chapters = [_chapter(each) for found in explained.values() for each in found]
    return "\n\n".join([_HEAD, *lists, *chapters]) + "\n"


def _entry(found: Explanation) -> str:
    return f"- [{found.rule}](#{found.rule}): {found.summary}"


def _chapter(found: Explanation) -> str:
    causes = ", ".join(f"[{slug}](#{slug})" for slug in found.follows)
    follows = f"\n\nIt may follow from {causes}; then it stands under its cause." if causes else ""
    return f"## {found.rule}\n\n*{found.summary}*\n\n{found.body}{follows}"
