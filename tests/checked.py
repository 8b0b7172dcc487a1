"""Checks types and tensor shapes of every call of ner_cl, at a fraction of what jaxtyping's own decorator costs.

That decorator binds the arguments of every call by hand and checks them twice, whether a shape is named or not: two
fifths of what training tests cost. Here beartype checks a call once, and a function whose annotations name shapes gets
the context that jaxtyping offers for this, in which one name stands for one size.
"""

import functools
import inspect
import typing
from collections.abc import Callable
from typing import Any

from beartype import beartype
from jaxtyping import AbstractArray, jaxtyped

__all__ = ["checked"]


def checked(what: Any = None, *, typechecker: Callable[..., Any]) -> Any:
    """Does what `jaxtyping.jaxtyped` does; its import hook decorates every function and class with it.

    Args:
        what: a function, a class (of which a dataclass is checked when it is built), or what `classmethod`,
            `staticmethod` or `property` made of a function.
        typechecker: what the hook was told to check with; for functions that only jaxtyping's decorator can treat.
    """
    if what is None:
        return functools.partial(checked, typechecker=typechecker)
    again = functools.partial(checked, typechecker=typechecker)
    if inspect.isclass(what):
        if "__dataclass_fields__" in vars(what) and not hasattr(what.__init__, "__wrapped__"):
            what.__init__ = again(what.__init__)
        return what
    if isinstance(what, classmethod | staticmethod):
        return type(what)(again(what.__func__))
    if isinstance(what, property):
        return property(*(part and again(part) for part in (what.fget, what.fset, what.fdel)), what.__doc__)
    found = _checked_function(what, typechecker)
    if found is not what:
        found.__signature__ = inspect.signature(what)  # type: ignore[attr-defined]  # for those who ask the wrapper
    return found


def _checked_function(function: Callable[..., Any], typechecker: Callable[..., Any]) -> Callable[..., Any]:
    try:
        hints = typing.get_type_hints(function, include_extras=True)
    except NameError:  # a name that only a type checker imports
        return jaxtyped(function, typechecker=typechecker)
    if not any(map(_names_a_shape, hints.values())):
        return beartype(function)
    if inspect.isgeneratorfunction(function):  # what it yields is checked when the call is long over
        return jaxtyped(function, typechecker=typechecker)
    inner = beartype(function)

    @functools.wraps(function)
    def with_shapes(*arguments: Any, **options: Any) -> Any:
        with jaxtyped("context"):
            return inner(*arguments, **options)

    return with_shapes


def _names_a_shape(hint: Any) -> bool:
    if isinstance(hint, list | tuple):  # the arguments of a `Callable`
        return any(map(_names_a_shape, hint))
    if inspect.isclass(hint) and issubclass(hint, AbstractArray):
        return True
    return any(map(_names_a_shape, typing.get_args(hint)))
