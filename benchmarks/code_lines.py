"""Count the code lines of a folder: lines with a token that is neither a comment nor a docstring (also of attributes).

python benchmarks/code_lines.py distrec
"""

import ast
import io
import sys
import tokenize
from pathlib import Path

_NO_CODE = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER)


def count(source: str) -> int:
    """Return the code lines of a module."""
    docstrings, lines = set(), set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            docstrings |= set(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in _NO_CODE:
            lines |= set(range(token.start[0], token.end[0] + 1))
    return len(lines - docstrings)


if __name__ == "__main__":
    print(sum(count(file.read_text()) for file in Path(sys.argv[1]).rglob("*.py")))
