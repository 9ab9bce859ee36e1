"""Options that belong together, as one argument of the command that takes them."""

from collections.abc import Callable
from dataclasses import fields, is_dataclass
from functools import wraps
from inspect import Parameter, Signature, signature
from typing import Annotated, Any, get_type_hints

import typer


def with_option_groups(command: Callable[..., None]) -> Callable[..., None]:
    """Return a command whose command line has an option for each field of the groups it takes.

    Args:
        command: Each of its arguments is an option, or a group: a dataclass whose fields are
            options. A field is one by its annotation, as typer's; or by its metadata, as those of
            `pipelines.request`, from which its flag and help are taken. They stand in the help in
            their order. No two options have the same name.
    """
    taken = signature(command).parameters
    groups: dict[str, type[Any]] = {
        name: one.annotation
        for name, one in taken.items()
        if isinstance(one.annotation, type) and is_dataclass(one.annotation)
    }
    members = {name: _options_of(group) for name, group in groups.items()}

    @wraps(command)
    def gather(**values: Any) -> None:  # noqa: ANN401 - whatever the options hold
        gathered = {
            name: _build(group, {member: values.pop(member) for member in members[name]})
            for name, group in groups.items()
        }
        command(**gathered, **values)

    options = [one for name in taken for one in members.get(name, {name: taken[name]}).values()]
    gather.__signature__ = Signature(  # type: ignore[attr-defined]
        [one.replace(kind=Parameter.KEYWORD_ONLY) for one in options]
    )
    return gather


def _build(group: type[Any], values: dict[str, Any]) -> object:
    """Return a group with its values; one with `from_values` converts what was typed."""
    convert = getattr(group, "from_values", None)
    return group(**values) if convert is None else convert(values)


def _options_of(group: type[Any]) -> dict[str, Parameter]:
    """Return the options of a group by the names of its fields."""
    parameters = dict(signature(group).parameters)
    types = get_type_hints(group)
    for one in fields(group):
        if "help" not in one.metadata:
            continue
        flag = one.metadata["flag"] or f"--{one.name.replace('_', '-')}"
        usual = one.metadata["usual"]
        option = typer.Option(
            flag, help=one.metadata["help"], show_default=True if usual is None else usual
        )
        kind = str | None if types[one.name] == tuple[str, ...] | None else types[one.name]
        parameters[one.name] = parameters[one.name].replace(annotation=Annotated[kind, option])
    return parameters
