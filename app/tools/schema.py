"""The arguments of a tool: a JSON Schema for the model, and validation of what the model wrote."""

from __future__ import annotations

import inspect
import re
import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NotRequired, Union, cast, get_args, get_origin, get_type_hints

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError, create_model, with_config
from pydantic.errors import PydanticSchemaGenerationError, PydanticUserError
from pydantic.fields import FieldInfo
from pydantic_core import PydanticSerializationError, from_json, to_json, to_jsonable_python
from typing_extensions import TypedDict

from app.tools.argument_error import argument_error
from app.tools.docstring import Docstring
from app.tools.errors import ToolDefinitionError
from app.tools.tool_context import ToolContext

_CONFIG = ConfigDict(extra="forbid", allow_inf_nan=False)
_NAMED_SCHEMAS = ("properties", "patternProperties", "$defs", "dependentSchemas")
_PLAIN_VALUES = ("default", "const", "enum", "examples", "required")


@dataclass(frozen=True, slots=True)
class Arguments:
    """What a function takes from the model.

    Args:
        json_schema: plain JSON Schema of type object, as the chat-completions API takes it
            (https://platform.openai.com/docs/guides/function-calling).
        context_parameter: the parameter that receives a `ToolContext`, if there is one.
    """

    json_schema: dict[str, Any]
    context_parameter: str | None
    _adapter: TypeAdapter[Any]
    _bind: Callable[[Any], dict[str, Any]]
    _defaults: dict[str, Any]

    def parse(self, text: str) -> dict[str, Any]:
        """Keyword arguments for the function, from the model's text; blank text means no arguments.

        Raises:
            CallError: the text is no JSON, no object, or does not fit; says where and why.
        """
        return self._bind(self._validated(text))

    def normalise(self, text: str) -> str:
        """The arguments as JSON text that `parse` makes the same of: as the function will get them, defaults included.

        What JSON cannot carry (a type that hides its value, a validator that changes a value each time) is left as the
        model wrote it.

        Raises:
            CallError: see `parse`.
        """
        value = self._validated(text)
        given: dict[str, Any] = from_json(text if text.strip() else "{}")
        try:
            plain: dict[str, Any] = self._adapter.dump_python(value, mode="json", by_alias=True, warnings="none")
        except PydanticSerializationError:
            plain = given
        for candidate in (self._defaults | plain, plain, self._defaults | given):
            written = to_json(candidate, inf_nan_mode="null").decode()
            if self._gives(value, written):
                return written
        return to_json(given, inf_nan_mode="null").decode()

    def _gives(self, value: Any, text: str) -> bool:
        try:
            again = self._adapter.validator.validate_json(text)
            if isinstance(value, dict):
                return {name: again.get(name) for name in cast("dict[str, Any]", value)} == value
            return bool(again == value)
        except Exception:  # noqa: BLE001 - the type's own validators and comparisons ran
            return False

    def _validated(self, text: str) -> Any:
        try:
            return self._adapter.validator.validate_json(text if text.strip() else "{}")
        except ValidationError as error:
            raise argument_error(error, text, tuple(self.json_schema.get("properties", ()))) from error


def arguments_of(
    function: Callable[..., Any],
    docstring: Docstring,
    model: type[BaseModel] | None,
    local_types: Mapping[str, Any],
) -> Arguments:
    """Read a function's arguments off its signature, or off `model`.

    Args:
        model: the function takes either this model as its only parameter, or the model's fields by name.
        local_types: names that type hints written as text may use besides those of the function's module.

    Raises:
        ToolDefinitionError: no schema can be made; names the parameter and says what to change.
    """
    name = function.__name__
    parameters, hints = _signature(function, local_types)
    context_parameter = _context_parameter(name, hints)
    if context_parameter is not None:
        parameters.pop(context_parameter)
        hints.pop(context_parameter)
    try:
        if model is None:
            adapter = TypeAdapter[Any](_typed_dict(name, parameters, hints))
            bind = cast("Callable[[Any], dict[str, Any]]", dict)
        else:
            adapter = TypeAdapter[Any](_forbidding(model))
            bind = _binding(name, parameters, hints, model)
        json_schema = _plain(adapter.json_schema())
    except (PydanticSchemaGenerationError, PydanticUserError) as error:
        raise ToolDefinitionError(f"tool {name!r}: no JSON schema for its parameters: {error}") from error
    if json_schema.get("type") != "object":
        raise ToolDefinitionError(f"tool {name!r}: args_model must be a model with named fields")
    _describe(json_schema, docstring, parameters)
    fields: dict[str, Any] = json_schema["properties"]
    # A model has its defaults in itself.
    defaults = {} if model else {each: field["default"] for each, field in fields.items() if "default" in field}
    return Arguments(json_schema, context_parameter, adapter, bind, defaults)


