"""Reads a JSON schema, and writes one that llama-common makes into a grammar of the same texts, or fewer."""

from __future__ import annotations

import re
from collections import defaultdict

from moebind._core.shown import shown
from moebind.sampling.json_rules import Names
from moebind.sampling.json_values import (
    BOUNDS,
    LIMITS,
    TYPES,
    Schema,
    UnheldError,
    as_list,
    as_nodes,
    canonical,
    counts,
    fail,
    integer,
    kinds_of,
    short_json,
    string,
    values,
)

__all__ = ["SchemaReader"]

DEPTH_MAX = 64
#: llama-common writes a rule for each pair of them.
OPTIONAL_MAX = 128
NAME_MAX = 200
COMPARISONS_MAX = 100_000

ANNOTATIONS = {"$schema", "$id", "$anchor", "$comment", "$defs", "definitions", "title", "description", "default"}
ANNOTATIONS |= {"examples", "example", "deprecated", "readOnly", "writeOnly", "contentMediaType", "contentEncoding"}
ANNOTATIONS |= {"discriminator", "externalDocs", "xml"}  # OpenAPI's
# What editors show, and SchemaStore.
ANNOTATIONS |= {"markdownDescription", "enumDescriptions", "markdownEnumDescriptions", "enumItemLabels", "fileMatch"}
ANNOTATIONS |= {"defaultSnippets", "deprecationMessage", "errorMessage", "patternErrorMessage", "suggestSortText"}
KEYWORDS = {
    "object": {"properties", "required", "additionalProperties"},
    "array": {"items", "prefixItems", "minItems", "maxItems", "uniqueItems"},
    "string": {"pattern", "format", "minLength", "maxLength"},
    "number": BOUNDS,
}
#: Names of llama-common's own rules, which a property's rule must not take.
RESERVED = {"root", "space", "dot", "boolean", "decimal-part", "integral-part", "number", "integer", "value", "object"}
RESERVED |= {"array", "uuid", "char", "string", "null", "date", "time", "date-time"}
RESERVED |= {"date-string", "time-string", "date-time-string"}


