"""Prose linter for the Markdown pages: the phrases of `rules.yaml`, spelling, and selected checks of proselint.

    python scripts/prose/lint.py README.md docs

Code, link targets, URLs, HTML and everything between the comments `<!-- prose off -->` and `<!-- prose on -->` are
ignored. Spelling is checked with Hunspell's American English dictionary; `vocabulary.txt` lists further accepted words,
one per line. The exit status is 1 if any problem is found.
"""

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import yaml
from hunspell import Hunspell
from proselint.checks import __register__ as proselint_checks
from proselint.registry import CheckRegistry
from proselint.registry.checks import Check, CheckFlags, CheckResult
from proselint.registry.checks.engine import Fancy
from proselint.registry.checks.types import PreferredForms
from proselint.tools import LintFile

HERE = Path(__file__).parent
PROSELINT_CHECKS = ("archaism", "lexical_illusions", "malapropisms", "nonwords", "redundancy", "uncomparables")
"""Checks of proselint that suit technical documentation."""
SKIPPED = re.compile(
    r"^---\n.*?^---$"  # front matter
    r"|<!-- prose off -->.*?(?:<!-- prose on -->|\Z)"
    r"|^ *(?P<fence>```+|~~~+).*?^ *(?P=fence) *$"  # fenced code
    r"|(?<=\])\([^)\s]*\)|^\[[^\]]+\]: \S+"  # link targets
    r"|<!--.*?-->|</?[a-zA-Z][^>]*>"
    r"|https?://[^\s)>|]+"
    r"|\{[#.:][^}\n]*\}",  # attribute lists
    flags=re.MULTILINE | re.DOTALL,
)
INLINE_CODE = re.compile(
    r"(?<!`)(?P<ticks>`+)(?!`)(?:(?!\n[ ]*(?:\n|[|#>*-])).)+?(?<!`)(?P=ticks)(?!`)",  # within a paragraph or table row
    flags=re.DOTALL,
)
TOKEN = re.compile(r"[^\W_][\w'./+@-]*[^\W_]")
PLACEHOLDER = "_"
OUTSIDE = re.compile(rf"{PLACEHOLDER}|\n\s*\n")
"""In a match: it contains code, or spans two paragraphs."""


def main(arguments: list[str]) -> int:
    """Print every problem as `file:line:column: check: message`; return the exit status."""
    paths = [page for argument in arguments for page in markdown_files(Path(argument))]
    if not paths:
        print("No Markdown files given. Usage: python scripts/prose/lint.py README.md docs", file=sys.stderr)
        return 2
    register_checks()
    problems = [problem for path in paths for problem in lint(path.read_text(encoding="utf-8"), str(path))]
    print(*problems, f"{len(paths)} files, {len(problems)} problems", sep="\n")
    return 1 if problems else 0


def markdown_files(path: Path) -> list[Path]:
    """List a file, or the Markdown files below a folder."""
    return sorted(path.rglob("*.md")) if path.is_dir() else [path]


def register_checks() -> None:
    """Register the phrases, the spelling and proselint's own checks; a second call changes nothing."""
    registry = CheckRegistry()
    if not registry.checks:
        registry.register_many((*phrase_checks(), spelling_check(), *proselint_checks))


def lint(text: str, name: str) -> list[str]:
    """Return the problems in one page, in order of position."""
    enabled = dict.fromkeys(("phrases", "spelling.dictionary", *PROSELINT_CHECKS), True)
    content = mask(text)
    page = LintFile(name, content or "\n")
    results = page.lint({"max_errors": 10_000, "checks": enabled})
    return [
        f"{name}:{result.pos[0]}:{result.pos[1]}: {result.check_result.check_path}: "
        + " ".join(result.check_result.message.split())
        for result in results
        if not OUTSIDE.search(page.content[slice(*result.check_result.span)])
    ]


def mask(text: str) -> str:
    """Blank everything that is not prose; positions and line ends stay."""
    straight = text.replace("\N{RIGHT SINGLE QUOTATION MARK}", "'")
    blanked = SKIPPED.sub(lambda match: re.sub(r"\S", " ", match.group()), straight)
    return INLINE_CODE.sub(lambda match: re.sub(r"[^\n]", PLACEHOLDER, match.group()), blanked)


def phrase_checks() -> Iterator[Check]:
    """Yield one check per group of `rules.yaml`; a space in a pattern matches a line end too."""
    groups = yaml.safe_load((HERE / "rules.yaml").read_text(encoding="utf-8"))
    for group, rules in groups.items():
        forms = {pattern.replace(" ", r"\s+"): advice for pattern, advice in rules.items()}
        yield Check(
            check_type=PreferredForms(items=forms),
            engine=Fancy(),
            path=f"phrases.{group}",
            message="write {0}, not '{1}'",
            flags=CheckFlags(allow_quotes=True),
        )


def spelling_check() -> Check:
    """Return a check that reports the words that neither the dictionary nor the vocabulary has."""
    dictionary = Hunspell("en_US")
    vocabulary = set((HERE / "vocabulary.txt").read_text(encoding="utf-8").split())

    def is_known(word: str) -> bool:
        return (
            len(word) < 3
            or not word[1:].islower()  # acronyms and CamelCase
            or bool(vocabulary & {word, word.lower()})
            or dictionary.spell(word)
        )

    def check(text: str, spec: Check) -> Iterator[CheckResult]:
        for token in TOKEN.finditer(text):
            if re.search(r"[\d_@+]|[./]\w", token.group()):  # identifiers, paths, versions
                continue
            for word in re.finditer(r"[^\W_][^\W_']*('(?!s\b)[^\W_]+)?", token.group()):
                if not is_known(word.group()):
                    span = (token.start() + word.start(), token.start() + word.end())
                    yield CheckResult(spec.path, f"unknown word '{word.group()}'", span, None)

    return Check(check_type=check, path="spelling.dictionary", flags=CheckFlags(allow_quotes=True))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