def _signature(
    function: Callable[..., Any], local_types: Mapping[str, Any]
) -> tuple[dict[str, inspect.Parameter], dict[str, Any]]:
    name = function.__name__
    parameters = dict(inspect.signature(function).parameters)
    hints: dict[str, Any] = {}
    for parameter in parameters.values():
        what = f"tool {name!r}: parameter {parameter.name!r}"
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            raise ToolDefinitionError(f"{what} takes any number of arguments; name each one instead")
        if parameter.kind is parameter.POSITIONAL_ONLY:
            raise ToolDefinitionError(f"{what} is positional-only; arguments are passed by name")
        if parameter.annotation is parameter.empty:
            raise ToolDefinitionError(f"{what} has no type hint")
        if isinstance(parameter.default, FieldInfo):
            raise ToolDefinitionError(f"{what} has a Field as its default; write Annotated[type, Field(...)]")
        hints[parameter.name] = _resolved(function, parameter, local_types, what)
    return parameters, hints


def _resolved(
    function: Callable[..., Any], parameter: inspect.Parameter, local_types: Mapping[str, Any], what: str
) -> Any:
    holder = types.SimpleNamespace(__annotations__={parameter.name: parameter.annotation})
    namespace: dict[str, Any] = getattr(inspect.unwrap(function), "__globals__", {})
    try:
        hints = get_type_hints(holder, globalns=namespace, localns=dict(local_types), include_extras=True)
    except (NameError, AttributeError, SyntaxError, TypeError) as error:
        raise ToolDefinitionError(
            f"{what}: cannot resolve the type hint {parameter.annotation!r} ({error}); "
            "the type must be known at run time where the function is defined"
        ) from error
    return hints[parameter.name]


def _context_parameter(name: str, hints: Mapping[str, Any]) -> str | None:
    found = [parameter for parameter, hint in hints.items() if _is_context(hint)]
    if len(found) > 1:
        raise ToolDefinitionError(f"tool {name!r} has more than one ToolContext parameter: {', '.join(found)}")
    return found[0] if found else None


def _is_context(hint: Any) -> bool:
    if hint is ToolContext:
        return True
    origin = get_origin(hint)
    if origin in (Union, types.UnionType):
        return any(_is_context(member) for member in get_args(hint))
    return hasattr(hint, "__metadata__") and _is_context(hint.__origin__)


def _typed_dict(name: str, parameters: Mapping[str, inspect.Parameter], hints: Mapping[str, Any]) -> type[Any]:
    """A TypedDict of the parameters.

    Not a model: it allows every parameter name (`schema`, `model_config`, `_x`), validation gives the keyword
    arguments themselves, and an absent argument leaves the function's own default object in place.
    """
    fields = {
        key: hint if parameters[key].default is inspect.Parameter.empty else NotRequired[hint]
        for key, hint in hints.items()
    }
    make = cast("Callable[[str, dict[str, Any]], type[Any]]", TypedDict)
    return with_config(_CONFIG)(make(_type_name(name), fields))


def _type_name(name: str) -> str:
    return re.sub(r"\W", "_", name) + "_arguments"


def _forbidding(model: type[BaseModel]) -> type[BaseModel]:
    """The model with unknown arguments forbidden, unless it says itself what to do with them."""
    extra = model.model_config.get("extra") or "forbid"
    return create_model(model.__name__, __base__=model, __cls_kwargs__={"extra": extra})


def _binding(
    name: str,
    parameters: Mapping[str, inspect.Parameter],
    hints: Mapping[str, Any],
    model: type[BaseModel],
) -> Callable[[Any], dict[str, Any]]:
    match list(hints.items()):
        case [(only, hint)] if isinstance(hint, type) and issubclass(model, hint) and hint is not object:
            return lambda instance: {only: instance}
        case _:
            pass
    fields = set(model.model_fields)
    required = {key for key, parameter in parameters.items() if parameter.default is parameter.empty}
    if unknown := sorted(fields - set(parameters)):
        raise ToolDefinitionError(f"tool {name!r} does not take these fields of its args_model: {unknown}")
    if missing := sorted(required - fields):
        raise ToolDefinitionError(f"tool {name!r} needs parameters that its args_model does not have: {missing}")
    return lambda instance: {field: getattr(instance, field) for field in fields}


def _describe(json_schema: dict[str, Any], docstring: Docstring, parameters: Mapping[str, inspect.Parameter]) -> None:
    """Add descriptions and defaults where the type hints gave none."""
    for name, field in json_schema.setdefault("properties", {}).items():
        if name in docstring.parameters:
            field.setdefault("description", docstring.parameters[name])
        parameter = parameters.get(name)
        if parameter is None or parameter.default is parameter.empty or "default" in field:
            continue
        try:
            field["default"] = to_jsonable_python(parameter.default)
        except ValueError:
            # Such a default cannot be shown; the argument is optional all the same.
            continue


def _plain(schema: Any) -> Any:
    """Drop what no model needs: titles (a property *named* title stays) and OpenAPI's discriminator."""
    if isinstance(schema, list):
        return [_plain(member) for member in cast("list[Any]", schema)]
    if not isinstance(schema, dict):
        return schema
    plain: dict[str, Any] = {}
    for key, value in cast("dict[str, Any]", schema).items():
        if key in _NAMED_SCHEMAS:
            plain[key] = {name: _plain(member) for name, member in value.items()}
        elif key in _PLAIN_VALUES:
            plain[key] = value
        elif key not in ("title", "discriminator"):
            plain[key] = _plain(value)
    return plain