class SchemaReader:
    """Reads a schema, and writes one that llama-common reads as it is meant.

    Parameters
    ----------
    root
        The schema.
    strict
        Raise for what a grammar cannot hold a text to. Else it is left out, and listed in ``lost``.
    prefix
        What the names of definitions begin with.
    """

    def __init__(self, root: object, *, strict: bool = True, prefix: str = "d") -> None:
        self._root = root
        self._strict = strict
        self._prefix = prefix
        self._names: dict[str, str] = {}
        self._definitions: dict[str, Schema] = {}
        self._comparisons = 0
        self._lost: dict[tuple[str, str], str] = {}
        #: The orders of properties of which llama-common would write the required ones first.
        self.orders: dict[tuple[Names, Names], list[Names]] = defaultdict(list)

    @property
    def lost(self) -> list[str]:
        """What the grammar does not hold a text to."""
        return list(self._lost.values())

    def document(self) -> Schema:
        """The schema to write a grammar from."""
        root = self._node(self._root, "#", "", 0)
        for reference, name in self._names.items():
            if self._is_only(name, name, set()):
                what = "it refers to itself alone, which describes nothing"
                self._lose(UnheldError(reference, what))
                self._definitions[name] = {}
        return {**root, "$defs": self._definitions}

    def _is_only(self, name: str, target: str, seen: set[str]) -> bool:
        """Whether a definition, or an alternative of it, is another one and no more."""
        if name in seen:
            return False
        seen.add(name)
        todo = [self._definitions[name]]
        while todo:
            node = todo.pop()
            todo += as_nodes(node.get("anyOf", []))
            to = str(node.get("$ref", "")).rpartition("/")[2]
            if to and (to == target or self._is_only(to, target, seen)):
                return True
        return False

    def _lose(self, error: UnheldError) -> None:
        if self._strict:
            raise error
        self._lost[error.fault] = str(error)

    def _node(self, schema: object, path: str, name: str | None, depth: int) -> Schema:
        """One schema. ``name`` is how llama-common's rule will begin; None where it cannot meet one of its own."""
        while True:
            try:
                return self._read(schema, path, name, depth)
            except UnheldError as error:
                # Whatever is wrong with a node is found before what is in it is read.
                self._lose(error)
                if not isinstance(schema, dict) or not error.drop & schema.keys():
                    return {}
                schema = {key: each for key, each in schema.items() if key not in error.drop}

    def _read(self, schema: object, path: str, name: str | None, depth: int) -> Schema:
        if depth > DEPTH_MAX:
            fail(path, f"it nests deeper than {DEPTH_MAX}")
        if schema is True:
            return {}
        if not isinstance(schema, dict):
            fail(path, f"{short_json(schema)} is not a schema that a text could satisfy")
        schema = _without_idle(schema)
        given = {key for key in schema if key not in ANNOTATIONS and not key.startswith("x-")}
        known = {"type", "enum", "const", "$ref", "anyOf", "oneOf", "allOf"}.union(*KEYWORDS.values())
        for keyword in sorted(given - known):
            fail(path, f"{keyword!r} cannot be expressed in a grammar", keyword)
        for keyword in ("$ref", "allOf", "anyOf", "oneOf", "const", "enum"):
            if keyword in given:
                return self._single(schema, given, keyword, path, depth)
        kind = schema.get("type") if "type" in given else self._guessed_type(given, path)
        if isinstance(kind, list):
            if not kind or not all(isinstance(each, str) for each in kind):
                fail(path, f"'type' is {short_json(kind)}; it takes a name, or a list of some", "type")
            kinds = [self._node({**schema, "type": each}, path, name, depth + 1) for each in kind]
            return kinds[0] if len(kinds) == 1 else {"anyOf": kinds}
        if kind is None:
            return {}
        if kind not in TYPES:
            fail(path, f"'type' is {short_json(kind)}; it takes {', '.join(TYPES)}", "type")
        if kind == "object":
            return self._object(schema, path, name, depth)
        if kind == "array":
            return self._array(schema, path, depth)
        if kind == "string":
            return string(schema, path)
        if kind == "integer":
            return integer(schema, path)
        if kind == "number":
            for keyword in sorted(given & KEYWORDS["number"]):
                fail(path, f"{keyword!r} of a number cannot be expressed in a grammar; that of an integer can", keyword)
        return {"type": kind}

    def _guessed_type(self, given: set[str], path: str) -> str | None:
        kinds = [kind for kind, keywords in KEYWORDS.items() if given & keywords]
        if len(kinds) > 1 or kinds == ["number"]:
            fail(path, "without a 'type', its keywords do not tell what it describes: add one", *given)
        return kinds[0] if kinds else None

    # --- references and combinations ---

    def _single(self, schema: Schema, given: set[str], keyword: str, path: str, depth: int) -> Schema:
        """A schema that one keyword says, beside which others may only repeat it."""
        valued = keyword in {"const", "enum"}
        beside = given - {keyword, "type"} - ({"enum", *LIMITS} if valued else set())
        if beside:
            fail(path, f"{min(beside)!r} beside {keyword!r} cannot be expressed in a grammar", min(beside))
        if valued:
            found = values(schema, keyword, path)
            # What a tool's argument is read as depends on it.
            return (
                found if self._strict or not isinstance(schema.get("type"), str) else {"type": schema["type"], **found}
            )
        if keyword == "$ref":
            node = self._reference(schema[keyword], path, depth)
        else:
            node = self._combined(schema[keyword], keyword, f"{path}/{keyword}", depth)
        kinds = schema.get("type", list(TYPES))
        allowed = {str(kind).replace("number", "integer") for kind in (kinds if isinstance(kinds, list) else [kinds])}
        if "type" in given and not self._all_kinds(node, 0) <= allowed:
            self._lose(UnheldError(path, f"'type' beside {keyword!r} cannot be expressed in a grammar"))
        return node

    def _all_kinds(self, node: Schema, depth: int) -> set[str]:
        node = self._target(node)
        if "anyOf" in node and depth < 8:
            return set().union(*(self._all_kinds(each, depth + 1) for each in as_nodes(node["anyOf"])))
        return kinds_of(node)

    def _reference(self, reference: object, path: str, depth: int) -> Schema:
        if not isinstance(reference, str) or not re.match(r"#(/|$)", reference):
            given = short_json(reference)
            fail(path, f"'$ref' is {given}; only references into the same document (#/...) are taken", "$ref")
        if reference not in self._names:
            target = self._root
            for part in reference.split("/")[1:]:
                from urllib.parse import unquote  # slow to import

                key = unquote(part).replace("~1", "/").replace("~0", "~")
                if isinstance(target, dict) and key in target:
                    target = target[key]
                elif isinstance(target, list) and re.fullmatch(r"\d{1,6}", key) and int(key) < len(target):
                    target = target[int(key)]
                else:
                    fail(path, f"there is nothing at {shown(reference)}", "$ref")
            name = self._names[reference] = f"{self._prefix}{len(self._names)}"
            self._definitions[name] = self._node(target, reference, None, depth + 1)
        return {"$ref": f"#/$defs/{self._names[reference]}"}

    def _target(self, node: Schema) -> Schema:
        """The node that a chain of references leads to; an empty one, where it leads in a circle or is not read yet."""
        for _ in range(DEPTH_MAX):
            if "$ref" not in node:
                return node
            node = self._definitions.get(str(node["$ref"]).rpartition("/")[2], {})
        return {}

    def _combined(self, alternatives: object, keyword: str, path: str, depth: int) -> Schema:
        if not isinstance(alternatives, list) or not alternatives:
            fail(path, "it takes a list of schemas", keyword)
        nodes = [self._node(each, f"{path}/{i}", None, depth + 1) for i, each in enumerate(alternatives)]
        if len(nodes) == 1:
            return nodes[0]
        try:
            if keyword == "allOf":
                return self._merged(nodes, path)
            if keyword == "oneOf":
                self._check_disjoint(nodes, path)
        except UnheldError as error:
            self._lose(error)
        return nodes[0] if keyword == "allOf" else {"anyOf": nodes}

    def _check_disjoint(self, nodes: list[Schema], path: str) -> None:
        for i, node in enumerate(nodes):
            for j in range(i):
                if not self._disjoint(nodes[j], node, 0):
                    fail(path, f"a text may satisfy both {j} and {i}, which a grammar cannot exclude: use anyOf")

    def _merged(self, nodes: list[Schema], path: str) -> Schema:
        properties: Schema = {}
        required: list[object] = []
        for node in map(self._target, nodes):
            own = node.get("properties")
            if not isinstance(own, dict) or node.get("additionalProperties") is False or own.keys() & properties.keys():
                fail(path, "only objects with different properties, which allow more of them, can be combined")
            properties.update(own)
            required += as_list(node.get("required"))
        self._remember(properties, required)
        return {"type": "object", "properties": properties, "required": required}

    def _disjoint(self, a: Schema, b: Schema, depth: int) -> bool:
        """Whether surely no value satisfies both."""
        self._comparisons += 1
        if self._comparisons > COMPARISONS_MAX:
            fail("#", "its 'oneOf' have too many alternatives to compare: use anyOf")
        a, b = self._target(a), self._target(b)
        if depth > 8 or not a or not b:
            return False
        for one, other in ((a, b), (b, a)):
            if "anyOf" in one:
                return all(self._disjoint(each, other, depth + 1) for each in as_nodes(one["anyOf"]))
        kinds = [kinds_of(a), kinds_of(b)]
        if not kinds[0] & kinds[1]:
            return True
        if "enum" in a and "enum" in b:
            return not {canonical(each) for each in as_list(a["enum"])} & {
                canonical(each) for each in as_list(b["enum"])
            }
        if kinds[0] == kinds[1] == {"object"}:
            shared = set(map(str, as_list(a.get("required")))) & set(map(str, as_list(b.get("required"))))
            parts = [node.get("properties") for node in (a, b)]
            return any(
                self._disjoint(parts[0][key], parts[1][key], depth + 1)  # type: ignore[index]  # required ones are there
                for key in shared
            )
        return False

    # --- objects and arrays ---

    def _object(self, schema: Schema, path: str, name: str | None, depth: int) -> Schema:
        properties, required = schema.get("properties", {}), schema.get("required", [])
        additional = schema.get("additionalProperties", True)
        if not isinstance(properties, dict):
            fail(path, "'properties' takes an object", "properties", "required")
        if not isinstance(required, list) or not all(isinstance(each, str) for each in required):
            fail(path, "'required' takes a list of names", "required")
        for each in required:
            if each not in properties:
                what = f"the required property {shown(each)} is not among 'properties', whose values a grammar needs"
                self._lose(UnheldError(path, what))
        required = [each for each in required if each in properties]
        if len(properties) - len(set(required)) > OPTIONAL_MAX:
            fail(path, f"it has more than {OPTIONAL_MAX} properties that are not required", *KEYWORDS["object"])
        if not properties:
            if additional is False:
                return {"type": "object", "properties": {}, "additionalProperties": False}
            others = self._node(additional, f"{path}/additionalProperties", None, depth + 1)
            return {"type": "object", "additionalProperties": others} if others else {"type": "object"}
        if additional not in (True, False, {}):
            what = "'additionalProperties' with a schema, beside 'properties', cannot be expressed in a grammar"
            fail(path, what, "additionalProperties")
        inner = {key: None if name is None else f"{name}-{key}" if name else key for key in properties}
        for key, rule in inner.items():
            written = "" if rule is None else re.sub(r"[^a-zA-Z0-9-]+", "-", rule)
            if len(key) > NAME_MAX:
                what = f"a property's name has {len(key)} characters; at most {NAME_MAX} are taken"
                fail(path, what, *KEYWORDS["object"])
            if written.startswith("ref-") or (written in RESERVED and written != rule):
                what = f"the property {shown(key)} would take the place of a rule of llama-common's: rename it"
                fail(path, what, *KEYWORDS["object"])
        parts: Schema = {
            key: self._node(value, f"{path}/properties/{key}", inner[key], depth + 1)
            for key, value in properties.items()
        }
        self._remember(parts, required)
        result: Schema = {"type": "object", "properties": parts, "required": required}
        if additional is False:
            result["additionalProperties"] = False
        return result

    def _remember(self, properties: Schema, required: list[object]) -> None:
        """Keep the order of properties."""
        first = tuple(key for key in properties if key in required)
        last = tuple(key for key in properties if key not in required)
        whole = tuple(properties)
        if first and last and whole not in self.orders[first, last]:
            self.orders[first, last].append(whole)

    def _array(self, schema: Schema, path: str, depth: int) -> Schema:
        if schema.get("uniqueItems", False) is not False:
            fail(path, "'uniqueItems' cannot be expressed in a grammar", "uniqueItems")
        least, most = counts(schema, "minItems", "maxItems", path)
        items = schema.get("items", True)
        prefix = schema.get("prefixItems", items if isinstance(items, list) else None)
        if prefix is not None:
            if not isinstance(prefix, list) or not prefix:
                fail(path, "'prefixItems' takes a list of schemas", "prefixItems", "items")
            if not least <= len(prefix) <= (len(prefix) if most is None else most):
                fail(path, f"it has {len(prefix)} items, which 'minItems' or 'maxItems' forbid", "minItems", "maxItems")
            parts = [self._node(each, f"{path}/prefixItems/{i}", None, depth + 1) for i, each in enumerate(prefix)]
            return {"type": "array", "prefixItems": parts}
        if items is False:
            items, most = True, 0
            if least:
                fail(path, "'items' is false, but 'minItems' asks for some", "minItems")
        node = self._node(items, f"{path}/items", None, depth + 1)
        result: Schema = {"type": "array", "items": node, "minItems": least}
        return result if most is None else {**result, "maxItems": most}


def _without_idle(schema: Schema) -> Schema:
    """A schema without the keywords that forbid nothing, or say what others say too."""
    schema = {key: value for key, value in schema.items() if IDLE.get(key, ()) == () or value not in IDLE[key]}
    if schema.get("unevaluatedProperties") is False and "properties" in schema and "additionalProperties" not in schema:
        schema = {**schema, "additionalProperties": False}
        del schema["unevaluatedProperties"]
    if schema.get("unevaluatedItems") is False and "prefixItems" in schema and "items" not in schema:
        schema = {key: value for key, value in schema.items() if key != "unevaluatedItems"}
    return schema


#: Values with which a keyword forbids nothing.
IDLE: dict[str, tuple[object, ...]] = {
    "propertyNames": (True, {}, {"type": "string"}),
    "unevaluatedProperties": (True, {}),
    "unevaluatedItems": (True, {}),
    "patternProperties": ({},),
    "dependentRequired": ({},),
    "dependentSchemas": ({},),
    "minProperties": (0,),
    "not": (False,),
    "nullable": (False,),
}
