"""Changes the methods of a TorchScript module's own class, in the text that TorchScript writes of it."""

from __future__ import annotations

import io
import pickletools
import re
import zipfile
from collections.abc import Callable, Iterable, Mapping

import torch

from pared.weights.program import write_record


def methods_of(module: torch.jit.ScriptModule) -> list[str]:
    """The names of all methods of a module itself, `forward` among them."""
    return list(module._c._method_names())


def edited(
    module: torch.jit.ScriptModule,
    *,
    names: Mapping[str, str] | None = None,
    methods: Iterable[str] = (),
    attributes: Iterable[str] = (),
) -> torch.jit.ScriptModule:
    """A copy of the module without some methods and attributes of its own, some of whose methods have other names.

    Args:
        names: of a method -> its new name, by which other methods call it from then on.
        methods, attributes: what goes; no method that stays may use it.
    """
    names, gone, lines = names or {}, set(methods), [f"  {name} : " for name in attributes]

    def change(text: str) -> str:
        (_, heading), *parts = _methods(text)
        kept = [line for line in heading.splitlines(keepends=True) if not line.startswith(tuple(lines))]
        return "".join(kept) + "".join(_renamed(source, name, names) for name, source in parts if name not in gone)

    return _rewritten(module, change)


def _renamed(source: str, name: str, names: Mapping[str, str]) -> str:
    """The text of a method with other names for itself and for those that it calls."""
    owner = re.match(r"  def \w+\((\w+):", source)
    for old, new in names.items():
        if owner is not None:
            source = source.replace(f"({owner[1]}).{old}(", f"({owner[1]}).{new}(")
        if name == old:
            source = source.replace(f"  def {old}(", f"  def {new}(", 1)
    return source


def calls(module: torch.jit.ScriptModule) -> dict[str, set[str]]:
    """Each method of a module -> the methods of the same module that it calls itself."""
    found: dict[str, set[str]] = {}
    for name in methods_of(module):
        graph = module._c._get_method(name).graph
        owner = next(graph.inputs()).debugName()
        nodes = graph.findAllNodes("prim::CallMethod", recurse=True)
        found[name] = {node.s("name") for node in nodes if node.inputsAt(0).debugName() == owner}
    return found


def _methods(text: str) -> list[tuple[str, str]]:
    """The class's heading, under no name, and its methods, in order; together they are the text."""
    starts = [match.start() for match in re.finditer(r"^  def ", text, re.MULTILINE)]
    parts = [text[begin:end] for begin, end in zip([0, *starts], [*starts, len(text)], strict=True)]
    names = [""] + [re.match(r"  def (\w+)", part)[1] for part in parts[1:]]  # type: ignore[index]
    return list(zip(names, parts, strict=True))


def _rewritten(module: torch.jit.ScriptModule, change: Callable[[str], str]) -> torch.jit.ScriptModule:
    """A copy of the module through its own format, with another text of its class."""
    saved, made = io.BytesIO(), io.BytesIO()
    torch.jit.save(module, saved)
    with zipfile.ZipFile(saved) as old, zipfile.ZipFile(made, "w") as new:
        top = old.namelist()[0].partition("/")[0]
        path, name = _root_class(old.read(f"{top}/data.pkl"))
        for record in old.infolist():
            content = old.read(record)
            if record.filename.endswith(".debug_pkl"):  # positions in a text that is another one now
                continue
            if record.filename == f"{top}/code/{path}.py":
                content = _class_changed(content.decode(), name, change).encode()
            write_record(new, record.filename, content, compressed=record.compress_type != zipfile.ZIP_STORED)
    made.seek(0)
    copied: torch.jit.ScriptModule = torch.jit.load(made, map_location="cpu")  # type: ignore[no-untyped-call]
    for new_one, old_one in zip(copied.parameters(), module.parameters(), strict=True):
        new_one.requires_grad_(old_one.requires_grad)
    return copied.train(module.training)


def _root_class(pickled: bytes) -> tuple[str, str]:
    """The path of the text that holds the module's own class, and the name of the class there."""
    for operation, argument, _ in pickletools.genops(pickled):
        if operation.name == "GLOBAL":
            place, _, name = str(argument).rpartition(" ")
            return place.replace(".", "/"), name
    raise ValueError("a TorchScript file without a class of its own")


def _class_changed(text: str, name: str, change: Callable[[str], str]) -> str:
    found = re.search(rf"^class {re.escape(name)}\(Module\):\n(?:(?:  .*)?\n)*", text, re.MULTILINE)
    if found is None:
        raise ValueError(f"the class {name} is not where a TorchScript file has it")
    return text[: found.start()] + change(found[0]) + text[found.end() :]
