"""A plugin for mypy that understands `@patch` of fastcore: a patched function is checked as a method of its class.

Each function decorated with `@patch` is moved from the module into the class that annotates its first parameter, if the
module defines that class. `as_prop`, `cls_method` and `static_method` are replaced by the corresponding decorators.
"""
from mypy.nodes import CallExpr, Decorator, NameExpr, OverloadedFuncDef
from mypy.plugin import Plugin
from mypy.types import AnyType, CallableType, TypeOfAny, UnboundType

DECORATORS = {"as_prop": "property", "cls_method": "classmethod", "static_method": "staticmethod"}


def patched_class(statement):
    "Name of the class that a statement patches, or None."
    if not isinstance(statement, Decorator) or not statement.func.arguments:
        return None
    decorator = statement.original_decorators[0]
    name = decorator.callee if isinstance(decorator, CallExpr) else decorator
    annotation = statement.func.arguments[0].type_annotation
    if isinstance(name, NameExpr) and name.name == "patch" and isinstance(annotation, UnboundType):
        return annotation.name
    return None


def as_method(statement):
    "The method that a patched function becomes, with an ordinary `self` or `cls`."
    function, decorator = statement.func, statement.original_decorators.pop(0)
    function.arguments[0].type_annotation = function.arguments[0].variable.type = None
    if isinstance(function.type, CallableType):
        types = [AnyType(TypeOfAny.special_form), *function.type.arg_types[1:]]
        function.type = function.type.copy_modified(arg_types=types)
        function.unanalyzed_type = function.type.copy_modified()
    if isinstance(decorator, CallExpr):
        extra = [NameExpr(DECORATORS[name]) for name in decorator.arg_names if name in DECORATORS]
        statement.original_decorators[:0] = extra
    if statement.original_decorators:
        return statement
    function.is_decorated = False
    return function


def move_methods(context):
    "Move the functions that patch a class from its module into the class; called before the class is analysed."
    body, module = context.cls.defs.body, context.api.modules[context.api.cur_mod_id]
    for i, statement in reversed(list(enumerate(module.defs))):  # neighbours of the same name form a group: split it
        if isinstance(statement, OverloadedFuncDef) and any(map(patched_class, statement.unanalyzed_items)):
            module.defs[i:i + 1] = statement.unanalyzed_items
    for statement in [s for s in module.defs if patched_class(s) == context.cls.name]:
        module.defs.remove(statement)
        body.append(as_method(statement))


class PatchPlugin(Plugin):
    def get_customize_class_mro_hook(self, fullname):
        return move_methods if fullname.startswith("clip_ft.") else None


def plugin(_version):
    return PatchPlugin
