"""`Explanation`: what a rule finds, how it measures, how bad it is and how to fix it, for people.

The prose stands in `explanations/`, one file of Markdown a rule. The command line, the page of a
diagnosis, SARIF and docs/rules.md (`manual`) are all made of it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from bnkit.diagnosis.rules.table import KINDS, Rule

SECTIONS = ("measured", "severity", "fix", "example")


@dataclass(frozen=True)
class Explanation:
    """What people should know of a rule, in Markdown, as which it prints.

    `trouble` says what goes wrong and why, `measured` how that is seen, with each threshold and its
    reason, `severity` what is an error, a warning or information, `fix` what to do, and `example`
    shows a line before and after as a diff. `follows` are the slugs of its causes.
    """

    rule: str
    summary: str
    trouble: str
    measured: str
    severity: str
    fix: str
    example: str
    follows: tuple[str, ...] = ()
    page: str = "docs/rules.md"

    @property
    def link(self) -> str:
        """Where it stands in the docs."""
        return f"{self.page}#{self.rule}"

    @property
    def body(self) -> str:
        """All of it but the slug and the summary, as Markdown."""
        return "\n\n".join(
            (
                self.trouble,
                f"**How it is measured.** {self.measured}",
                f"**How severe it is.** {self.severity}",
                f"**How to fix it.** {self.fix}",
                self.example,
            )
        )

    def __str__(self) -> str:
        causes = f"It may follow from {', '.join(self.follows)}.\n\n" if self.follows else ""
        return f"**{self.rule}**: {self.summary}\n\n{self.body}\n\n{causes}In the docs: {self.link}"

    def to_json(self) -> dict[str, Any]:
        """Return it as plain data."""
        old = {"mend": self.fix}  # its name in 0.1, for one more release
        return {**asdict(self), **old, "follows": list(self.follows), "link": self.link}


def explanation_of(rule: Rule) -> Explanation:
    """Return the explanation of a rule.

    >>> from bnkit.diagnosis.rules.table import RULES
    >>> explanation_of(RULES[0]).link
    'docs/rules.md#cancelled-bias'
    """
    text = (rule.folder / f"{rule.slug}.md").read_text(encoding="utf-8")
    first, *others = text.split("\n## ")
    sections = (section.partition("\n") for section in others)
    parts = {title.lower(): prose.strip() for title, _, prose in sections}
    trouble = first.partition("\n")[2].strip()  # below the title, which is the summary
    return Explanation(
        rule.slug, rule.summary, trouble, **parts, follows=rule.follows, page=rule.page
    )


# The page of the docs


_HEAD = """# The rules of the doctor

`bnkit doctor` and `bnkit.diagnose` look for these troubles. Each is named by a slug, by which
`bnkit explain` shows its page in the terminal and `skip=` switches it off. An error breaks training
or makes its results wrong, a warning harms them, information is worth knowing. Figures in
`typewriter` are those of a finding's `measured`. "The fix" is the finding's `automatic_fix`, what
`diagnosis.fixed(model)` and `--fix` apply.

<!-- Made from src/bnkit/diagnosis/explanations: change it there. -->"""


def manual(kinds: Mapping[str, Sequence[Rule]] = KINDS, head: str = _HEAD) -> str:
    """Return the page, in Markdown: a list of the rules by kind, then each one's explanation.

    >>> manual().splitlines()[0]
    '# The rules of the doctor'
    """
    explained = {k: [explanation_of(rule) for rule in rules] for k, rules in kinds.items()}
    lists = [
        f"**{kind.capitalize()}**\n\n"
        + "\n".join(f"- [{each.rule}](#{each.rule}): {each.summary}" for each in found)
        for kind, found in explained.items()
    ]
    chapters = [_chapter(each) for found in explained.values() for each in found]
    return "\n\n".join([head, *lists, *chapters]) + "\n"


def _chapter(found: Explanation) -> str:
    causes = ", ".join(f"[{slug}](#{slug})" for slug in found.follows)
    follows = f"\n\nIt may follow from {causes}; then it stands under its cause." if causes else ""
    return f"## {found.rule}\n\n*{found.summary}*\n\n{found.body}{follows}"
