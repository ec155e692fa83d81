"""Answers GraphQL documents with the schema beside this file."""

from pathlib import Path
from typing import Any

from graphql import ExecutionResult, GraphQLError, build_schema, execute_sync, parse, validate
from graphql.pyutils import Undefined

SCHEMA = build_schema(Path(__file__).with_name("schema.graphql").read_text())


def answer(query: str, variables: dict[str, Any], root: Any) -> tuple[Any, list[str]]:
    """Execute a document.

    Args:
        query: The document.
        variables: Values of its variables.
        root: Object with a method for each field of `Query` and `Mutation`.

    Returns:
        The data, and the errors.
    """
    try:
        document = parse(query)
        errors: list[GraphQLError] = validate(SCHEMA, document)
    except GraphQLError as error:
        return None, [error.message]
    if errors:
        return None, [error.message for error in errors]
    result: ExecutionResult = execute_sync(
        SCHEMA, document, root_value=root, variable_values=variables
    )
    return result.data, [error.message for error in result.errors or ()]


def given(values: dict[str, Any]) -> dict[str, Any]:
    """Return the values of an input that the client gave."""
    return {key: value for key, value in values.items() if value not in (None, Undefined)}
