"""Options that belong together, as one argument of the verb that takes them."""

from collections.abc import Callable
from dataclasses import is_dataclass
from functools import wraps
from inspect import Parameter, Signature, signature
from typing import Any


def with_option_groups(verb: Callable[..., None]) -> Callable[..., None]:
    """Return a verb whose command line has an option for each field of the groups that it takes.

    Args:
        verb: Each of its arguments is an option, or a group: a dataclass whose fields are options.
            They stand in the help in their order. No two options have the same name.
    """
    taken = signature(verb).parameters
    groups: dict[str, type[Any]] = {
        name: one.annotation
        for name, one in taken.items()
        if isinstance(one.annotation, type) and is_dataclass(one.annotation)
    }
    members = {name: signature(group).parameters for name, group in groups.items()}

    @wraps(verb)
    def told(**values: Any) -> None:  # noqa: ANN401 - whatever the options hold
        gathered = {
            name: group(**{member: values.pop(member) for member in members[name]})
            for name, group in groups.items()
        }
        verb(**gathered, **values)

    options = [one for name in taken for one in members.get(name, {name: taken[name]}).values()]
    told.__signature__ = Signature(  # type: ignore[attr-defined]
        [one.replace(kind=Parameter.KEYWORD_ONLY) for one in options]
    )
    return told
