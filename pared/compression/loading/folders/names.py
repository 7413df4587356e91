"""Tells a model folder by the names of its files."""

from __future__ import annotations

from collections.abc import Iterable

from pared.errors import UnsupportedModel

CONFIG = "config.json"


def find_root(names: Iterable[str]) -> str | None:
    """Where in a zip a model folder begins: "" or the name of its only folder; None: it is no such folder.

    Raises:
        UnsupportedModel: it is a folder of another kind, of which one can say what to do.
    """
    listed = [name for name in names if not name.startswith("__MACOSX/") and not name.endswith("/")]
    firsts = {name.partition("/")[0] for name in listed}
    root = f"{next(iter(firsts))}/" if len(firsts) == 1 and all("/" in name for name in listed) else ""
    inside = {name.removeprefix(root) for name in listed}
    if "model_index.json" in inside:
        raise UnsupportedModel(
            "This is a pipeline of several models (model_index.json). Upload the folder of one of them, such as unet/."
        )
    if "adapter_config.json" in inside and CONFIG not in inside:
        raise UnsupportedModel(
            "This is an adapter (adapter_config.json) without the model that it changes. Merge them first: "
            "model.merge_and_unload().save_pretrained(…)."
        )
    if CONFIG not in inside:
        return None
    return root
