"""What must hold between fields of a job: Python's arithmetic and comparisons over dotted paths, and nothing else of Python.

``training.global_batch_size % training.micro_batch_size == 0``; an item of a list is ``training.betas[0]``.
"""

import ast
import operator
from collections.abc import Callable
from typing import Annotated, Any

from pydantic import AfterValidator

from tuning.paths import require_path

MAX_CHARACTERS = 1000
MAX_DEPTH = 100
"""Of operators within each other: Python's stack bears no thousand."""

_ARITHMETIC: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}
_COMPARISONS: dict[type[ast.cmpop], Callable[[Any, Any], bool]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Is: operator.is_,
    ast.IsNot: operator.is_not,
    ast.In: lambda item, items: item in items,
    ast.NotIn: lambda item, items: item not in items,
}


def parse(text: str) -> ast.expr:
    """
    Raises:
        ValueError: it is no expression, or holds more than constants, paths, arithmetic, comparisons, ``and or not``.
    """
    if len(text) > MAX_CHARACTERS:
        raise ValueError(f"an expression has at most {MAX_CHARACTERS} characters")
    try:
        tree = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise ValueError(f"{text!r} is no expression: {error.msg if isinstance(error, SyntaxError) else error}") from None
    _require_known(tree, MAX_DEPTH)
    return tree


def paths(tree: ast.expr) -> list[str]:
    """The dotted paths that an expression speaks of."""
    dotted = _dotted(tree)
    if dotted is not None:
        return [dotted]
    inner = (child for child in ast.iter_child_nodes(tree) if isinstance(child, ast.expr))
    return list(dict.fromkeys(path for child in inner for path in paths(child)))


def evaluate(tree: ast.expr, look_up: Callable[[str], Any]) -> Any:
    """
    Args:
        look_up: the value at a dotted path.

    Raises:
        TypeError, ArithmeticError: operands that do not go together, such as a number and a field that is not set.
    """
    dotted = _dotted(tree)
    if dotted is not None:
        return look_up(dotted)
    match tree:
        case ast.Constant():
            return tree.value
        case ast.Tuple() | ast.List():
            return [evaluate(each, look_up) for each in tree.elts]
        case ast.UnaryOp(op=ast.Not()):
            return not evaluate(tree.operand, look_up)
        case ast.UnaryOp():
            return -_number(evaluate(tree.operand, look_up))
        case ast.BinOp():
            left, right = (_number(evaluate(each, look_up)) for each in (tree.left, tree.right))
            return _ARITHMETIC[type(tree.op)](left, right)
        case ast.BoolOp(op=ast.And()):
            return all(evaluate(each, look_up) for each in tree.values)
        case ast.BoolOp():
            return any(evaluate(each, look_up) for each in tree.values)
        case ast.Compare():
            values = [evaluate(each, look_up) for each in (tree.left, *tree.comparators)]
            pairs = zip(tree.ops, values[:-1], values[1:], strict=True)
            return all(_COMPARISONS[type(op)](left, right) for op, left, right in pairs)
    raise AssertionError(f"parse lets no {type(tree).__name__} through")


def _number(value: Any) -> Any:
    if not isinstance(value, int | float):  # else a text could be multiplied until memory is full
        raise TypeError(f"{value!r} is no number")
    return value


def _require_known(tree: ast.expr, depth: int) -> None:
    if _dotted(tree) is not None:
        return
    if depth == 0:
        raise ValueError(f"an expression nests at most {MAX_DEPTH} deep")
    match tree:
        case ast.Constant(value=bool() | int() | float() | str() | None):
            return
        case ast.Tuple(elts=parts) | ast.List(elts=parts) | ast.BoolOp(values=parts):
            pass
        case ast.UnaryOp(op=ast.Not() | ast.USub(), operand=operand):
            parts = [operand]
        case ast.BinOp(op=op, left=left, right=right) if type(op) in _ARITHMETIC:
            parts = [left, right]
        case ast.Compare(left=left, comparators=others):
            parts = [left, *others]
        case _:
            raise ValueError(f"{ast.unparse(tree)!r} is more than paths, constants, arithmetic, comparisons, and, or, not")
    for part in parts:
        _require_known(part, depth - 1)


def _dotted(tree: ast.expr) -> str | None:
    match tree:
        case ast.Name(id=name):
            return name
        case ast.Attribute(value=value, attr=name):
            return None if (parent := _dotted(value)) is None else f"{parent}.{name}"
        case ast.Subscript(value=value, slice=ast.Constant(value=int(index))):
            return None if (parent := _dotted(value)) is None else f"{parent}.{index}"
    return None


def _is_of_a_job(text: str) -> str:
    for path in paths(parse(text)):
        require_path(path)
    return text


Expression = Annotated[str, AfterValidator(_is_of_a_job)]
"""Over fields that a training job has."""
