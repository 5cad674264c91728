"""`python -m tests.density`: whether the product's Python is still written openly.

Counts per 1,000 lines with code are printed beside their limits; the exit code is 1 above one.
Tokens are names, operators, numbers and strings as Python 3.11 has them: from 3.12 on an f-string
has several, so that tokens are compared by 3.11 alone. In the end it prints the tokens of the loop
and of each addition.
"""

import ast
import io
import subprocess
import sys
import tokenize
from collections import Counter
from pathlib import Path

from core.additions import ADDITIONS
from core.project import CLONE

NOT_PRODUCT = ("tests/", "benchmarks/", "docs/")
COUNTED = {tokenize.NAME, tokenize.OP, tokenize.NUMBER, tokenize.STRING}
LONG = 40
"""Tokens of a statement."""
LIMITS = {
    "tokens a line": 7.5,
    "packed assignments": 1.5,
    "walruses": 1.5,
    "nested comprehensions": 1.5,
    "long statements": 6.0,
    "names without a noun, %": 1.0,
}
WORDS_WITHOUT_NOUN = """
found known seen asked told given mine own each made wanted gone kept said there beside whole
held every others lacking moved was has answered built drawn shown why what who which here
begun ended named needed taken sent theirs ours
"""
COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
PACKED_VALUES = (ast.Tuple, ast.List, ast.IfExp, *COMPREHENSIONS)
WITHOUT_NOUN = frozenset(WORDS_WITHOUT_NOUN.split())
ASSIGNMENTS = (ast.Assign, ast.AnnAssign, ast.AugAssign)
STATEMENTS = (*ASSIGNMENTS, ast.Expr, ast.Return, ast.Raise, ast.Assert)


def product_files() -> list[Path]:
    """Return the tracked Python files that are no tests, benchmarks or docs."""
    command = ["git", "ls-files", "*.py"]
    names = subprocess.check_output(command, cwd=CLONE, text=True).split()
    return [CLONE / name for name in names if not name.startswith(NOT_PRODUCT)]


def count(source: str) -> Counter[str]:
    """Count lines with code, tokens, names, and what the limits are about, in one file."""
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    tokens_by_line = Counter(t.start[0] for t in tokens if t.type in COUNTED)
    counts = Counter(lines=len(tokens_by_line), tokens=tokens_by_line.total())
    for node in ast.walk(ast.parse(source)):
        counts["packed assignments"] += _is_packed(node)
        counts["walruses"] += isinstance(node, ast.NamedExpr)
        counts["nested comprehensions"] += _is_nested(node)
        counts["long statements"] += _is_long(node, tokens_by_line)
        name = _stored_name(node)
        counts["names"] += bool(name)
        counts["names without a noun"] += name.strip("_") in WITHOUT_NOUN
    return counts


def densities(counts: Counter[str]) -> dict[str, float]:
    """Return what has a limit, by its name in LIMITS."""
    thousand_lines = counts["lines"] / 1000
    shares = {name: counts[name] / thousand_lines for name in LIMITS}
    shares["tokens a line"] = counts["tokens"] / counts["lines"]
    names = 100 * counts["names without a noun"] / counts["names"]
    shares["names without a noun, %"] = names
    return shares


def _is_packed(node: ast.AST) -> bool:
    """Whether a statement assigns to several targets from anything but one call or value."""
    if not isinstance(node, ast.Assign):
        return False
    if not isinstance(node.targets[0], (ast.Tuple, ast.List)):
        return False
    value = node.value
    if isinstance(value, ast.Call) and isinstance(value.func, ast.Name):
        return value.func.id in {"map", "filter", "zip"}
    return isinstance(value, PACKED_VALUES)


def _is_nested(node: ast.AST) -> bool:
    if not isinstance(node, COMPREHENSIONS):
        return False
    return sum(isinstance(inner, COMPREHENSIONS) for inner in ast.walk(node)) > 1


def _is_long(node: ast.AST, tokens_by_line: Counter[int]) -> bool:
    if not isinstance(node, STATEMENTS):
        return False
    lines = range(node.lineno, (node.end_lineno or 0) + 1)
    return sum(tokens_by_line[line] for line in lines) > LONG


def _stored_name(node: ast.AST) -> str:
    """Return the name of a variable that is assigned, or of an argument; else nothing."""
    if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
        return node.id
    return node.arg if isinstance(node, ast.arg) else ""


def part_of(file: Path) -> str:
    """Return the addition that a file belongs to, or the loop."""
    path = file.relative_to(CLONE).as_posix()
    folders = [addition.package.replace(".", "/") for addition in ADDITIONS]
    names = (folder for folder in folders if path.startswith(f"{folder}/"))
    return next(names, "the loop")


def main() -> int:
    counts: Counter[str] = Counter()
    tokens: Counter[str] = Counter()
    for file in product_files():
        file_counts = count(file.read_text())
        counts += file_counts
        tokens[part_of(file)] += file_counts["tokens"]
    shares = densities(counts)
    if sys.version_info >= (3, 12):
        del shares["tokens a line"], shares["long statements"]
    too_dense = [name for name, share in shares.items() if share > LIMITS[name]]
    for name, share in shares.items():
        remark = "  too dense" if name in too_dense else ""
        sys.stdout.write(f"{name:24}{share:6.1f} of {LIMITS[name]:g}{remark}\n")
    for part, number in tokens.most_common():
        sys.stdout.write(f"{part:24}{number:,} tokens\n")
    return 1 if too_dense else 0


if __name__ == "__main__":
    sys.exit(main())
